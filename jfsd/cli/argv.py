"""Secrets that came as arguments disappear from the process list.

The kernel shows `/proc/<pid>/cmdline` from the process's own memory, so the process
can overwrite it. Between the start of the program and that moment (some ten
milliseconds) they are visible, therefore environment and files are the better way.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_ARG_START = 47
_ARG_END = 48


def hide(secrets: Iterable[str]) -> None:
    """Overwrite each secret in this process's visible arguments with `x`.

    Does nothing where the kernel does not say where the arguments are.
    """
    wanted = [os.fsencode(secret) for secret in secrets if secret]
    if not wanted:
        return
    try:
        status = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    # The second field is the program's name in parentheses, which may contain anything.
    fields = ["", "", *status.rpartition(")")[2].split()]
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    if not 0 < start < end:
        return
    visible = bytearray(ctypes.string_at(start, end - start))
    masked = bytes(visible)
    for secret in wanted:
        masked = masked.replace(secret, b"x" * len(secret))
    ctypes.memmove(start, masked, len(masked))
