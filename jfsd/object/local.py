"""Objects as files below a directory (format.md §13.1)."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import pwd
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from jfsd.object._disk import read_file_now
from jfsd.object.base import (
    ObjectInfo,
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from jfsd.object.disk import Disk
from jfsd.object.openfiles import OpenFiles
from jfsd.object.tree import AbandonedError, ObjectTree, describe
from jfsd.types import ReadableBuffer

T = TypeVar("T")

_LIST_BATCH = 1000
_INLINE_BYTES = 1 << 17
"""Up to this size objects and parts are read on the loop if the page cache has them."""

_SETTLE_TOGETHER, _SETTLERS = 8, 8
"""Files that one thread syncs, unless more than so many threads would be needed."""

_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_REFUSED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_LASTING = frozenset((errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL))


class LocalStore:
    """A directory as a bucket. `root` usually ends in "/"; it is put before every key as it is.

    A durable put has synced the file, its name, and the directories that were made for it;
    any other leaves that to `settle`. The root itself is never made, because it may be a file
    system not mounted yet.
    Each call takes one hop to a native thread, or none if it reads what the page cache has.
    Python threads do what is rare: durable puts, whatever stood in the way of another, listings.
    """

    def __init__(self, root: str, *, threads: int = 16) -> None:
        self.root = root
        self._tree = ObjectTree(root)
        self._open = OpenFiles()
        self._disk = Disk(threads)
        self._threads = ThreadPoolExecutor(threads, "object")
        self._closed = False

    def __repr__(self) -> str:
        return f"<LocalStore {self.root}>"

    def __str__(self) -> str:
        return f"bucket {self.root}"

    async def check(self) -> None:
        """Return if the directory is there and may be read and written."""
        await self._run("check", self._check)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object."""
        return await self._translate(f"GET {key}", self._get(self._path(key), offset, length))

    async def _get(self, path: str, offset: int, length: int | None) -> bytes:
        if length is None:
            found = read_file_now(os.fsencode(path), _INLINE_BYTES) if offset == 0 else None
            if isinstance(found, bytes):
                return found
            if found is None:
                return await self._disk.read_rest(path, offset)
            descriptor, size = found
            return await self._disk.read_open(descriptor, 0, size)
        if length > _INLINE_BYTES:
            return await self._disk.read(path, offset, length)
        data = self._open.read_now(path, offset, length)
        if data is None:
            data, descriptor, size = await self._disk.read_keeping(path, offset, length)
            self._open.keep(path, descriptor, size)
        return data

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object under its name once it is whole."""
        path = self._path(key)
        self._open.forget(path)
        try:
            await self._translate(f"PUT {key}", self._put(path, body, durable=durable))
        finally:
            self._open.forget(path)

    async def _put(self, path: str, body: ReadableBuffer, *, durable: bool) -> None:
        if not durable and self._tree.unnamed:
            with suppress(OSError):  # the tree knows what to do, or fails likewise
                return await self._disk.put(path, body)
        abandoned = False
        write = partial(self._tree.write, path, body, lambda: abandoned, durable=durable)
        try:
            await self._in_thread(write)
        except asyncio.CancelledError:
            abandoned = True
            raise

    async def settle(self, keys: Collection[str] | None) -> None:
        """Sync the files and their names; with None the whole file system they are on.

        Some at a time: a journal commits what is asked for together together.
        """
        try:
            await self._settle(keys)
        except StoreError as error:
            # A kernel that could not write a page takes it for written at the next try.
            raise StoreError(str(error), retryable=False) from error

    async def _settle(self, keys: Collection[str] | None) -> None:
        if keys is None:
            await self._translate("SYNC", _in_a_daemon(self._tree.settle_all))
            return
        paths = sorted(map(self._path, keys))
        size = max(_SETTLE_TOGETHER, -(-len(paths) // _SETTLERS))
        parts = [paths[at : at + size] for at in range(0, len(paths), size)]
        if len(parts) == 1:
            await self._translate("SYNC", self._settle_part(paths))
            return
        await asyncio.gather(*(self._translate("SYNC", self._settle_part(part)) for part in parts))

    async def _settle_part(self, paths: list[str]) -> None:
        directories = dict.fromkeys(os.path.dirname(path) for path in paths)  # noqa: PTH120
        if self._tree.knows(directories):
            await self._disk.settle([*paths, *directories])
        else:
            await self._in_thread(partial(self._tree.settle, paths, lambda: self._closed))

    async def delete(self, key: str) -> None:
        """Remove the file; its directory stays."""
        path = self._path(key)
        self._open.forget(path)
        await self._translate(f"DELETE {key}", self._disk.delete(path))

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        return await self._run(f"HEAD {key}", partial(describe, self._path(key), key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects in key order; temporary files are left out."""
        if ".." in prefix.split("/"):
            raise self._outside(prefix)
        walk = self._tree.walk(prefix, start_after)
        while True:
            batch = await self._run(
                f"LIST {prefix}", lambda: list(itertools.islice(walk, _LIST_BATCH))
            )
            for found in batch:
                yield found
            if len(batch) < _LIST_BATCH:
                return

    async def close(self) -> None:
        """Finish what is being written; what is being settled is left as it is."""
        self._closed = True
        await self._disk.close()
        await asyncio.sleep(0)  # what a native thread could not do goes to the others now
        await asyncio.to_thread(self._threads.shutdown)
        self._open.close()

    def _path(self, key: str) -> str:
        path = self._tree.path(key)
        if path is None:
            raise self._outside(key)
        return path

    def _outside(self, key: str) -> StoreRefusedError:
        return StoreRefusedError(f"{self}: key {key!r} is not inside it; use plain keys")

    async def _run(self, what: str, work: Callable[[], T]) -> T:
        """Do `work` in a thread; a cancellation does not wait for it."""
        return await self._translate(what, self._in_thread(work))

    def _in_thread(self, work: Callable[[], T]) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _translate(self, what: str, done: Awaitable[T]) -> T:
        try:
            return await done
        except OSError as error:
            raise self._translated(error, what) from error
        except AbandonedError as error:
            raise StoreError(f"{self}: {what}: abandoned") from error

    def _translated(self, error: OSError, what: str) -> StoreError:
        text = f"{self}: {what}: {error.strerror}"
        code = error.errno
        if code == errno.ENOENT:
            if not self._tree.is_there():
                return StoreError(f"{text}; the directory is gone, mount or create it")
            return ObjectMissingError(text)
        if code in _FULL:
            return StoreFullError(f"{text}; free some there")
        if code in _REFUSED:
            return StoreRefusedError(f"{text}; {self._mend()}")
        return StoreError(text, retryable=code not in _LASTING)

    def _check(self) -> None:
        directory = self._tree.directory
        if not os.path.lexists(directory):
            raise StoreRefusedError(f"{self}: it does not exist; create the directory")
        if not os.path.isdir(directory):  # noqa: PTH112
            raise StoreRefusedError(f"{self}: it is not a directory; name one")
        if not os.access(directory, os.R_OK | os.X_OK):
            raise StoreRefusedError(f"{self}: it may not be read; {self._mend()}")

    def _mend(self) -> str:
        """Return what lets this user have the directory."""
        return f"let this user have it: chown -R {_user()} {self._tree.directory}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


async def _in_a_daemon(work: Callable[[], None]) -> None:
    """Do `work` in a thread that no end of this process waits for."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def end(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure = None
        try:
            work()
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end, failure)

    threading.Thread(target=run, name="object-sync", daemon=True).start()
    await done
