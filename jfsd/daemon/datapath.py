"""The data path of one mount: arena, caches, reader, writer and compaction, joined."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from jfsd.chunk.arena import Arena
from jfsd.chunk.blocks import BlockStore
from jfsd.chunk.budget import Budget
from jfsd.chunk.cache import BlockCache, DiskCache, MemoryCache
from jfsd.chunk.compact import Compactor
from jfsd.chunk.lists import SliceLists
from jfsd.chunk.pending import Journal
from jfsd.chunk.reader import Reader
from jfsd.chunk.writer import Writer
from jfsd.config.settings import MountSettings
from jfsd.config.volume import Volume
from jfsd.daemon.memory import HeapGuard
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.client import Meta
from jfsd.object.base import ObjectStore
from jfsd.types import Attr, Ino

log = logging.getLogger(__name__)


class DataPath:
    """Everything between a file's bytes and the store, with one budget of memory.

    `on_commit` is told of each commit once it is set.
    """

    def __init__(
        self,
        meta: Meta,
        store: ObjectStore,
        volume: Volume,
        settings: MountSettings,
        *,
        arena_fd: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        """Join the parts.

        Args:
            meta: Slice lists.
            store: Objects.
            volume: The volume's setting.
            settings: The mount's.
            arena_fd: The arena of an earlier process; None for a new one.
            journal: Told every step of a slice.
        """
        self.on_commit: Callable[[Ino, Attr], None] | None = None
        self._volume = volume
        budget = Budget(settings.buffer_size_bytes)
        self.arena = Arena(budget, volume.block_size_bytes, fd=arena_fd)
        lists = SliceLists(meta)
        self.blocks = BlockStore(
            store,
            volume_name=volume.name,
            block_size=volume.block_size_bytes,
            budget=self.arena.budget,
            compression=volume.compression,
            hash_prefix=volume.hash_prefix,
            encrypted=bool(volume.encrypt_key),
            cache=_open_cache(volume, settings, self.arena.budget),
            max_downloads=settings.max_downloads,
            prefetch=settings.prefetch,
            on_churn=self._check_heap,
        )
        self._heap = HeapGuard(lambda: self.blocks.pool.used_bytes)
        self.compactor = Compactor(meta, self.blocks, lists, journal=journal)
        compacts = not settings.read_only
        self.writer = Writer(
            meta,
            self.blocks,
            self.arena,
            lists,
            max_uploads=settings.max_uploads,
            on_commit=self._committed,
            compact=self.compactor.after_commit if compacts else None,
            journal=journal,
        )
        self.reader = Reader(
            self.blocks,
            lists,
            self.writer,
            max_readahead=settings.max_readahead_bytes,
            io_retries=settings.io_retries,
            compact=self.compactor.schedule if compacts else None,
        )

    async def start(
        self, stack: AsyncExitStack, on_quiet: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Start everything; its end is pushed on `stack`.

        `on_quiet` is awaited at the end, when nothing is written any more.
        """
        stack.callback(self.arena.close)
        await self.blocks.start()
        stack.push_async_callback(self.blocks.close)
        if on_quiet is not None:
            stack.push_async_callback(on_quiet)
        stack.push_async_callback(self.compactor.close)
        self.writer.start()
        stack.push_async_callback(self.writer.close)
        stack.push_async_callback(self.reader.close)

    def set_buffer(self, size_bytes: int) -> None:
        """Change the memory for data; a smaller one takes effect as data is stored.

        Raises:
            OSError: The arena cannot be made larger; nothing was changed.
        """
        self.arena.fit(size_bytes)
        self.arena.budget.set_limit(size_bytes)
        self.blocks.budget_changed()

    async def set_cache(self, before: MountSettings, settings: MountSettings) -> None:
        """Use the cache that `settings` ask for; in the same directories it is the same one.

        Raises:
            RefusedError: No directory can be used; the former cache stays.
        """
        cache = self.blocks.cache
        if settings.cache_dirs == before.cache_dirs and settings.cache_size_bytes:
            if isinstance(cache, DiskCache):
                cache.resize(settings.cache_size_bytes, settings.free_space_ratio)
                return
            if isinstance(cache, MemoryCache):
                cache.resize(settings.cache_size_bytes)
                return
        new = _open_cache(self._volume, settings, self.arena.budget)
        if new is not None:
            await new.start()
            if isinstance(new, DiskCache) and len(new.unusable) == len(settings.cache_dirs):
                await new.close()
                raise RefusedError(
                    ExitCode.USAGE,
                    f"--cache-dir {':'.join(settings.cache_dirs)}",
                    "cannot be written to",
                    "name directories that the server's user may write to",
                )
        self.blocks.use_cache(new)

    def _check_heap(self) -> None:
        self._heap.check()

    def _committed(self, ino: Ino, attr: Attr) -> None:
        if self.on_commit is not None:
            self.on_commit(ino, attr)


def _is_on_one_disk(volume: Volume, settings: MountSettings) -> bool:
    """Tell whether a cache would hold copies of plain files beside them, on the same disk."""
    plain = volume.compression in ("", "none") and not volume.encrypt_key
    if volume.storage != "file" or not plain or settings.memory_cache:
        return False
    try:
        store = Path(volume.bucket).stat().st_dev
        caches = {_device(Path(directory)) for directory in settings.cache_dirs}
    except OSError:
        return False
    if caches == {store}:
        log.info("no cache on disk: it would be on the same one as bucket %s", volume.bucket)
    return caches == {store}


def _device(path: Path) -> int:
    """Return the device of a directory that may not have been made yet."""
    return next(each for each in (path, *path.parents) if each.exists()).stat().st_dev


def _open_cache(volume: Volume, settings: MountSettings, budget: Budget) -> BlockCache | None:
    if settings.cache_size_bytes == 0 or _is_on_one_disk(volume, settings):
        return None
    if settings.memory_cache:
        return MemoryCache(settings.cache_size_bytes)
    return DiskCache(
        settings.cache_dirs,
        volume.uuid,
        size_bytes=settings.cache_size_bytes,
        free_space_ratio=settings.free_space_ratio,
        budget=budget,
    )
