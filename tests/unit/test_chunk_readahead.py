"""What counts as a stream, and how its window grows."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from jfsd.chunk.readahead import Advice, Streams

KIB = 1 << 10
MIB = 1 << 20
ROOM = 1 << 40


def feed(streams, reads, room=ROOM):
    return [streams.observe(off, size, room) for off, size in reads]


def test_start_of_the_file_begins_a_stream():
    (advice,) = feed(Streams(MIB, 32 * MIB), [(0, 128 * KIB)])
    assert advice == Advice(True, 128 * KIB, 128 * KIB + MIB)


def test_first_read_elsewhere_is_random_the_next_one_is_not():
    streams = Streams(MIB, 32 * MIB)
    first, second = feed(streams, [(100 * MIB, 128 * KIB), (100 * MIB + 128 * KIB, 128 * KIB)])
    assert not first.sequential
    assert second == Advice(True, 100 * MIB + 256 * KIB, 101 * MIB + 256 * KIB)


def test_window_doubles_up_to_its_maximum():
    streams = Streams(MIB, 8 * MIB)
    feed(streams, [(n * 128 * KIB, 128 * KIB) for n in range(400)])
    assert streams.window == 8 * MIB


def test_window_grows_no_more_than_there_is_room():
    streams = Streams(MIB, 8 * MIB)
    feed(streams, [(n * 128 * KIB, 128 * KIB) for n in range(400)], room=2 * MIB)
    assert streams.window == 4 * MIB


def test_random_reads_are_random():
    rng = random.Random(1)
    streams = Streams(MIB, 32 * MIB)
    advice = feed(streams, [(rng.randrange(1, 1 << 40), 4 * KIB) for _ in range(1000)])
    assert not any(each.sequential for each in advice)
    assert streams.window == 0


def test_two_streams_do_not_disturb_each_other():
    streams = Streams(MIB, 4 * MIB)
    reads = [(base + n * 128 * KIB, 128 * KIB) for n in range(200) for base in (0, 1 << 36)]
    advice = feed(streams, reads)
    assert all(each.sequential for each in advice[3:])
    assert streams.window == 8 * MIB


@given(st.integers(0, 1 << 30), st.integers(0, 1000))
def test_nothing_is_fetched_twice_and_nothing_left_out(seed, base):
    """Requests of a stream come a little out of order, as the kernel sends them."""
    rng = random.Random(seed)
    size = 128 * KIB
    reads = [(base * size + n * size, size) for n in range(300)]
    for n in range(1, len(reads) - 1, 2):
        if rng.random() < 0.5:
            reads[n], reads[n + 1] = reads[n + 1], reads[n]
    streams = Streams(MIB, 32 * MIB)
    end = 0
    for advice in feed(streams, reads)[3:]:
        assert advice.sequential
        if advice.stop:
            assert advice.start >= end
            assert advice.stop > advice.start
            end = advice.stop
    assert end >= reads[-1][0] + size + 16 * MIB
