"""A store and metadata in memory that are slow and fail when told to, for the data path."""

from __future__ import annotations

import asyncio
import errno
import random
from dataclasses import dataclass, field

from jfsd.chunk.arena import Arena
from jfsd.chunk.blocks import BlockStore
from jfsd.chunk.budget import Budget
from jfsd.chunk.compact import Compactor
from jfsd.chunk.layout import SLICE_RECORD, block_count, block_key, block_length, decode_record
from jfsd.chunk.lists import SliceLists
from jfsd.chunk.ports import PackCommit, SliceCommit
from jfsd.chunk.reader import Reader
from jfsd.chunk.writer import Writer
from jfsd.object.base import ObjectInfo, ObjectMissingError, StoreError
from jfsd.types import CHUNK_SIZE, Attr, NodeType, Slice


@dataclass
class FakeStore:
    """Objects in a dict; `delay` bounds random pauses, `fail` the share of failing calls."""

    delay: float = 0.0
    fail: float = 0.0
    down: bool = False
    seed: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    loose: set[str] = field(default_factory=set)
    """Objects that a power cut would take."""
    running: int = 0
    most: int = 0
    gate: asyncio.Event | None = None

    def __post_init__(self):
        self._random = random.Random(self.seed)

    async def _pause(self, call, key):
        self.calls.append((call, key))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.delay:
                await asyncio.sleep(self._random.random() * self.delay)
            if self.down or self._random.random() < self.fail:
                raise StoreError("down")
        finally:
            self.running -= 1

    async def check(self):
        await self._pause("check", "")

    async def get(self, key, offset=0, length=None):
        await self._pause("get" if length is None else "range", key)
        if key not in self.objects:
            raise ObjectMissingError(key)
        end = None if length is None else offset + length
        return self.objects[key][offset:end]

    async def put(self, key, body, *, durable=True):
        before = bytes(body)
        await self._pause("put", key)
        assert bytes(body) == before, "a block changed while it was uploaded"
        assert self.objects.get(key, before) == before, "an object was rewritten differently"
        self.objects[key] = before
        if durable:
            self.loose.discard(key)
        else:
            self.loose.add(key)

    async def settle(self, keys):
        if keys is not None:
            await self._pause("settle", "")
        self.loose -= set(self.loose if keys is None else keys)

    async def delete(self, key):
        await self._pause("delete", key)
        self.objects.pop(key, None)

    async def head(self, key):
        return ObjectInfo(key, len(self.objects[key]), 0)

    async def list(self, prefix, start_after=""):
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after:
                yield ObjectInfo(key, len(self.objects[key]), 0)

    async def close(self):
        pass


@dataclass
class FakeMeta:
    """Slice lists in a dict, each call atomic; commits are checked against the store."""

    delay: float = 0.0
    fail: float = 0.0
    lose: float = 0.0
    """Share of commits that are done and whose answer is lost."""
    down: bool = False
    seed: int = 0
    capacity: int = 1 << 60
    lists: dict[tuple[int, int], list[Slice]] = field(default_factory=dict)
    attrs: dict[int, Attr] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    done: dict[int, SliceCommit] = field(default_factory=dict)
    commits: list[tuple[int, int, Slice, int]] = field(default_factory=list)
    refs: dict[int, int] = field(default_factory=dict)
    """References to slices that have, or had, several."""
    packs: int = 0
    """How many commits were those of packs."""
    reads: int = 0
    next_id: int = 1
    before_commit: object = None

    def __post_init__(self):
        self._random = random.Random(self.seed)

    async def _pause(self):
        if self.delay:
            await asyncio.sleep(self._random.random() * self.delay)
        if self.down or self._random.random() < self.fail:
            raise ConnectionError("redis is away")

    def attr(self, ino):
        return self.attrs.setdefault(ino, Attr(NodeType.FILE, 0o644))

    async def new_slice_id(self):
        await self._pause()
        self.next_id += 1
        return self.next_id - 1

    async def read_slices(self, ino, index, *, known=False):
        self.reads += 1
        await self._pause()
        found = list(self.lists.get((ino, index), ()))
        if self.delay:
            await asyncio.sleep(self._random.random() * self.delay)
        return found

    async def commit_slice(self, ino, index, record, mtime_ns):
        await self._pause()
        if record.id in self.done:
            return self.done[record.id]
        if self.before_commit is not None:
            self.before_commit(record)
        if ino in self.gone:
            raise OSError(errno.ENOENT, "gone")
        attr = self.attr(ino)
        length = max(attr.length, index * CHUNK_SIZE + record.pos + record.len)
        if length > self.capacity:
            raise OSError(errno.ENOSPC, "full")
        attr.length = length
        attr.mtime_ns = mtime_ns
        chunk = self.lists.setdefault((ino, index), [])
        chunk.append(record)
        self.commits.append((ino, index, record, mtime_ns))
        result = SliceCommit(len(chunk), Attr(NodeType.FILE, 0o644, length=length))
        self.done[record.id] = result
        if self._random.random() < self.lose:
            raise ConnectionError("answer lost")
        if self.delay:
            await asyncio.sleep(self._random.random() * self.delay)
        return result

    async def commit_pack(self, ino, records, mtime_ns):
        await self._pause()
        slice_id = records[0][1].id
        if slice_id in self.done:
            return self.done[slice_id]
        if self.before_commit is not None:
            self.before_commit(records[0][1])
        if ino in self.gone:
            raise OSError(errno.ENOENT, "gone")
        attr = self.attr(ino)
        taken, refused, least = [], set(), None
        length = attr.length
        for index, record in records:
            end = index * CHUNK_SIZE + record.pos + record.len
            if end > length and (end > self.capacity or (least is not None and end >= least)):
                least = end if least is None else min(least, end)
                refused.add(record.off)
            else:
                taken.append((index, record))
                length = max(length, end)
        if not taken:
            raise OSError(errno.ENOSPC, "full")
        attr.length, attr.mtime_ns = length, mtime_ns
        for index, record in taken:
            self.lists.setdefault((ino, index), []).append(record)
        lengths = {index: len(self.lists[ino, index]) for index, _ in taken}
        result = PackCommit(
            lengths,
            Attr(NodeType.FILE, 0o644, length=length),
            frozenset(refused),
            errno.ENOSPC if refused else 0,
        )
        self.refs[slice_id] = len(taken)
        self.commits.append((ino, *taken[0], mtime_ns))
        self.packs += 1
        self.done[slice_id] = result
        if self._random.random() < self.lose:
            raise ConnectionError("answer lost")
        if self.delay:
            await asyncio.sleep(self._random.random() * self.delay)
        return result

    async def begin_compaction(self, ino, index):
        await self._pause()
        return [SLICE_RECORD.pack(*r) for r in self.lists.get((ino, index), ())][:1000]

    async def commit_compaction(self, ino, index, origin, skipped, record):
        await self._pause()
        chunk = self.lists.get((ino, index), [])
        old = [decode_record(raw) for raw in origin]
        if chunk[: len(old)] != old:
            return None
        self.lists[ino, index] = [*old[:skipped], record, *chunk[len(old) :]]
        freed = []
        for each in old[skipped:]:
            if each.id:
                self.refs[each.id] = self.refs.get(each.id, 1) - 1
                if not self.refs[each.id]:
                    freed.append((each.id, each.size))
        return freed


class Stack:
    """The whole data path over a store and metadata of one's choice."""

    def __init__(
        self,
        *,
        store=None,
        meta=None,
        block_size=4096,
        limit=1 << 20,
        cache=None,
        arena_fd=None,
        max_uploads=4,
        stall_timeout_s=10.0,
        retry_s=1.0,
        journal=None,
        compacting=False,
        max_readahead=1 << 16,
        io_retries=3,
        slots=1024,
        **blocks,
    ):
        self.store = store or FakeStore()
        self.meta = meta or FakeMeta()
        self.budget = Budget(limit)
        self.arena = Arena(self.budget, block_size, fd=arena_fd, slots=slots)
        self.blocks = BlockStore(
            self.store,
            volume_name="vol",
            block_size=block_size,
            budget=self.budget,
            cache=cache,
            **blocks,
        )
        self.lists = SliceLists(self.meta)
        self.compactor = Compactor(self.meta, self.blocks, self.lists)
        self.commits = []
        self.writer = Writer(
            self.meta,
            self.blocks,
            self.arena,
            self.lists,
            max_uploads=max_uploads,
            stall_timeout_s=stall_timeout_s,
            retry_s=retry_s,
            on_commit=lambda ino, attr: self.commits.append((ino, attr.length)),
            compact=self.compactor.after_commit if compacting else None,
            journal=journal,
        )
        self.reader = Reader(
            self.blocks,
            self.lists,
            self.writer,
            max_readahead=max_readahead,
            io_retries=io_retries,
            compact=self.compactor.schedule if compacting else None,
        )

    async def __aenter__(self):
        await self.blocks.start()
        self.writer.start()
        return self

    async def __aexit__(self, *exc):
        await self.reader.close()
        await self.writer.close()
        await self.compactor.close()
        await self.blocks.close()
        self.arena.close()

    def length(self, ino):
        return max(self.meta.attr(ino).length, self.writer.dirty_length(ino))

    async def read(self, ino, off, size, fh=1):
        return bytes(await self.reader.read(ino, fh, off, size, self.length(ino)))

    def stored(self, ino, start, length):
        """A window of the file as another client sees it: from lists and objects only."""
        out = bytearray(length)
        for (each, index), records in self.meta.lists.items():
            if each != ino:
                continue
            for record in records:
                body = self.body(record.id, record.size) if record.id else bytes(record.len)
                base = index * CHUNK_SIZE + record.pos - start
                left, right = max(0, -base), min(record.len, length - base)
                if left < right:
                    off = record.off + left
                    out[base + left : base + right] = body[off : off + right - left]
        return bytes(out)

    def body(self, slice_id, size):
        step = self.blocks.block_size
        return b"".join(
            self.store.objects[block_key("vol", False, slice_id, j, block_length(size, j, step))]
            for j in range(block_count(size, step))
        )

    def idle(self):
        """Nothing is charged, pending or running."""
        return (
            self.budget.charged == 0
            and self.arena.used_slots == 0
            and not self.writer._files
            and len(self.writer._slicer) == 0
            and self.writer._uploader.bytes == 0
        )
