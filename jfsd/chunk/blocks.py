"""Blocks of slices: from the store, through codec and caches, and back (format.md §12)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from jfsd.chunk.budget import Budget
from jfsd.chunk.cache import BlockCache
from jfsd.chunk.compress import DamagedDataError, open_codec
from jfsd.chunk.layout import block_count, block_length, block_path
from jfsd.chunk.pool import BlockPool
from jfsd.chunk.tasks import TaskSet
from jfsd.metrics import CACHE
from jfsd.object.base import ObjectDamagedError, ObjectStore
from jfsd.types import ReadableBuffer

MAX_BLOCKS = 1024
"""No slice has more blocks (format.md §20)."""

_INLINE_BYTES = 16384
_SMALL_BYTES = 1 << 18
_MAX_DELETES = 10
_MAX_UNRESERVED = 2
_CHURN_BYTES = 16 << 20
_PART = 4


class DamagedBlockError(ObjectDamagedError):
    """An object does not hold the block that its key promises."""


class BlockStore:
    """Reads and writes the blocks of one volume; every method may be called concurrently.

    Requests for one block share one fetch, which outlives those who asked for it. At most
    `max_downloads` fetches run at once, and only as many whole blocks as memory allows: those
    that found no room in the pool go two at a time.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        volume_name: str,
        block_size: int,
        budget: Budget,
        compression: str = "none",
        hash_prefix: bool = False,
        encrypted: bool = False,
        cache: BlockCache | None = None,
        max_downloads: int = 200,
        prefetch: int = 1,
        on_churn: Callable[[], None] | None = None,
    ) -> None:
        """Make a block store; `cache` is started and closed with it, `store` is not.

        Args:
            store: Where the objects are; encryption happens below it.
            volume_name: First part of every key.
            block_size: Bytes of a full block.
            budget: Memory shared with the write buffer.
            compression: Name of the codec.
            hash_prefix: Which form the keys have.
            encrypted: Parts of objects cannot be fetched.
            cache: Local copies, or None.
            max_downloads: Requests to the store at once.
            prefetch: Whole blocks fetched at once for random reads; 0 for none.
            on_churn: Called each time that some MiB of blocks have come and gone.
        """
        self.block_size = block_size
        self.pool = BlockPool(budget)
        self.pool.on_freed = self._churned
        self.prefetch_limit = prefetch
        self._store = store
        self._prefix = f"{volume_name}/"
        self._codec = open_codec(compression)
        self._hash_prefix = hash_prefix
        self._ranged = self._codec.identity and not encrypted
        self._cache = cache
        self._flights: dict[int, asyncio.Future[ReadableBuffer]] = {}
        self._tasks = TaskSet("fetch")
        self._downloads = asyncio.Semaphore(max_downloads)
        self._budget = budget
        self._memory = asyncio.Semaphore(_whole_blocks(budget.limit, block_size))
        self._unreserved = asyncio.Semaphore(_MAX_UNRESERVED)
        self._deletes = asyncio.Semaphore(_MAX_DELETES)
        self._prefetching = 0
        self._on_churn = on_churn
        self._churn_bytes = 0
        self._threads = ThreadPoolExecutor(2, "codec")

    async def start(self) -> None:
        """Start the cache."""
        if self._cache is not None:
            await self._cache.start()

    async def close(self) -> None:
        """End all fetches and close the cache."""
        await self._tasks.close()
        self._threads.shutdown()
        if self._cache is not None:
            await self._cache.close()

    @property
    def cached_bytes(self) -> int:
        """Bytes of the local copies."""
        return self._cache.used_bytes if self._cache is not None else 0

    def set_max_downloads(self, count: int) -> None:
        """Change how many fetches run at once; those that wait already keep their turn."""
        self._downloads = asyncio.Semaphore(count)

    def budget_changed(self) -> None:
        """Go by the limit that the budget has now."""
        self._memory = asyncio.Semaphore(_whole_blocks(self._budget.limit, self.block_size))

    @property
    def cache(self) -> BlockCache | None:
        """The local copies."""
        return self._cache

    def use_cache(self, cache: BlockCache | None) -> None:
        """Use a cache, which was started; the one of now is closed in the background."""
        former, self._cache = self._cache, cache
        if former is not None:
            self._tasks.start(former.close())

    # -- reading

    def peek(
        self, slice_id: int, size: int, index: int, off: int, length: int
    ) -> ReadableBuffer | None:
        """Return bytes of a block if they can be had without waiting."""
        block = self.pool.get(slice_id * MAX_BLOCKS + index)
        if block is not None:
            return memoryview(block)[off : off + length]
        if self._cache is None:
            return None
        data = self._cache.get_now(self._path(slice_id, size, index), off, length)
        if data is not None:
            CACHE.hit(length)
        return data

    async def read(
        self,
        slice_id: int,
        size: int,
        index: int,
        off: int,
        length: int,
        *,
        whole: bool = False,
        once: bool = False,
    ) -> ReadableBuffer:
        """Return `length` bytes of block `index` of a slice of `size` bytes.

        Args:
            slice_id: The slice.
            size: Its original size, which names its objects.
            index: The block.
            off: First byte in the block.
            length: Bytes wanted; must lie inside the block.
            whole: More of the block will be wanted soon.
            once: Nothing else of the block will be wanted.

        Raises:
            ObjectMissingError: There is no such object.
            DamagedBlockError: It is too short or cannot be decoded.
            StoreError: The store failed.
        """
        flight = self._flights.get(slice_id * MAX_BLOCKS + index)
        if flight is None and not whole:
            full = block_length(size, index, self.block_size)
            if length * _PART <= full:
                path = self._path(slice_id, size, index)
                data = await self._part(path, off, length)
                if data is not None:
                    if self.prefetch_limit and self._cache is not None and not once:
                        self._prefetch_random(slice_id, size, index)
                    return data
        data = self.peek(slice_id, size, index, off, length)
        if data is not None:
            return data
        block = await asyncio.shield(self._fetch(slice_id, size, index))
        return memoryview(block)[off : off + length]

    def prefetch(self, slice_id: int, size: int, index: int) -> bool:
        """Begin to bring a block into memory; False if there is no room for it."""
        key = slice_id * MAX_BLOCKS + index
        if key in self.pool or key in self._flights:
            return True
        length = block_length(size, index, self.block_size)
        if not self.pool.reserve(length):
            return False
        self._fly(slice_id, size, index, reserved=True)
        return True

    async def _part(self, path: str, off: int, length: int) -> ReadableBuffer | None:
        """Return a part of a block from cache or store; None if the block is to be read whole."""
        if self._cache is not None:
            data = await self._cache.get(path, off, length)
            if data is not None:
                CACHE.hit(length)
                return data
        if not self._ranged or (off == 0 and self._cache is not None):
            return None
        CACHE.miss(length)
        async with self._downloads:
            part = await self._store.get(self._prefix + path, off, length)
        if len(part) != length:
            raise DamagedBlockError(f"{path}: object ends before byte {off + length}")
        return part

    def _prefetch_random(self, slice_id: int, size: int, index: int) -> None:
        if self._prefetching >= self.prefetch_limit:
            return
        length = block_length(size, index, self.block_size)
        key = slice_id * MAX_BLOCKS + index
        if key in self.pool or key in self._flights or not self.pool.reserve(length):
            return
        self._prefetching += 1
        self._fly(slice_id, size, index, reserved=True).add_done_callback(self._prefetched)

    def _prefetched(self, _: asyncio.Future[ReadableBuffer]) -> None:
        self._prefetching -= 1

    def _fetch(self, slice_id: int, size: int, index: int) -> asyncio.Future[ReadableBuffer]:
        flight = self._flights.get(slice_id * MAX_BLOCKS + index)
        if flight is not None:
            return flight
        reserved = self.pool.reserve(block_length(size, index, self.block_size))
        return self._fly(slice_id, size, index, reserved=reserved)

    def _fly(
        self, slice_id: int, size: int, index: int, *, reserved: bool
    ) -> asyncio.Future[ReadableBuffer]:
        key = slice_id * MAX_BLOCKS + index
        future: asyncio.Future[ReadableBuffer] = asyncio.get_running_loop().create_future()
        self._flights[key] = future
        self._tasks.start(self._land(future, slice_id, size, index, reserved=reserved))
        return future

    async def _land(
        self,
        future: asyncio.Future[ReadableBuffer],
        slice_id: int,
        size: int,
        index: int,
        *,
        reserved: bool,
    ) -> None:
        """Fetch a block, keep it in the room reserved for it, and tell who waits."""
        key = slice_id * MAX_BLOCKS + index
        block: ReadableBuffer | None = None
        try:
            if block_length(size, index, self.block_size) > _SMALL_BYTES:
                async with self._memory if reserved else self._unreserved:
                    block = await self._load(slice_id, size, index)
            else:
                block = await self._load(slice_id, size, index)
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            if not future.done():
                future.set_exception(error)
                future.exception()
        finally:
            self._flights.pop(key, None)
            if reserved:
                self.pool.fill(key, block_length(size, index, self.block_size), block)
            if block is None:
                future.cancel()
            elif not future.done():
                future.set_result(block)

    async def _load(self, slice_id: int, size: int, index: int) -> ReadableBuffer:
        length = block_length(size, index, self.block_size)
        path = self._path(slice_id, size, index)
        if self._cache is not None:
            cached = await self._cache.get(path, 0, length)
            if cached is not None:
                CACHE.hit(length)
                return cached
        CACHE.miss(length)
        async with self._downloads:
            stored = await self._store.get(self._prefix + path)
        block = await self._decode(path, stored, length)
        if self._cache is not None:
            CACHE.write(length)
            self._cache.put(path, block)
        return block

    async def _decode(self, path: str, stored: bytes, length: int) -> ReadableBuffer:
        try:
            if self._codec.identity or length <= _INLINE_BYTES:
                return self._codec.decode(stored, length)
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._codec.decode, stored, length
            )
        except DamagedDataError as error:
            raise DamagedBlockError(f"{path}: {error}") from error

    # -- writing

    async def write(
        self, slice_id: int, index: int, block: ReadableBuffer, *, durable: bool = True
    ) -> None:
        """Return when the block is stored; a block that is not full is cached too.

        If not `durable`, a power cut before `settle` may lose it. Repeating it is harmless.
        `block` must not change before this returns.

        Raises:
            StoreError: The store failed; the object is whole or not there.
        """
        path = block_path(self._hash_prefix, slice_id, index, len(block))
        body = block
        if not self._codec.identity:
            if len(block) <= _INLINE_BYTES:
                body = self._codec.encode(block)
            else:
                body = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._codec.encode, block
                )
        await self._store.put(self._prefix + path, body, durable=durable)
        if self._cache is not None and len(block) < self.block_size:
            CACHE.write(len(block))
            self._cache.put(path, bytes(block))
        self._churned(len(block))

    async def settle(self, slices: Iterable[tuple[int, int]] | None) -> None:
        """Return when all blocks of slices (id, size) are durable; None: of all slices.

        Raises:
            StoreError: Some may not be.
        """
        keys = None
        if slices is not None:
            keys = [
                self._prefix + self._path(slice_id, size, index)
                for slice_id, size in slices
                for index in range(block_count(size, self.block_size))
            ]
        await self._store.settle(keys)

    async def delete_slice(self, slice_id: int, size: int) -> None:
        """Remove all objects of a slice and their copies; missing ones are no error.

        Raises:
            StoreError: Some may be left; repeat it.
        """
        if not slice_id:
            return
        await asyncio.gather(
            *(
                self._delete(slice_id, size, index)
                for index in range(block_count(size, self.block_size))
            )
        )

    async def _delete(self, slice_id: int, size: int, index: int) -> None:
        path = self._path(slice_id, size, index)
        self.pool.drop(slice_id * MAX_BLOCKS + index)
        if self._cache is not None:
            self._cache.remove(path)
        async with self._deletes:
            await self._store.delete(self._prefix + path)

    def _churned(self, length: int) -> None:
        self._churn_bytes += length
        if self._churn_bytes >= _CHURN_BYTES and self._on_churn is not None:
            self._churn_bytes = 0
            self._on_churn()

    def _path(self, slice_id: int, size: int, index: int) -> str:
        length = block_length(size, index, self.block_size)
        return block_path(self._hash_prefix, slice_id, index, length)


def _whole_blocks(limit_bytes: int, block_size: int) -> int:
    """Return how many whole blocks may be fetched at once."""
    return max(2, limit_bytes // (4 * block_size))
