"""How this process's C heap behaves, so that memory stays bounded by the configuration.

Blocks of 4 MiB come and go. glibc by itself would give each thread a heap of its own that
keeps what was freed and lends it to no other; and in any heap a freed block is cut up by a
slightly smaller one, so that a slightly larger one finds no place: hundreds of MiB belong to
nobody then (promise 19). Blocks in mappings of their own would go back for certain, but new
pages for every one cost a third of the throughput. So: one heap, whose free pages are given
back as soon as they are too many.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LARGEST_BYTES = 32 << 20
_SLACK_BYTES = 16 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STATM = Path("/proc/self/statm")


def bound_heap() -> bool:
    """Let all threads share one heap, blocks included; call before the first thread starts.

    Returns:
        False where the C library has no such choice.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(
        mallopt(option, value)
        for option, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_THRESHOLD, _LARGEST_BYTES),
            (_M_TRIM_THRESHOLD, _LARGEST_BYTES),
        )
    )


def private_bytes() -> int:
    """Return the memory of this process that is no mapped file and not shared."""
    _, resident, shared, *_ = _STATM.read_text("ascii").split()
    return (int(resident) - int(shared)) * _PAGE_BYTES


def give_back() -> None:
    """Return the heap's free pages to the system."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return


class HeapGuard:
    """Gives free pages of the heap back when there are more than a few.

    What is free cannot be asked for at a fair price; it is what the process has beyond its
    live blocks and the least that it ever had beyond them.
    """

    def __init__(
        self,
        live_bytes: Callable[[], int],
        *,
        measure: Callable[[], int] = private_bytes,
        trim: Callable[[], None] = give_back,
    ) -> None:
        """Guard a heap of which `live_bytes()` are in use for blocks."""
        self._live_bytes = live_bytes
        self._measure = measure
        self._trim = trim
        self._floor_bytes = self._others()

    def __repr__(self) -> str:
        return f"<HeapGuard floor={self._floor_bytes} now={self._others()}>"

    def check(self) -> None:
        """Look, and trim if it is worth it; called whenever some blocks have gone."""
        others = self._others()
        if others > self._floor_bytes + _SLACK_BYTES:
            self._trim()
            self._floor_bytes = self._others()
        else:
            self._floor_bytes = min(self._floor_bytes, others)

    def _others(self) -> int:
        return self._measure() - self._live_bytes()
