"""A store and metadata in memory that are slow and fail when told to, for the data path."""

from __future__ import annotations

import asyncio
import errno
import random
from dataclasses import dataclass, field

from jfsd.chunk.layout import SLICE_RECORD, decode_record
from jfsd.chunk.ports import SliceCommit
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

    async def put(self, key, body):
        before = bytes(body)
        await self._pause("put", key)
        assert bytes(body) == before, "a block changed while it was uploaded"
        assert self.objects.get(key, before) == before, "an object was rewritten differently"
        self.objects[key] = before

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

    async def read_slices(self, ino, index):
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
        return [(each.id, each.size) for each in old[skipped:] if each.id]
