"""Files written, read, synced and removed by native threads; the loop waits for many at once."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterable

from jfsd.object._disk import Job, Pool
from jfsd.object.tree import AbandonedError
from jfsd.types import ReadableBuffer

_ROOM_BYTES = 1 << 17
"""What a file is taken to hold at most, as long as nobody knows its size."""


class Disk:
    """A pool of threads that are started when they are needed, and its futures.

    The threads need nothing of Python: they neither hinder it nor wait for it, and the end of
    the process does not wait for them. A cancelled call does not wait either; what it asked
    for is left undone if it was not begun.
    """

    def __init__(self, threads: int) -> None:
        self._pool = Pool(threads)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        threads, direct, buffered = self._pool.counts()
        return f"<Disk threads={threads} direct={direct} buffered={buffered}>"

    async def put(self, path: str, body: ReadableBuffer) -> None:
        """Write a new file, which has no name before it is whole; nothing is synced.

        Where files without names cannot be had, or the name or its directory stands in the
        way, nothing is done.

        Raises:
            AbandonedError: It was cancelled.
            OSError: Of open(2), write(2) or linkat(2); nothing is left.
        """
        future = self._future()
        name = os.fsencode(path)
        directory = name[: name.rfind(b"/") + 1]
        await _end(future, self._pool.put(future, directory, name, body))

    async def read(self, path: str, offset: int, length: int) -> bytes:
        """Return bytes of the file, fewer where it ends.

        Raises:
            OSError: ENOENT (no file, or something else), and others of open(2) and read(2).
        """
        return _data(await self._read(path, -1, offset, length))

    async def read_keeping(self, path: str, offset: int, length: int) -> tuple[bytes, int, int]:
        """Return bytes of the file, an open descriptor, which is the caller's, and its size.

        Raises:
            OSError: As for `read`.
        """
        job = await self._read(path, -1, offset, length, keep=True)
        return _data(job), job.take_descriptor(), job.size

    async def read_rest(self, path: str, offset: int) -> bytes:
        """Return what the file has from `offset`.

        Raises:
            OSError: As for `read`.
        """
        future = self._future()
        job = self._pool.read(
            future,
            os.fsencode(path),
            -1,
            offset,
            _ROOM_BYTES,
            True,
            False,
        )
        await _wait(future, job)
        if job.error == errno.EFBIG:
            return await self.read_open(job.take_descriptor(), offset, job.size - offset)
        _check(job)
        return _data(job)

    async def read_open(self, descriptor: int, offset: int, length: int) -> bytes:
        """Return bytes of a file, whose descriptor is closed after that.

        Raises:
            OSError: As for `read`.
        """
        return _data(await self._read("", descriptor, offset, length))

    async def settle(self, paths: Iterable[str]) -> None:
        """Sync files and directories, in order; those that are gone are not.

        Raises:
            AbandonedError: The disk was closed on the way.
            OSError: Some may not be durable.
        """
        future = self._future()
        names = b"".join(os.fsencode(path) + b"\0" for path in paths)
        await _end(future, self._pool.settle(future, names))

    async def delete(self, path: str) -> None:
        """Remove the file if it is there.

        Raises:
            OSError: Of unlink(2).
        """
        future = self._future()
        await _end(future, self._pool.delete(future, os.fsencode(path)))

    async def close(self) -> None:
        """Do what was asked for, syncs apart, and end the threads; no call may follow."""
        await asyncio.to_thread(self._pool.join)
        if self._loop is not None:
            self._collect()
            self._loop.remove_reader(self._pool.fileno())
            self._loop = None

    async def _read(
        self, path: str, descriptor: int, offset: int, length: int, *, keep: bool = False
    ) -> Job:
        future = self._future()
        name = os.fsencode(path)
        job = self._pool.read(future, name, descriptor, offset, length, False, keep)
        await _end(future, job)
        return job

    def _future(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            loop.add_reader(self._pool.fileno(), self._collect)
        return loop.create_future()

    def _collect(self) -> None:
        for future, _ in self._pool.collect():
            if not future.done():
                future.set_result(None)


async def _wait(future: asyncio.Future[None], job: Job) -> None:
    try:
        await future
    except asyncio.CancelledError:
        job.abandon()
        raise


async def _end(future: asyncio.Future[None], job: Job) -> None:
    await _wait(future, job)
    _check(job)


def _check(job: Job) -> None:
    if job.error == errno.ECANCELED:
        raise AbandonedError
    if job.error:
        raise OSError(job.error, os.strerror(job.error))


def _data(job: Job) -> bytes:
    return b"" if job.data is None else job.data
