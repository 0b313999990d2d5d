"""Caches of blocks on local disks or in memory (format.md Appendix B).

A cache never fails a read or a write: what it cannot give is a miss.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from zlib import crc32

from jfsd import clock
from jfsd.chunk.budget import Budget
from jfsd.chunk.cache_file import CachedBlock, DamagedFileError, write_block
from jfsd.chunk.layout import path_length
from jfsd.types import ReadableBuffer

log = logging.getLogger(__name__)

_MAX_OPEN = 64
_GATHER_S = 0.05
_OPENED_NOW_BYTES = 1 << 17
_MAX_QUEUED_BYTES = 32 << 20
_MAX_ITEMS = 200_000
_RETRY_AFTER_S = 60.0
_FREE_CHECK_S = 1.0
_RESCAN_S = 3600.0
_STALE_TMP_S = 600.0
_LOW_PERCENT = 95


class BlockCache(Protocol):
    """Blocks by path (`layout.block_path`), plaintext."""

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that are known to be there."""

    async def start(self) -> None:
        """Begin to know what is there; nothing waits for the end of it."""

    async def close(self) -> None:
        """Finish what is being written."""

    def get_now(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return bytes of a block if they can be had without waiting."""

    async def get(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return bytes of a block, None if they are not there or damaged."""

    def put(self, path: str, block: ReadableBuffer) -> None:
        """Keep a block that nobody will change; done in the background, or not at all."""

    def remove(self, path: str) -> None:
        """Forget a block."""


class MemoryCache:
    """Blocks in memory, least recently used dropped first."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self._blocks: OrderedDict[str, ReadableBuffer] = OrderedDict()

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Drop all blocks."""
        self._blocks.clear()
        self.used_bytes = 0

    def get_now(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return bytes of a block."""
        block = self._blocks.get(path)
        if block is None:
            return None
        self._blocks.move_to_end(path)
        return memoryview(block)[off : off + length]

    async def get(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return bytes of a block."""
        return self.get_now(path, off, length)

    def resize(self, size_bytes: int) -> None:
        """Change the size; blocks beyond a smaller one are dropped."""
        self.size_bytes = size_bytes
        self._shrink()

    def put(self, path: str, block: ReadableBuffer) -> None:
        """Keep a block, unless it is larger than the cache."""
        self.remove(path)
        if len(block) > self.size_bytes:
            return
        self._blocks[path] = block
        self.used_bytes += len(block)
        self._shrink()

    def _shrink(self) -> None:
        while self.used_bytes > self.size_bytes:
            _, dropped = self._blocks.popitem(last=False)
            self.used_bytes -= len(dropped)

    def remove(self, path: str) -> None:
        """Forget a block."""
        block = self._blocks.pop(path, None)
        if block is not None:
            self.used_bytes -= len(block)


class _Directory:
    """One cache directory of a volume: files, their sizes, and when to drop which.

    All methods but `has_room` are called in threads and may block. The index holds what
    this process knows: other processes may add and remove files at any time.
    """

    def __init__(self, root: Path, size_bytes: int, free_ratio: float, *, checksum: bool) -> None:
        self.raw = root / "raw"
        self.identity = ""
        self.root = root
        self._size_bytes = size_bytes
        self._free_ratio = free_ratio
        self._checksum = checksum
        self._lock = threading.Lock()
        self._index: OrderedDict[str, int] = OrderedDict()
        self._used = 0
        self._down_until_s = 0.0
        self._free_checked_s = 0.0
        self._spare_bytes = 0

    @property
    def up(self) -> bool:
        """False for a while after the disk has failed."""
        return clock.monotonic_s() >= self._down_until_s

    @property
    def used_bytes(self) -> int:
        """Bytes of the files known."""
        return self._used

    def prepare(self) -> None:
        """Create the directory and read or make its identity."""
        try:
            self.raw.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.root / ".lock"
            with contextlib.suppress(FileExistsError), lock.open("x", encoding="ascii") as file:
                from uuid import uuid4  # noqa: PLC0415 - once in the life of a directory

                file.write(str(uuid4()))
            self.identity = lock.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            self.identity = str(self.root)
            self.fail(error)

    def scan(self) -> None:
        """Learn which blocks are there; remove what an interrupted write has left."""
        found: list[tuple[float, str, int]] = []
        prefix = len(str(self.raw)) + 1
        stale = clock.now_ns() / 1e9 - _STALE_TMP_S
        for folder, _, names in os.walk(self.raw):
            for name in names:
                path = f"{folder}/{name}"
                try:
                    stat = os.stat(path)  # noqa: PTH116 - a Path for each file is slow
                    if name.endswith(".tmp"):
                        if stat.st_mtime < stale:
                            os.unlink(path)  # noqa: PTH108
                        continue
                    path_length(name)
                except (OSError, ValueError):
                    continue
                found.append((stat.st_atime, path[prefix:], stat.st_size))
        found.sort()
        with self._lock:
            recent = self._index
            self._index = OrderedDict((path, size) for _, path, size in found)
            for path, size in recent.items():
                self._index[path] = size
                self._index.move_to_end(path)
            self._used = sum(self._index.values())
        self._shrink()

    def open(self, path: str) -> CachedBlock | None:
        """Return the open file of a block; a damaged one is removed."""
        try:
            return CachedBlock(f"{self.raw}/{path}", path_length(path), checksum=self._checksum)
        except (FileNotFoundError, NotADirectoryError):
            self.forget(path)
        except DamagedFileError:
            self.delete(path)
        except OSError as error:
            self.fail(error)
        return None

    def open_now(self, path: str) -> CachedBlock:
        """Return the open file of a block without waiting for the disk.

        Raises:
            OSError: BlockingIOError, it takes a wait; FileNotFoundError.
            DamagedFileError: It is of no use.
        """
        if not self.up:
            raise FileNotFoundError
        checksum = self._checksum
        return CachedBlock(f"{self.raw}/{path}", path_length(path), checksum=checksum, wait=False)

    def store(self, path: str, block: ReadableBuffer) -> None:
        """Write a block, then drop others if there are too many."""
        if not self.up or not self._has_space(len(block)):
            return
        try:
            size = write_block(f"{self.raw}/{path}", block, checksum=self._checksum)
        except OSError as error:
            self.fail(error)
            return
        with self._lock:
            self._used += size - self._index.pop(path, 0)
            self._index[path] = size
        self._shrink()

    def resize(self, size_bytes: int, free_ratio: float) -> None:
        """Go by another size, at once."""
        self._size_bytes, self._free_ratio = size_bytes, free_ratio
        self._free_checked_s = 0.0
        self._shrink(max(0, -self._spare()))

    def used(self, path: str) -> None:
        """Note that a block was read."""
        with self._lock:
            if path in self._index:
                self._index.move_to_end(path)

    def forget(self, path: str) -> None:
        """Note that a file is not there."""
        with self._lock:
            self._used -= self._index.pop(path, 0)

    def delete(self, path: str) -> None:
        """Remove a file."""
        self.forget(path)
        with contextlib.suppress(OSError):
            (self.raw / path).unlink()

    def fail(self, error: Exception) -> None:
        """Leave the disk alone for a while."""
        if self.up:
            log.warning("cache %s is not used for a while: %s", self.root, error)
        self._down_until_s = clock.monotonic_s() + _RETRY_AFTER_S

    def _has_space(self, size: int) -> bool:
        """Return whether `size` bytes more leave the free space that is wanted."""
        now_s = clock.monotonic_s()
        if size > self._spare_bytes or now_s - self._free_checked_s >= _FREE_CHECK_S:
            self._free_checked_s = now_s
            self._spare_bytes = self._spare()
            if size > self._spare_bytes:
                self._shrink(size - self._spare_bytes)
                self._spare_bytes = self._spare()
        if size > self._spare_bytes:
            return False
        self._spare_bytes -= size
        return True

    def _spare(self) -> int:
        """Return how many bytes are free above what is wanted; negative if they are missing."""
        try:
            fs = os.statvfs(self.raw)
        except OSError:
            return self._size_bytes
        return int(fs.f_bavail - fs.f_blocks * self._free_ratio) * fs.f_frsize

    def _shrink(self, excess: int = 0) -> None:
        """Remove blocks not read for long until size and number are as wanted."""
        goal = self._used - excess
        if self._used > self._size_bytes:
            goal = min(goal, self._size_bytes * _LOW_PERCENT // 100)
        left = len(self._index)
        while left and (self._used > goal or len(self._index) > _MAX_ITEMS):
            left -= 1
            with self._lock:
                if not self._index:
                    return
                path, size = self._index.popitem(last=False)
                self._used -= size
            if not self._evict(path):
                with self._lock:
                    self._index[path] = size
                    self._used += size

    def _evict(self, path: str) -> bool:
        """Remove a file unless another client has not uploaded it yet (link count above 1)."""
        target = self.raw / path
        try:
            if target.stat().st_nlink > 1:
                return False
            target.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.fail(error)
        return True


class DiskCache:
    """Blocks in files below `<directory>/<volume uuid>/raw`, shared with other processes.

    Reads of pages that are in memory are done in the event loop, all others in threads.
    Blocks wait for their writing in a queue of bounded size, whose memory is lent by the
    budget; what does not fit is not cached. After an error a directory is left alone for
    a minute.
    """

    def __init__(
        self,
        directories: Sequence[str | Path],
        volume_uuid: str,
        *,
        size_bytes: int,
        free_space_ratio: float = 0.1,
        checksum: bool = True,
        budget: Budget | None = None,
    ) -> None:
        """Use `directories`, which share `size_bytes`; nothing is touched before `start`."""
        self._budget = budget
        share = size_bytes // len(directories)
        self._directories = [
            _Directory(Path(each) / volume_uuid, share, free_space_ratio, checksum=checksum)
            for each in directories
        ]
        self._readers = ThreadPoolExecutor(4, "cache-read")
        self._worker = ThreadPoolExecutor(1, "cache-write")
        self._open: OrderedDict[str, CachedBlock] = OrderedDict()
        self._queue: dict[str, ReadableBuffer] = {}
        self._fresh: list[tuple[str, ReadableBuffer]] = []
        self._queued_bytes = 0
        self._scans: asyncio.Task[None] | None = None
        self._nowait = True

    @property
    def used_bytes(self) -> int:
        """Bytes of the files known; grows while the first scan runs."""
        return sum(directory.used_bytes for directory in self._directories)

    @property
    def unusable(self) -> list[str]:
        """Directories that have failed lately."""
        return [str(each.root) for each in self._directories if not each.up]

    def resize(self, size_bytes: int, free_space_ratio: float) -> None:
        """Change the size of all directories together; files are removed in the background."""
        share = size_bytes // len(self._directories)
        for directory in self._directories:
            self._worker.submit(directory.resize, share, free_space_ratio)

    async def start(self) -> None:
        """Create the directories; what is in them is learnt in the background."""
        loop = asyncio.get_running_loop()
        for directory in self._directories:
            await loop.run_in_executor(self._worker, directory.prepare)
        self._scans = loop.create_task(self._scan(), name="cache-scan")

    async def close(self) -> None:
        """Write what is queued and end the threads; the files stay."""
        if self._scans is not None:
            self._scans.cancel()
            await asyncio.wait([self._scans])
        self._write_queue()
        await asyncio.to_thread(self._worker.shutdown)
        await asyncio.to_thread(self._readers.shutdown)
        self._open.clear()

    def get_now(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return bytes of a block that waits to be written, or whose file is in memory."""
        queued = self._queue.get(path)
        if queued is not None:
            return memoryview(queued)[off : off + length]
        block = self._open.get(path)
        if not self._nowait or (block is None and length > _OPENED_NOW_BYTES):
            return None
        try:
            if block is None:
                block = self._directory(path).open_now(path)
            data = block.read(off, length, wait=False)
            self._keep_open(path, block, length)
        except (BlockingIOError, FileNotFoundError, NotADirectoryError):
            return None
        except DamagedFileError:
            self.remove(path)
            return None
        except OSError:
            self._nowait = False
            return None
        return data

    async def get(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return bytes of a block, read in a thread; a part of a block leaves its file open."""
        directory = self._directory(path)
        if not directory.up:
            return None
        opened = self._open.get(path)
        block, data = await asyncio.get_running_loop().run_in_executor(
            self._readers, self._read, directory, opened, path, off, length
        )
        if block is not None:
            self._keep_open(path, block, length)
        else:
            self._open.pop(path, None)
        return data

    def _keep_open(self, path: str, block: CachedBlock, length: int) -> None:
        """Keep the file of a block open if only a part of it was read."""
        if length < block.length or path in self._open:
            self._open[path] = block
            self._open.move_to_end(path)
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)

    def put(self, path: str, block: ReadableBuffer) -> None:
        """Queue a block for writing, unless the disk is down or does not keep up."""
        directory = self._directory(path)
        size = len(block)
        if not directory.up or (
            self._queued_bytes and self._queued_bytes + size > _MAX_QUEUED_BYTES
        ):
            return
        if self._budget is not None:
            if not self._budget.borrow(size):
                return
            self._budget.pin(size)
        self._queued_bytes += size
        self._queue[path] = block
        if not self._fresh:
            # A little later: programs wait for what comes next, nobody for this.
            asyncio.get_running_loop().call_later(_GATHER_S, self._write_queue)
        self._fresh.append((path, block))

    def _write_queue(self) -> None:
        """Let the thread write what is queued; until then blocks are read from the queue."""
        batch, self._fresh = self._fresh, []
        if batch:
            future = asyncio.get_running_loop().run_in_executor(self._worker, self._store, batch)
            future.add_done_callback(lambda _: self._stored(batch))

    def _store(self, batch: list[tuple[str, ReadableBuffer]]) -> None:
        for path, block in batch:
            if self._queue.get(path) is block:
                self._directory(path).store(path, block)

    def remove(self, path: str) -> None:
        """Forget a block and delete its file in the background."""
        self._open.pop(path, None)
        self._queue.pop(path, None)
        self._worker.submit(self._directory(path).delete, path)

    @staticmethod
    def _read(
        directory: _Directory, block: CachedBlock | None, path: str, off: int, length: int
    ) -> tuple[CachedBlock | None, ReadableBuffer | None]:
        if block is None:
            block = directory.open(path)
        if block is None:
            return None, None
        try:
            data = block.read(off, length)
        except DamagedFileError:
            directory.delete(path)
            return None, None
        except OSError as error:
            directory.fail(error)
            return None, None
        directory.used(path)
        return block, data

    def _stored(self, batch: list[tuple[str, ReadableBuffer]]) -> None:
        for path, block in batch:
            if self._queue.get(path) is block:
                del self._queue[path]
        size = sum(len(block) for _, block in batch)
        self._queued_bytes -= size
        if self._budget is not None:
            self._budget.repay(size)
            self._budget.pin(-size)

    def _directory(self, path: str) -> _Directory:
        """Return where a block belongs: the same directory whatever the others are."""
        if len(self._directories) == 1:
            return self._directories[0]
        return max(self._directories, key=lambda each: crc32(f"{each.identity}/{path}".encode()))

    async def _scan(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for directory in self._directories:
                await loop.run_in_executor(self._readers, directory.scan)
            await asyncio.sleep(_RESCAN_S)
