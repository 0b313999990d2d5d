"""How this process's C heap behaves, so that memory stays bounded by the configuration."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h


def use_one_heap() -> bool:
    """Let all threads share one heap; call before the first thread is started.

    With glibc's defaults each thread that fetches or stores blocks of 4 MiB gets a heap of
    its own, which keeps what was freed and gives it to no other: that adds up to hundreds
    of MiB that belong to nobody (promise 19). Blocks are few, so nobody waits for the lock.

    Returns:
        False where the C library has no such choice.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(_M_ARENA_MAX, 1))
