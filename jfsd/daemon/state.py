"""The state of a mount in a memory file: what the next process must know, written as it happens.

A memfd is parked with the service manager beside the mount's descriptor and the arena.
It is never "saved": every record is written at the moment of the change, so a kill at any
point finds it complete. Nothing here waits, allocates much or makes a system call.

Layout, version 1 (little-endian):

    0       two copies of the header: seq u64, length u32, crc u32, JSON
    128 KiB number of the request whose handler is running right now (0 for none), u64; since
            when, f64; the signal that the process brought upon itself, u64
    192 KiB suspects: 256 records of 32 bytes
    256 KiB files: 2^20 records of 48 bytes
    then    locks: 2^17 records of 32 bytes
    then    slices: 2^16 pairs of records; their size depends on the block size

A record carries a CRC over its content, which is not zero; a torn one does not match and is
as good as free: its request was not answered, so it comes again. A header or slice that is
changed is written over the older of its two copies, so that a torn change leaves the one
before. Unknown fields of the header are carried over: versions N-1 and N read each other.

A pack takes several records of the table of slices: one for itself and one for each of its
parts, which are void without it. So it comes to be, is named and is forgotten by one record.
Where others list slots, these begin with the number -2, which is no slot: a version that
knows of no packs refuses a state that has some, and takes one that has none.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any, NamedTuple
from zlib import crc32

from jfsd.chunk.pending import Draft, PackRecord, SliceRecord
from jfsd.clock import monotonic_s
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, as_dict, field, names, replace
from jfsd.types import CHUNK_SIZE, Ino

LAYOUT = 1
_MAGIC = "jfsd-state"
_HEADER_BYTES = 64 << 10
RUNNING_AT = 128 << 10
CRASHED_AT = RUNNING_AT + 16
_SUSPECTS_AT = 192 << 10
_FILES_AT = 256 << 10

_HEAD = struct.Struct("<QII")
_RUNNING = struct.Struct("<Qd")
_WORD = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_SUSPECT = struct.Struct("<IIQ")
_FILE = struct.Struct("<IIQQQ")
_LOCK = struct.Struct("<IIQQ")
_SLICE = struct.Struct("<IIQQIIIQqI")

_SUSPECTS, _SUSPECT_BYTES = 256, 32
_FILES, _FILE_BYTES = 1 << 20, 48
_LOCKS, _LOCK_BYTES = 1 << 17, 32
_SLICES = 1 << 16
_STRETCH_BYTES = 64 << 10
_DRAFT = 1 << 63
"""Set in the `seq` of a record without slots, which stands for a draft."""
_PACK = 1 << 62
"""Set in the `seq` of a record that stands for a pack."""
_NO_SLOT = -2
"""Before what stands in the place of slots in a record of a pack or of a part of one."""
_WORD_BITS = 31


class Header(Record):
    """What is fixed for a mount, and how far its servers have come."""

    mount_id: str
    volume_uuid: str
    mountpoint: str
    device: str
    block_size: int
    generation: int = 1
    sid: int = 0
    root: Ino = 1
    cluster: bool = False
    """Redis proved to be a cluster: every key has a prefix."""
    init_in: bytes = b""
    init_out: bytes = b""
    sealed: bool = False
    """The last server ended as it wanted to; False after a kill."""
    options: dict[str, Any] = field(default_factory=dict)
    """Mount options that the kernel fixed at mount time, as they were given."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """The last hand-overs with their phases in milliseconds."""
    totals: dict[str, int] = field(default_factory=dict)
    """How many servers of each kind of start there were, and requests that came again."""
    metrics: str = ""
    """Where the last server found a place for its metrics, if it was to look for one."""
    owed: dict[str, int] = field(default_factory=dict)
    """By inode, the errno that nobody was told yet: data of the file could not be committed."""
    leaving: dict[str, Any] = field(default_factory=dict)
    """What the server that sealed the state says of its end: kind, time, phases."""
    more: dict[str, Any] = field(default_factory=dict)
    """Fields of a newer version, carried over."""


class FileRecord(NamedTuple):
    """An open file handle and the request that opened it."""

    fh: int
    ino: Ino
    flags: int
    op: int


class StateError(RefusedError):
    """The state cannot be used; the mount is left as it is."""

    def __init__(self, rule: str) -> None:
        super().__init__(
            ExitCode.VOLUME_UNSUPPORTED,
            "parked state",
            rule,
            "start the version of jfsd that wrote it, or unmount and mount again",
        )


class State:
    """One mount's state over a memory file.

    Table slots are handed out lowest first, so that the pages in use stay few.
    """

    def __init__(self, fd: int, header: Header, *, read_only: bool = False) -> None:
        """Use the memory file `fd`, which is large enough; `header` is what it holds."""
        self.fd = fd
        self.header = header
        blocks = CHUNK_SIZE // header.block_size
        self._slice_bytes = (_SLICE.size + 4 * blocks + 63) // 64 * 64
        self._locks_at = _FILES_AT + _FILES * _FILE_BYTES
        self._slices_at = self._locks_at + _LOCKS * _LOCK_BYTES
        access = mmap.ACCESS_READ if read_only else mmap.ACCESS_DEFAULT
        self._map = mmap.mmap(fd, _size(header.block_size), access=access)
        self._map.madvise(mmap.MADV_DONTDUMP)
        self._seq = 0
        self._files = _Table(self._map, _FILES_AT, _FILE_BYTES, _FILES)
        self._locks = _Table(self._map, self._locks_at, _LOCK_BYTES, _LOCKS)
        self._slices = _Table(self._map, self._slices_at, 2 * self._slice_bytes, _SLICES)
        self._file_slots: dict[int, int] = {}
        self._lock_slots: dict[tuple[int, int], int] = {}
        self._slice_slots: dict[int, int] = {}
        self._slice_turns: dict[int, int] = {}
        self._drafts: dict[int, Draft] = {}
        self._read_only = read_only

    @classmethod
    def create(cls, header: Header) -> State:
        """Return a new state; the caller owns its descriptor."""
        fd = os.memfd_create("jfsd-state", os.MFD_CLOEXEC)
        os.ftruncate(fd, _size(header.block_size))
        state = cls(fd, header)
        state.write_header(header)
        return state

    @classmethod
    def load(cls, fd: int, *, read_only: bool = False) -> State:
        """Return the state that an earlier process left in `fd`.

        Args:
            fd: The memory file.
            read_only: Only to look at it: the memory cannot be changed through the result,
                and a server may be writing to it.

        Raises:
            StateError: It is no state, damaged, or of an unknown layout.
        """
        header, seq = read_header(fd)
        if os.fstat(fd).st_size != _size(header.block_size):
            raise StateError(f"its size is {os.fstat(fd).st_size}, not that of its layout")
        state = cls(fd, header, read_only=read_only)
        state._seq = seq
        return state

    def reload(self) -> None:
        """Read the header again: another process has changed it since."""
        self.header, self._seq = read_header(self.fd)

    def close(self) -> None:
        """Unmap; the memory file and its descriptor stay."""
        self._map.close()

    # -- header

    def write_header(self, header: Header) -> None:
        """Replace the header; a kill meanwhile leaves the one before."""
        fields = as_dict(header)
        more = fields.pop("more")
        fields["init_in"] = b64encode(header.init_in).decode()
        fields["init_out"] = b64encode(header.init_out).decode()
        text = json.dumps({**more, **fields, "magic": _MAGIC, "layout": LAYOUT}).encode()
        if len(text) > _HEADER_BYTES - _HEAD.size:
            raise ValueError("header of the state is too long")
        self._seq += 1
        at = (self._seq & 1) * _HEADER_BYTES
        self._map[at + _HEAD.size : at + _HEAD.size + len(text)] = text
        _HEAD.pack_into(self._map, at, self._seq, len(text), crc32(text, self._seq))
        self.header = header

    def change(self, **changes: Any) -> None:  # noqa: ANN401 - the fields of Header
        """Replace fields of the header."""
        self.write_header(replace(self.header, **changes))

    # -- requests that run

    def running(self, op: int) -> None:
        """Note that the handler of request `op` runs from now on; 0 when it waits or has ended."""
        _RUNNING.pack_into(self._map, RUNNING_AT, op, monotonic_s())

    def suspect(self) -> tuple[int, float]:
        """Return the request whose handler was running when the last process died, or 0.

        And since when it was, on the monotonic clock.
        """
        op, since_s = _RUNNING.unpack_from(self._map, RUNNING_AT)
        return int(op), float(since_s)

    @property
    def memory(self) -> mmap.mmap:
        """The whole memory; the native module writes at RUNNING_AT and CRASHED_AT itself."""
        return self._map

    def take_crash(self) -> int:
        """Return the signal that the last process brought upon itself, or 0, and forget it."""
        (number,) = _WORD.unpack_from(self._map, CRASHED_AT)
        _WORD.pack_into(self._map, CRASHED_AT, 0)
        return int(number)

    def accuse(self, op: int) -> int:
        """Count that a process died in the handler of request `op`; return how often."""
        free = None
        for slot in range(_SUSPECTS):
            at = _SUSPECTS_AT + slot * _SUSPECT_BYTES
            crc, count, known = _SUSPECT.unpack_from(self._map, at)
            if crc == _sum(self._map, at, _SUSPECT.size) and known == op:
                _put(self._map, at, _SUSPECT, count + 1, op)
                return int(count) + 1
            if free is None and crc == 0:
                free = at
        _put(self._map, _SUSPECTS_AT if free is None else free, _SUSPECT, 1, op)
        return 1

    def suspects(self) -> Iterator[tuple[int, int]]:
        """Yield the requests that servers died of, each with how often."""
        for slot in range(_SUSPECTS):
            at = _SUSPECTS_AT + slot * _SUSPECT_BYTES
            crc, count, op = _SUSPECT.unpack_from(self._map, at)
            if crc and crc == _sum(self._map, at, _SUSPECT.size):
                yield op, count

    # -- open files

    def add_file(self, record: FileRecord) -> None:
        """Remember an open handle; call it before the open is answered."""
        slot = self._file_slots[record.fh] = self._files.take()
        at = self._files.at(slot)
        _put(self._map, at, _FILE, record.flags & 0xFFFFFFFF, record.fh, record.ino, record.op)

    def remove_file(self, fh: int) -> None:
        """Forget a handle and its locks."""
        slot = self._file_slots.pop(fh, None)
        if slot is not None:
            self._files.clear(slot)

    def files(self) -> Iterator[FileRecord]:
        """Yield the handles that an earlier process left; call once, before any change."""
        for slot, at in self._files.found(_FILE.size):
            _, flags, fh, ino, op = _FILE.unpack_from(self._map, at)
            self._file_slots[fh] = slot
            yield FileRecord(fh, ino, flags, op)

    # -- owners of byte-range locks

    def add_lock(self, fh: int, owner: int) -> None:
        """Remember that `owner` may hold byte-range locks through a handle."""
        if (fh, owner) in self._lock_slots:
            return
        slot = self._lock_slots[fh, owner] = self._locks.take()
        _put(self._map, self._locks.at(slot), _LOCK, 0, fh, owner)

    def remove_lock(self, fh: int, owner: int) -> None:
        """Forget an owner."""
        slot = self._lock_slots.pop((fh, owner), None)
        if slot is not None:
            self._locks.clear(slot)

    def locks(self) -> Iterator[tuple[int, int]]:
        """Yield (handle, owner) left by an earlier process; call once, before any change."""
        for slot, at in self._locks.found(_LOCK.size):
            _, _, fh, owner = _LOCK.unpack_from(self._map, at)
            self._lock_slots[fh, owner] = slot
            yield fh, owner

    # -- pending slices

    def put_slice(self, record: SliceRecord) -> None:
        """Remember a part of a pending slice as it is now; call it before the write is answered.

        A part of a pack is void unless `put_pack` has been called for that.
        """
        if record.pack:
            high, low = divmod(record.pack, 1 << _WORD_BITS)
            record = record._replace(id=0, slots=(_NO_SLOT, record.base, high, low))
        self._put(record)

    def put_pack(self, pack: PackRecord) -> None:
        """Remember a pack as it is now."""
        slots = (_NO_SLOT, pack.slot)
        self._put(SliceRecord(_PACK | pack.seq, pack.ino, 0, 0, pack.size, pack.id, 0, slots))

    def has_pack(self, seq: int) -> bool:
        """Tell whether a pack is remembered."""
        return _PACK | seq in self._slice_slots

    def remove_pack(self, seq: int) -> None:
        """Forget a pack; its parts are void from now on, and have to be removed."""
        self.remove_slice(_PACK | seq)

    def _put(self, record: SliceRecord) -> None:
        slot = self._slice_slots.get(record.seq)
        if slot is None:
            slot = self._slice_slots[record.seq] = self._slices.take()
            self._slice_turns[record.seq] = 0
        turn = self._slice_turns[record.seq] = self._slice_turns[record.seq] + 1
        at = self._slices.at(slot) + (turn & 1) * self._slice_bytes
        count = len(record.slots)
        end = at + _SLICE.size + 4 * count
        struct.pack_into(f"<{count}i", self._map, at + _SLICE.size, *record.slots)
        head = (
            turn,
            record.seq,
            record.ino,
            record.chunk,
            record.pos,
            record.length,
            record.id,
            record.mtime_ns,
            count,
        )
        _SLICE.pack_into(self._map, at, 0, *head)
        _CRC.pack_into(self._map, at, _sum(self._map, at, end - at))

    def remove_slice(self, seq: int) -> None:
        """Forget a slice that is committed or dropped."""
        slot = self._slice_slots.pop(seq, None)
        if slot is None:
            return
        del self._slice_turns[seq]
        at = self._slices.at(slot)
        _CRC.pack_into(self._map, at, 0)
        _CRC.pack_into(self._map, at + self._slice_bytes, 0)
        self._slices.free(slot)

    def slices(self) -> list[SliceRecord]:
        """Return the slices that an earlier process left; call once, before any change.

        `drafts` are read with them.
        """
        found, packs = [], {}
        for record in self._slice_records():
            if record.seq & _DRAFT:
                draft = Draft(record.id, record.length, record.ino, record.chunk)
                self._drafts[draft.id] = draft
            elif record.seq & _PACK:
                packs[record.seq ^ _PACK] = record
            else:
                found.append(record)
        found = self._with_packs(found, packs)
        for record in found:  # it gets committed, or is a draft again
            self.remove_draft(record.id)
        return found

    def _slice_records(self) -> Iterator[SliceRecord]:
        """Yield the latest valid copy of each record in the table, and take it into use."""
        for slot in self._slices.slots():
            copies = [self._slice(self._slices.at(slot) + n * self._slice_bytes) for n in (0, 1)]
            valid = [copy for copy in copies if copy is not None]
            if valid:
                turn, record = max(valid, key=lambda copy: copy[0])
                self._slice_slots[record.seq] = self._slices.use(slot)
                self._slice_turns[record.seq] = turn
                yield record

    def _with_packs(
        self, records: list[SliceRecord], packs: dict[int, SliceRecord]
    ) -> list[SliceRecord]:
        """Return the records with what their packs say; drop void parts, and packs without any."""
        found, used = [], set()
        for record in records:
            if record.slots[:1] != (_NO_SLOT,):
                found.append(record)
                continue
            _, base, high, low = record.slots
            number = (high << _WORD_BITS) + low
            pack = packs.get(number)
            if pack is None:
                self._drop_void(record.seq)
                continue
            used.add(number)
            slots = (pack.slots[1],)
            found.append(
                SliceRecord(*record[:5], pack.id, record.mtime_ns, slots, number, base, pack.length)
            )
        for number in packs.keys() - used:
            self._drop_void(_PACK | number)
        return found

    def _drop_void(self, seq: int) -> None:
        """Clear a record that a kill has left: a later one of that number must not meet it."""
        if not self._read_only:
            self.remove_slice(seq)

    def put_draft(self, draft: Draft) -> None:
        """Remember objects that are to be deleted unless their slice gets committed."""
        seq = _DRAFT | draft.id
        self.put_slice(SliceRecord(seq, draft.ino, draft.chunk, 0, draft.size, draft.id, 0, ()))
        self._drafts[draft.id] = draft

    def remove_draft(self, slice_id: int) -> None:
        """Forget a draft whose objects are committed, or gone."""
        self.remove_slice(_DRAFT | slice_id)
        self._drafts.pop(slice_id, None)

    def drafts(self) -> list[Draft]:
        """Return all drafts; those of earlier processes once `slices` has been called."""
        return list(self._drafts.values())

    def _slice(self, at: int) -> tuple[int, SliceRecord] | None:
        crc, turn, seq, ino, chunk, pos, length, id_, mtime_ns, count = _SLICE.unpack_from(
            self._map, at
        )
        size = _SLICE.size + 4 * count
        if crc == 0 or size > self._slice_bytes or crc != _sum(self._map, at, size):
            return None
        slots = struct.unpack_from(f"<{count}i", self._map, at + _SLICE.size)
        return turn, SliceRecord(seq, ino, chunk, pos, length, id_, mtime_ns, slots)


class _Table:
    """Fixed-size records; knows which slots are free, the records' content is the owner's."""

    def __init__(self, memory: mmap.mmap, at: int, size: int, count: int) -> None:
        self._memory = memory
        self._at = at
        self._size = size
        self._count = count
        self._fresh = 0
        self._free: list[int] = []

    def at(self, slot: int) -> int:
        """Return the offset of a slot."""
        return self._at + slot * self._size

    def take(self) -> int:
        """Return a free slot, now in use.

        Raises:
            OSError: ENFILE, all are in use.
        """
        if self._free:
            return self._free.pop()
        if self._fresh == self._count:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        self._fresh += 1
        return self._fresh - 1

    def clear(self, slot: int) -> None:
        """Make a record invalid and free its slot."""
        _CRC.pack_into(self._memory, self.at(slot), 0)
        self.free(slot)

    def free(self, slot: int) -> None:
        """Free a slot."""
        self._free.append(slot)

    def use(self, slot: int) -> int:
        """Take a particular slot into use, while an earlier process's records are read."""
        self._free.extend(range(self._fresh, slot))
        self._fresh = slot + 1
        return slot

    def slots(self) -> Iterator[int]:
        """Yield all slots that were ever in use, lowest first, and perhaps some after them.

        New slots are taken in order and a freed record keeps its content but for the CRC,
        so behind the first stretch of zeros there is nothing.
        """
        slot = 0
        while slot < self._count:
            start = self.at(slot) // mmap.PAGESIZE * mmap.PAGESIZE
            stretch = self._memory[start : start + _STRETCH_BYTES]
            if not stretch.strip(b"\0"):
                return
            last = min((start + len(stretch) - self._at) // self._size + 1, self._count)
            yield from range(slot, last)
            slot = last

    def found(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield (slot, offset) of valid records of `size` bytes, and take them into use."""
        for slot in self.slots():
            at = self.at(slot)
            (crc,) = _CRC.unpack_from(self._memory, at)
            if crc and crc == _sum(self._memory, at, size):
                yield self.use(slot), at


def _size(block_size: int) -> int:
    slice_bytes = (_SLICE.size + 4 * (CHUNK_SIZE // block_size) + 63) // 64 * 64
    return _FILES_AT + _FILES * _FILE_BYTES + _LOCKS * _LOCK_BYTES + _SLICES * 2 * slice_bytes


def _sum(memory: mmap.mmap, at: int, size: int) -> int:
    """Return the CRC of a record without its first word; never 0, which means free."""
    return crc32(memory[at + 4 : at + size]) or 1


def _put(memory: mmap.mmap, at: int, form: struct.Struct, *fields: int) -> None:
    content = form.pack(0, *fields)[_CRC.size :]
    memory[at + _CRC.size : at + form.size] = content
    _CRC.pack_into(memory, at, crc32(content) or 1)


def read_header(fd: int) -> tuple[Header, int]:
    """Return the header of the state in `fd` and how often it was written; changes nothing.

    Raises:
        StateError: It is no state, damaged, or of an unknown layout.
    """
    best: tuple[int, dict[str, Any]] | None = None
    for at in (0, _HEADER_BYTES):
        head = os.pread(fd, _HEAD.size, at)
        if len(head) < _HEAD.size:
            continue
        seq, length, crc = _HEAD.unpack(head)
        text = os.pread(fd, min(length, _HEADER_BYTES), at + _HEAD.size)
        if seq and crc32(text, seq & 0xFFFFFFFF) == crc and (best is None or seq > best[0]):
            best = seq, json.loads(text)
    if best is None:
        raise StateError("has no header with a matching checksum")
    seq, fields = best
    if fields.pop("magic", "") != _MAGIC:
        raise StateError("is the state of another program")
    if (layout := fields.pop("layout", 0)) != LAYOUT:
        raise StateError(f"is of layout {layout}, this version reads {LAYOUT}")
    own = set(names(Header)) - {"more"}
    fields["init_in"] = b64decode(fields["init_in"])
    fields["init_out"] = b64decode(fields["init_out"])
    known = {name: value for name, value in fields.items() if name in own}
    more = {name: value for name, value in fields.items() if name not in own}
    return Header(**known, more=more), seq
