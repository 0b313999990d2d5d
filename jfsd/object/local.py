"""Objects as files below a directory (format.md §13.1)."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NoReturn, TypeVar, TypeVarTuple

from jfsd.object.base import (
    ObjectInfo,
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from jfsd.types import ReadableBuffer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_TMP_NAME_BYTES = 200
_LIST_BATCH = 1000
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))
_REFUSED = frozenset((errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR))


class DirectorySync:
    """Makes names durable; writers of one directory that come together share one fsync(2).

    Called in threads. A name that was made before `sync` began is durable when it returns.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._issued: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def sync(self, directory: str) -> None:
        """Return when all names in `directory` are on the disk."""
        with self._guard:
            ticket = self._issued[directory] = self._issued.get(directory, 0) + 1
            lock = self._locks.setdefault(directory, threading.Lock())
        with lock:
            if self._done.get(directory, 0) >= ticket:
                return
            covered = self._issued[directory]
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._done[directory] = covered


class LocalStore:
    """A directory as a bucket. `root` ends in "/" and is put before every key as it is.

    A put that returned is durable: the file, its name, and the directories that were made
    for it. A kill leaves at most a temporary file, which no listing shows.
    """

    def __init__(self, root: str, *, threads: int = 16) -> None:
        self.root = root
        self._base = os.path.normpath(root) + "/"
        self._sync = DirectorySync()
        self._threads = ThreadPoolExecutor(threads, "objects")

    def __repr__(self) -> str:
        return f"<LocalStore {self.root}>"

    async def check(self) -> None:
        """Return if the directory is there and may be used."""
        await self._run(self._check)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object; what is in the page cache is read without a thread."""
        path = self._path(key)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise_store_error(error, key)
        try:
            if length is None:
                length = max(os.fstat(descriptor).st_size - offset, 0)
            buffer = bytearray(length)
            done = _read_cached(descriptor, buffer, offset)
            if done < length:
                view = memoryview(buffer)[done:]
                done += await self._run(_read_rest, descriptor, view, offset + done)
            return bytes(memoryview(buffer)[:done])
        except OSError as error:
            raise_store_error(error, key)
        finally:
            os.close(descriptor)

    async def put(self, key: str, body: ReadableBuffer) -> None:
        """Store the object under its name once it is whole and durable."""
        try:
            await self._run(self._put, self._path(key), body)
        except OSError as error:
            raise_store_error(error, key)

    async def delete(self, key: str) -> None:
        """Remove the file; its directory stays."""
        try:
            os.unlink(self._path(key))  # noqa: PTH108 - one call, on the loop
        except FileNotFoundError:
            return
        except OSError as error:
            raise_store_error(error, key)

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        try:
            status = os.stat(self._path(key))  # noqa: PTH116
        except OSError as error:
            raise_store_error(error, key)
        return ObjectInfo(key, status.st_size, status.st_mtime_ns)

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects in key order; temporary files are left out."""
        walk = self._walk(prefix, start_after)
        while True:
            batch = await self._run(_take, walk, _LIST_BATCH)
            for info in batch:
                yield info
            if len(batch) < _LIST_BATCH:
                return

    async def close(self) -> None:
        """Finish what is being written."""
        await asyncio.to_thread(self._threads.shutdown)

    # -- in threads -----------------------------------------------------------------------

    async def _run(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def _check(self) -> None:
        try:
            status = os.stat(self.root)  # noqa: PTH116
        except OSError as error:
            raise StoreRefusedError(
                f"bucket {self.root}: cannot be used ({error.strerror});"
                " create the directory or correct the volume's bucket"
            ) from error
        if not stat.S_ISDIR(status.st_mode) or not os.access(self.root, os.R_OK | os.X_OK):
            raise StoreRefusedError(
                f"bucket {self.root}: is not a directory that this user may read;"
                " correct its mode or owner"
            )

    def _put(self, path: str, body: ReadableBuffer) -> None:
        directory, name = os.path.split(path)
        draft = f"{directory}/.jfs.{name[:_TMP_NAME_BYTES]}.tmp.{secrets.token_hex(6)}"
        try:
            descriptor = _create(draft)
        except FileNotFoundError:
            self._make_directories(directory)
            descriptor = _create(draft)
        try:
            try:
                _write_all(descriptor, body)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(draft, path)  # noqa: PTH104
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)  # noqa: PTH108
            raise
        self._sync.sync(directory)

    def _make_directories(self, directory: str) -> None:
        """Create the directory and what is missing above it, each durable in its parent."""
        missing = []
        while not os.path.isdir(directory):  # noqa: PTH112
            missing.append(directory)
            directory = os.path.dirname(directory)  # noqa: PTH120
        for each in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(each, 0o777)  # noqa: PTH102
            self._sync.sync(os.path.dirname(each))  # noqa: PTH120

    def _walk(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Yield the objects below the directory part of `prefix`, in key order."""
        yield from _below(self.root, prefix.rpartition("/")[0], prefix, start_after)

    def _path(self, key: str) -> str:
        path = self.root + key
        if not os.path.normpath(path).startswith(self._base) or key.endswith("/"):
            raise StoreRefusedError(f"key {key!r}: is outside of {self.root}; use plain keys")
        return path


def raise_store_error(error: OSError, key: str) -> NoReturn:
    """Raise the error of this layer for one of the file system."""
    text = f"object {key}: {error.strerror}"
    if error.errno == errno.ENOENT:
        raise ObjectMissingError(text) from error
    if error.errno in _FULL:
        raise StoreFullError(text) from error
    if error.errno in _REFUSED:
        raise StoreRefusedError(text) from error
    raise StoreError(text) from error


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _write_all(descriptor: int, body: ReadableBuffer) -> None:
    view = memoryview(body)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_cached(descriptor: int, buffer: bytearray, offset: int) -> int:
    """Read what is in the page cache from the start; 0 where the file system cannot tell."""
    if not buffer:
        return 0
    try:
        return os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
            return 0
        raise


def _read_rest(descriptor: int, view: memoryview, offset: int) -> int:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def _take(walk: Iterator[ObjectInfo], count: int) -> list[ObjectInfo]:
    return [info for info, _ in zip(walk, range(count), strict=False)]


def _below(root: str, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
    """Yield objects of a folder in key order: a directory sorts as its name with a slash."""
    head = f"{folder}/" if folder else ""
    try:
        with os.scandir(root + folder) as found:
            names = sorted(
                entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "") for entry in found
            )
    except FileNotFoundError:
        return
    for name in names:
        key = head + name
        if name.endswith("/"):
            reaches = key.startswith(prefix) or prefix.startswith(key)
            if reaches and (key > start_after or start_after.startswith(key)):
                yield from _below(root, key[:-1], prefix, start_after)
        elif key.startswith(prefix) and key > start_after and not name.startswith(".jfs."):
            with suppress(FileNotFoundError):
                status = os.stat(root + key)  # noqa: PTH116
                yield ObjectInfo(key, status.st_size, status.st_mtime_ns)
