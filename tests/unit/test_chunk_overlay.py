"""format.md §11.2 and §11.4: what a list of records means, and how it is compacted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jfsd.chunk.layout import SLICE_RECORD, block_count, block_key, block_length, decode_record
from jfsd.chunk.overlay import View, build_view, plan_compaction
from jfsd.types import CHUNK_SIZE, Slice

MIB = 1 << 20
SPACE = 96


@st.composite
def records(draw, most=12):
    found = []
    for number in range(draw(st.integers(0, most))):
        pos = draw(st.integers(0, SPACE - 1))
        length = draw(st.integers(1, SPACE - pos))
        if draw(st.integers(0, 4)) == 0:
            found.append(Slice(pos, 0, 0, 0, length))
        else:
            off = draw(st.integers(0, 9))
            size = off + length + draw(st.integers(0, 9))
            found.append(Slice(pos, number + 1, size, off, length))
    return found


def paint(found):
    """Each byte of the chunk as (slice id, offset in the slice), (0, 0) for zero."""
    space = [(0, 0)] * SPACE
    for record in found:
        for at in range(record.len):
            space[record.pos + at] = (record.id, record.off + at) if record.id else (0, 0)
    return space


def spread(pieces, start=0):
    space = []
    for piece in pieces:
        assert piece.pos == start + len(space), "gap or overlap"
        assert piece.len > 0
        if not piece.id:
            assert (piece.size, piece.off) == (0, 0)
        space += [(piece.id, piece.off + at) if piece.id else (0, 0) for at in range(piece.len)]
    return space


@given(records())
def test_view_is_the_records_painted_in_order(found):
    painted = spread(build_view(found))
    assert painted + [(0, 0)] * (SPACE - len(painted)) == paint(found)


@given(records(), st.integers(0, SPACE), st.integers(0, SPACE))
def test_cut_covers_exactly_the_range(found, one, other):
    start, stop = sorted((one, other))
    assert spread(View(found).cut(start, stop), start) == paint(found)[start:stop]


@given(records(), st.integers(0, SPACE - 1))
def test_find_gives_the_piece_at_a_position(found, pos):
    piece = View(found).find(pos)
    expected = paint(found)[pos]
    if piece is None:
        assert expected == (0, 0)
    else:
        assert ((piece.id, piece.off + pos - piece.pos) if piece.id else (0, 0)) == expected


def test_example_of_the_format():
    found = [
        Slice(10 * MIB, 10, 30 * MIB, 0, 30 * MIB),
        Slice(20 * MIB, 11, 16 * MIB, 0, 16 * MIB),
        Slice(16 * MIB, 12, 10 * MIB, 0, 10 * MIB),
    ]
    assert [(p.id, p.off, p.len) for p in build_view(found)] == [
        (0, 0, 10 * MIB),
        (10, 0, 6 * MIB),
        (12, 0, 10 * MIB),
        (11, 6 * MIB, 10 * MIB),
        (10, 26 * MIB, 4 * MIB),
    ]


def test_worked_example_of_the_format():
    found = [
        decode_record(bytes.fromhex("000003e8000000000000100100500000" + "0000000000500000")),
        decode_record(bytes.fromhex("00400000000000000000100200000bb8" + "0000000000000bb8")),
    ]
    assert [(p.id, p.off, p.len, p.pos) for p in build_view(found)] == [
        (0, 0, 1000, 0),
        (4097, 0, 4193304, 1000),
        (4098, 0, 3000, 4194304),
        (4097, 4196304, 1046576, 4197304),
    ]


def test_record_of_another_length_is_damage():
    with pytest.raises(ValueError, match="24 bytes"):
        decode_record(b"x" * 23)


# -- compaction


def test_seven_overlapping_records_become_one():
    found = [Slice(3000 * n, 4 + n, 5000, 0, 5000) for n in range(7)]
    plan = plan_compaction(found)
    assert plan is not None
    assert (plan.skipped, plan.pos, plan.size) == (0, 0, 23000)


def test_one_record_is_not_compacted():
    assert plan_compaction([Slice(0, 1, 10, 0, 10)]) is None
    assert plan_compaction([]) is None


def test_zeros_at_the_ends_are_trimmed():
    found = [Slice(0, 0, 0, 0, 100), Slice(50, 1, 10, 0, 10), Slice(70, 2, 10, 0, 10)]
    found.append(Slice(80, 0, 0, 0, 500))
    plan = plan_compaction(found)
    assert plan is not None
    assert (plan.pos, plan.size) == (50, 30)
    assert [piece.id for piece in plan.pieces] == [1, 0, 2]


def test_all_zeros_become_one_byte():
    plan = plan_compaction([Slice(10, 1, 5, 0, 5), Slice(0, 0, 0, 0, 100)])
    assert plan is not None
    assert (plan.pos, plan.size) == (0, 1)
    assert plan.pieces == [Slice(0, 0, 0, 0, 1)]


def test_big_first_record_is_skipped():
    big = Slice(0, 1, 8 * MIB, 0, 8 * MIB)
    small = [Slice(8 * MIB + 100 * n, 2 + n, 100, 0, 100) for n in range(3)]
    plan = plan_compaction([big, *small])
    assert plan is not None
    assert (plan.skipped, plan.pos, plan.size) == (1, 8 * MIB, 300)


def test_big_first_record_is_kept_in_when_overwritten():
    big = Slice(0, 1, 8 * MIB, 0, 8 * MIB)
    plan = plan_compaction([big, Slice(100, 2, 100, 0, 100)])
    assert plan is not None
    assert (plan.skipped, plan.size) == (0, 8 * MIB)


def test_big_first_record_is_kept_in_when_a_later_one_equals_it():
    big = Slice(0, 1, 8 * MIB, 0, 8 * MIB)
    plan = plan_compaction([big, Slice(9 * MIB, 2, 100, 0, 100), big])
    assert plan is not None
    assert plan.skipped == 0


def test_first_record_below_a_fifth_of_all_is_not_skipped():
    first = Slice(0, 1, MIB, 0, MIB)
    plan = plan_compaction([first, Slice(MIB, 2, 5 * MIB, 0, 5 * MIB)])
    assert plan is not None
    assert plan.skipped == 0
    plan = plan_compaction([first, Slice(MIB, 2, 4 * MIB, 0, 4 * MIB)])
    assert plan is None  # the first is skipped and one is left


@settings(max_examples=300)
@given(records(most=8))
def test_compacted_list_shows_the_same_bytes(found):
    plan = plan_compaction(found)
    if plan is None:
        return
    space = paint(found)
    whole = Slice(plan.pos, 999, plan.size, 0, plan.size)
    after = paint([*found[: plan.skipped], whole])
    inside = [
        (piece.id, piece.off + at) if piece.id else (0, 0)
        for piece in plan.pieces
        for at in range(piece.len)
    ]
    assert len(inside) == plan.size
    shown = [inside[off] if each == 999 else (each, off) for each, off in after]
    assert shown == space


# -- names of objects


@pytest.mark.parametrize(
    ("slice_id", "index", "length", "plain", "hashed"),
    [
        (1, 0, 4194304, "chunks/0/0/1_0_4194304", "chunks/01/0/1_0_4194304"),
        (
            123456789,
            15,
            1048576,
            "chunks/123/123456/123456789_15_1048576",
            "chunks/15/123/123456789_15_1048576",
        ),
        (4098, 0, 3000, "chunks/0/4/4098_0_3000", "chunks/02/0/4098_0_3000"),
    ],
)
def test_keys(slice_id, index, length, plain, hashed):
    assert block_key("lab1", False, slice_id, index, length) == f"lab1/{plain}"
    assert block_key("lab1", True, slice_id, index, length) == f"lab1/{hashed}"


def test_blocks_of_a_slice():
    size = 10 * MIB
    assert block_count(size, 4 * MIB) == 3
    assert [block_length(size, j, 4 * MIB) for j in range(3)] == [4 * MIB, 4 * MIB, 2 * MIB]
    with pytest.raises(ValueError, match="no block 3"):
        block_length(size, 3, 4 * MIB)
    assert block_count(CHUNK_SIZE, 65536) == 1024


def test_record_layout():
    raw = SLICE_RECORD.pack(4 * MIB, 4098, 3000, 0, 3000)
    assert raw.hex() == "00400000000000000000100200000bb80000000000000bb8"
    assert decode_record(raw) == Slice(4 * MIB, 4098, 3000, 0, 3000)
