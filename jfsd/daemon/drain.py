"""Storing all that was written while the mount is served: before a stop, or for certainty.

Everything accepted before the call is sent on its way; what programs write meanwhile is
none of it. Errors are left for the programs whose files they concern.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from jfsd.chunk.pending import UPLOADED
from jfsd.clock import monotonic_s

if TYPE_CHECKING:
    from jfsd.chunk.writer import Writer
    from jfsd.systemd.notify import Notifier

_PAUSE_S = 0.1
_SHARE = 20
"""Counting what is left takes at most this part of the time."""
_BATCH = 100


_BEAT_S = 2.0
_MORE_TIME_S = 20.0


class Left(NamedTuple):
    """What is not stored of what was written before."""

    files: int = 0
    slices: int = 0
    bytes: int = 0
    failing_files: int = 0
    """Files of the whole mount whose last attempt failed."""


async def drain(
    writer: Writer,
    *,
    tell: Callable[[Left], Awaitable[None]] | None = None,
    timeout_s: float | None = None,
) -> Left:
    """Return when all that was written before is stored, or time is up, with what is left.

    Cancelled, it leaves what is under way under way.
    """
    began_s = monotonic_s()
    until = writer.newest
    for number, ino in enumerate(writer.dirty_files):
        writer.push(ino)
        if number % _BATCH == _BATCH - 1:
            await asyncio.sleep(0)
    while True:
        counted_s = monotonic_s()
        left = count(writer, until)
        now_s = monotonic_s()
        if tell is not None:
            await tell(left)
        if not left.slices or (timeout_s is not None and now_s - began_s >= timeout_s):
            return left
        await asyncio.sleep(max(_PAUSE_S, _SHARE * (now_s - counted_s)))


async def flush_all(writer: Writer, notifier: Notifier, patience_s: float) -> None:
    """Return when everything is stored; a keeper that waits for our end is told to wait on.

    Raises:
        TimeoutError: Nothing more was stored for `patience_s`.
        ExceptionGroup: Files that could not be stored.
    """
    task = asyncio.create_task(writer.flush_all(), name="flush")
    least = count(writer, writer.newest)
    moved_s = monotonic_s()
    try:
        while not task.done():
            notifier.extend_timeout(_MORE_TIME_S)
            if least.slices:
                notifier.status(f"stopping: {least.bytes} bytes of {least.files} files to store")
            await asyncio.wait({task}, timeout=_BEAT_S)
            left = count(writer, writer.newest)
            if left < least:
                least, moved_s = left, monotonic_s()
            elif monotonic_s() - moved_s > patience_s:
                raise TimeoutError(f"nothing was stored for {patience_s:g} s")
        await task
    finally:
        task.cancel()
        await asyncio.wait({task})


def count(writer: Writer, until: int) -> Left:
    """Return what is not stored of the slices begun before or as `until`."""
    files = set()
    slices = total = 0
    for pending in writer.unstored(until):
        files.add(pending.ino)
        slices += 1
        size = writer.block_bytes
        total += sum(
            min(size, pending.length - block * size)
            for block, slot in enumerate(pending.slots)
            if slot != UPLOADED
        )
    return Left(len(files), slices, total, writer.failing_files)
