"""The parked state: complete at any moment, torn records ignored, foreign ones refused."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import struct
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.chunk.arena import Arena
from jfsd.chunk.budget import Budget
from jfsd.chunk.pending import UPLOADED, Draft, PackRecord, SliceRecord
from jfsd.clock import monotonic_s
from jfsd.daemon import takeover
from jfsd.daemon.state import CRASHED_AT, FileRecord, Header, State, StateError
from jfsd.daemon.state_view import describe, state_kept_by
from jfsd.daemon.takeover import Takeover
from jfsd.record import replace

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDED = Path(__file__).parent / "recorded"
HEADER = Header("0123456789abcdef", "uuid", "/mnt/x", "0:40", 4 << 20, init_in=b"\0in", sid=7)


@pytest.fixture
def state() -> Iterator[State]:
    made = State.create(HEADER)
    yield made
    made.close()
    os.close(made.fd)


def reread(state: State) -> State:
    return State.load(state.fd)


def recorded(name: str) -> int:
    """Return a memory file with what a server of an earlier version left."""
    saved = json.loads((RECORDED / name).read_text())
    fd = os.memfd_create("jfsd-state")
    os.ftruncate(fd, saved["size"])
    for at, page in saved["pages"].items():
        os.pwrite(fd, zlib.decompress(base64.b64decode(page)), int(at))
    return fd


def slice_of(seq: int, length: int = 5, slots: tuple[int, ...] = (3,)) -> SliceRecord:
    return SliceRecord(seq, 1 << 40, 9, 12, length, seq + 1000, 1_700_000_000_000_000_001, slots)


def test_a_header_comes_back_as_it_was_written(state: State) -> None:
    assert reread(state).header == HEADER
    state.change(generation=2, init_out=b"\xff\x00", options={"ro": True}, sealed=True)
    again = reread(state)
    assert again.header == state.header
    assert again.header.generation == 2
    again.change(generation=3)
    assert reread(state).header.generation == 3


@pytest.mark.promise(8)
def test_a_torn_header_leaves_the_one_before(state: State) -> None:
    state.change(generation=2)
    state.change(generation=3)
    at = 65536 * ((state._seq) & 1)
    for offset in (0, 8, 12, 20, 100):
        kept = os.pread(state.fd, 1, at + offset)
        os.pwrite(state.fd, bytes([kept[0] ^ 0x55]), at + offset)
        assert State.load(state.fd).header.generation == 2
        os.pwrite(state.fd, kept, at + offset)
    assert State.load(state.fd).header.generation == 3


@pytest.mark.promise(11)
def test_what_is_no_state_is_refused_with_the_way_out() -> None:
    fd = os.memfd_create("x")
    with pytest.raises(StateError, match="checksum; start the version"):
        State.load(fd)
    os.ftruncate(fd, 1 << 20)
    with pytest.raises(StateError, match="no header"):
        State.load(fd)
    os.close(fd)


def test_an_unknown_layout_is_refused(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfsd.daemon.state.LAYOUT", 99)
    state.change(generation=2)
    monkeypatch.undo()
    with pytest.raises(StateError, match="layout"):
        reread(state)


def test_fields_of_a_newer_version_are_carried_over(state: State) -> None:
    state.write_header(replace(HEADER, more={"colour": "green"}))
    again = reread(state)
    again.change(generation=5)
    assert reread(state).header.more == {"colour": "green"}


def test_files_and_locks_come_back(state: State) -> None:
    records = [FileRecord(fh, 0x7FFFFFFF10000000 + fh, os.O_RDWR, 2 * fh) for fh in range(1, 50)]
    for record in records:
        state.add_file(record)
        state.add_lock(record.fh, 0xFFFFFFFFFFFFFFFF - record.fh)
    for record in records[::2]:
        state.remove_file(record.fh)
        state.remove_lock(record.fh, 0xFFFFFFFFFFFFFFFF - record.fh)
    again = reread(state)
    assert sorted(again.files(), key=lambda r: r.fh) == records[1::2]
    assert set(again.locks()) == {(r.fh, 0xFFFFFFFFFFFFFFFF - r.fh) for r in records[1::2]}
    again.add_file(FileRecord(1000, 5, 0, 4))
    again.remove_file(records[1].fh)
    left = {record.fh for record in reread(state).files()}
    assert left == {r.fh for r in records[3::2]} | {1000}


@pytest.mark.promise(3)
def test_slices_come_back_as_last_written(state: State) -> None:
    for seq in range(1, 300):
        for length in (1, 2, seq):
            state.put_slice(slice_of(seq, length, (seq, UPLOADED, *range(seq % 14))))
    for seq in range(1, 300, 3):
        state.remove_slice(seq)
    left = sorted(reread(state).slices())
    expected = [
        slice_of(seq, seq, (seq, UPLOADED, *range(seq % 14)))
        for seq in range(1, 300)
        if seq % 3 != 1
    ]
    assert left == expected


def part_of(pack: int, seq: int, base: int, length: int = 5) -> SliceRecord:
    """A part as the writer tells it: what the pack says of it is for the pack's record."""
    return SliceRecord(seq, 77, 3, 12, length, 0, 17, (4,), pack, base)


@pytest.mark.promise(3)
def test_packs_come_back_with_all_their_parts(state: State) -> None:
    big = (1 << 40) + 12345
    for pack, id_, slot in ((1, 0, 4), (50, 99, 5), (big, 100, UPLOADED)):
        state.put_pack(PackRecord(pack, 77, 0, 0, slot))
        for n in range(20):
            state.put_slice(part_of(pack, pack + n, n * 5))
        state.put_pack(PackRecord(pack, 77, 100 if id_ else 0, id_, slot))
    state.put_slice(slice_of(30))
    again = reread(state)
    assert sorted(again.slices()) == [
        *[part_of(1, 1 + n, n * 5) for n in range(20)],
        slice_of(30),
        *[part_of(50, 50 + n, n * 5)._replace(id=99, slots=(5,), size=100) for n in range(20)],
        *[
            part_of(big, big + n, n * 5)._replace(id=100, slots=(UPLOADED,), size=100)
            for n in range(20)
        ],
    ]
    assert [again.has_pack(seq) for seq in (1, 50, big, 30)] == [True, True, True, False]
    again.remove_pack(50)
    assert {record.pack for record in reread(state).slices()} == {0, 1, big}


@pytest.mark.promise(3)
def test_a_pack_is_forgotten_by_one_record(state: State) -> None:
    state.put_pack(PackRecord(1, 77, 0, 0, 4))
    state.put_slice(part_of(1, 1, 0))
    state.put_slice(part_of(1, 2, 5))
    state.remove_pack(1)
    shown = State.load(state.fd, read_only=True)
    assert shown.slices() == []
    again = reread(state)
    assert again.slices() == []
    again.put_pack(PackRecord(1, 77, 0, 0, 4))  # numbers begin anew when nothing is pending
    assert reread(state).slices() == [], "a part of the former one"
    assert reread(state)._slice_slots == {}, "a pack without parts is none"


@pytest.mark.promise(3)
def test_a_slice_becomes_a_pack_in_steps_that_each_are_whole(state: State) -> None:
    first = SliceRecord(1, 77, 3, 12, 5, 0, 17, (4,))
    state.put_slice(first)
    state.put_pack(PackRecord(1, 77, 0, 0, 4))
    assert State.load(state.fd, read_only=True).slices() == [first]
    state.put_slice(part_of(1, 1, 0))
    assert State.load(state.fd, read_only=True).slices() == [part_of(1, 1, 0)]


@pytest.mark.promise(11)
def test_a_version_without_packs_refuses_a_state_that_has_some(state: State) -> None:
    """It would claim what it takes for slots; the first of them is none."""
    state.put_pack(PackRecord(1, 77, 0, 0, 4))
    state.put_slice(part_of(1, 1, 0))
    for record in State.load(state.fd, read_only=True)._slice_records():
        assert record.slots[0] not in (UPLOADED, *range(1 << 16))
        arena = Arena(Budget(1 << 20), 1 << 16, slots=64)
        with pytest.raises(ValueError, match="cannot be claimed"):
            arena.claim(record.slots[0], 5)
        arena.close()


@pytest.mark.promise(3)
@given(data=st.data())
def test_a_torn_slice_leaves_the_version_before(data: st.DataObject) -> None:
    state = State.create(HEADER)
    try:
        state.put_slice(slice_of(1, 10))
        state.put_slice(slice_of(1, 11))
        state.put_slice(slice_of(1, 12))
        turn = state._slice_turns[1]
        at = state._slices_at + (turn & 1) * state._slice_bytes
        torn = data.draw(st.integers(0, 55))
        before = state._map[at + torn]
        state._map[at + torn] = before ^ data.draw(st.integers(1, 255))
        assert [r.length for r in reread(state).slices()] == [11]
    finally:
        state.close()
        os.close(state.fd)


@given(seed=st.integers(0, 1 << 32))
def test_noise_is_never_taken_for_a_record(seed: int) -> None:
    data = random.Random(seed).randbytes(4096)
    state = State.create(HEADER)
    try:
        state._map[state._slices_at : state._slices_at + 4096] = data
        state._map[256 << 10 : (256 << 10) + 4096] = data
        again = reread(state)
        assert list(again.files()) == []
        assert again.slices() == []
    finally:
        state.close()
        os.close(state.fd)


@pytest.mark.promise(9)
def test_accusations_are_counted_across_processes(state: State) -> None:
    state.running(42)
    assert [reread(state).accuse(reread(state).suspect()[0]) for _ in range(3)] == [1, 2, 3]
    assert state.accuse(44) == 1
    state.running(0)
    assert reread(state).suspect()[0] == 0


@pytest.mark.promise(9)
@pytest.mark.parametrize(
    ("crashed", "ran_s", "blamed"), [(0, 0.0, False), (11, 0.0, True), (0, 60.0, True)]
)
def test_only_who_died_by_its_own_fault_accuses(
    state: State, monkeypatch: pytest.MonkeyPatch, crashed: int, ran_s: float, blamed: bool
) -> None:
    """A storm of kills may meet the same request each time; it is innocent."""
    monkeypatch.setattr(takeover, "started_s", lambda: monotonic_s() + ran_s)
    for death in range(1, 6):
        state.running(42)
        struct.pack_into("<Q", state.memory, CRASHED_AT, crashed)
        taken = Takeover(-1, -1, state)
        taken.begin()
        assert taken.poisoned == (frozenset({42}) if blamed and death >= 3 else frozenset())
        assert state.take_crash() == 0


@pytest.mark.promise(8)
def test_a_kill_at_any_point_leaves_all_records_that_were_finished(state: State) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        lengths = dict.fromkeys(range(1, 20), 0)
        while True:
            seq = random.randint(1, 19)
            lengths[seq] += 1
            state.put_slice(slice_of(seq, lengths[seq]))
            os.write(write_end, seq.to_bytes(1, "little"))
    os.close(write_end)
    finished = bytearray()
    while len(finished) < 20_000:
        finished += os.read(read_end, 65536)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while more := os.read(read_end, 65536):
        finished += more
    os.close(read_end)
    for record in reread(state).slices():
        done = finished.count(record.seq)
        assert done <= record.length <= done + 1
    assert len(reread(state).slices()) == 19


# -- looking at it


def test_a_view_shows_what_a_next_server_would_find_and_changes_nothing(state: State) -> None:
    state.add_file(FileRecord(3, 1 << 40, os.O_RDWR | os.O_APPEND, 44))
    state.add_file(FileRecord(4, 2, os.O_RDONLY, 46))
    state.remove_file(4)
    state.add_lock(3, 1 << 63)
    state.put_slice(slice_of(9, length=(4 << 20) + 5, slots=(UPLOADED, 7)))
    state.accuse(12)
    state.accuse(12)
    state.running(14)
    before = os.pread(state.fd, 1 << 20, 0)
    arena = os.memfd_create("arena")
    os.ftruncate(arena, 100 * (4 << 20))
    os.pwrite(arena, b"hello", 7 * (4 << 20))
    shown = json.loads(json.dumps(describe(state.fd, arena)))
    os.close(arena)
    assert os.pread(state.fd, 1 << 20, 0) == before
    assert shown["layout"] == 1
    assert (shown["mount_id"], shown["generation"], shown["sid"]) == (HEADER.mount_id, 1, 7)
    assert shown["sealed"] is False
    assert shown["init_in"] == HEADER.init_in.hex()
    assert shown["files"] == [{"fh": 3, "ino": 1 << 40, "flags": "0o2002", "request": 44}]
    assert shown["lock_owners"] == [{"fh": 3, "owner": hex(1 << 63)}]
    assert shown["suspects"] == [{"request": 12, "deaths": 2}]
    assert shown["running"] == 14
    assert [each["slots"] for each in shown["slices"]] == [[UPLOADED, 7]]
    assert shown["arena"] == {"waiting_bytes": 5, "memory_bytes": 4096, "slots": 100}


def test_a_view_cannot_write(state: State) -> None:
    view = State.load(state.fd, read_only=True)
    with pytest.raises(TypeError):
        view.change(generation=9)
    with pytest.raises(TypeError):
        view.running(1)
    view.close()
    assert reread(state).header.generation == 1


def test_a_view_needs_no_more_than_to_read(state: State) -> None:
    fd = os.open(f"/proc/self/fd/{state.fd}", os.O_RDONLY)
    assert describe(fd)["mountpoint"] == "/mnt/x"
    os.close(fd)


@pytest.mark.promise(11)
@pytest.mark.parametrize("harm", ["layout", "header", "size"])
def test_a_view_refuses_what_it_cannot_read_and_says_how_to_go_on(harm: str) -> None:
    state = State.create(HEADER)
    if harm == "layout":
        text = json.dumps({"magic": "jfsd-state", "layout": 99}).encode()
        os.pwrite(state.fd, struct.pack("<QII", 50, len(text), crc32(text, 50)) + text, 0)
    elif harm == "header":
        os.pwrite(state.fd, b"\xff" * 200_000, 0)
    else:
        os.ftruncate(state.fd, 1 << 20)
    with pytest.raises(StateError) as refused:
        describe(state.fd)
    line = str(refused.value)
    assert {"layout": "99", "header": "checksum", "size": "size"}[harm] in line
    assert line.endswith("start the version of jfsd that wrote it, or unmount and mount again")
    os.close(state.fd)


def test_the_state_that_another_process_keeps_is_found_by_its_mount_point(state: State) -> None:
    other = State.create(replace(HEADER, mountpoint="/mnt/y"))
    foreign = os.memfd_create("jfsd-state")
    fd = state_kept_by(os.getpid(), "/mnt/y")
    assert os.path.samestat(os.fstat(fd), os.fstat(other.fd))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(fd, b"x", 0)
    assert state_kept_by(os.getpid(), "/mnt/z") is None
    for each in (fd, other.fd, foreign):
        os.close(each)


def test_a_view_beside_a_writer_never_fails(state: State) -> None:
    """Records and headers are written all the while; what is read is always whole."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            state.change(generation=number)
            state.put_slice(slice_of(number % 7 + 1))
            state.add_file(FileRecord(number, number, 0, number))
            state.remove_file(number - 3)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            shown = describe(state.fd)
            assert all(each["fh"] == each["ino"] for each in shown["files"])
    finally:
        stop.set()
        writer.join()


def test_drafts_are_told_apart_from_pending_slices(state: State) -> None:
    state.put_slice(slice_of(1))
    for number in (5, 6, 1001):
        state.put_draft(Draft(number, 9 << 20, 77, 3))
    state.remove_draft(6)
    again = reread(state)
    assert again.slices() == [slice_of(1)]
    assert again.drafts() == [Draft(5, 9 << 20, 77, 3)], "1001 is still pending"
    again.remove_draft(5)
    third = reread(again)
    assert third.slices() == [slice_of(1)]
    assert third.drafts() == []


def test_the_state_of_another_program_is_named(state: State) -> None:
    text = b'{"magic": "something", "layout": 1}'
    head = struct.pack("<QII", 99, len(text), crc32(text, 99))
    os.pwrite(state.fd, head + text, 65536)
    with pytest.raises(StateError, match="another program"):
        reread(state)


@pytest.mark.promise(3)
def test_the_state_of_the_first_version_is_read() -> None:
    """Recorded from a server of the first layout, with writes that Redis had not heard of."""
    fd = recorded("state-layout-1.json")
    state = State.load(fd)
    try:
        header = state.header
        assert header.mountpoint == "/tmp/recorded/m"
        assert (header.sid, header.generation, header.sealed) == (1, 1, False)
        assert (header.block_size, len(header.init_in), len(header.init_out)) == (4 << 20, 104, 80)
        assert header.options == {
            "-o": "", "--read-only": "false", "--subdir": "", "--enable-xattr": "true",
        }  # fmt: skip
        appended, plain, locked, gone, reading = sorted(state.files(), key=lambda f: f.fh)
        assert [f.ino for f in (appended, plain, locked, gone, reading)] == [2, 3, 4, 5, 3]
        assert [f.fh for f in (appended, plain, locked, gone, reading)] == [1, 2, 3, 4, 5]
        assert appended.flags & os.O_APPEND
        assert reading.flags & os.O_ACCMODE == os.O_RDONLY
        assert [fh for fh, _ in state.locks()] == [locked.fh]
        assert [(s.ino, s.chunk, s.pos, s.length, s.id, s.slots) for s in state.slices()] == [
            (5, 0, 0, 4, 0, (0,)),
            (2, 0, 0, 10000, 0, (1,)),
            (3, 0, 0, 4096, 0, (2,)),
            (3, 1, 36 << 20, 5000, 0, (3,)),
            (3, 0, 8192, 4096, 0, (4,)),
        ]
        assert not list(state.drafts())
    finally:
        state.close()
        os.close(fd)
