"""Two system calls that Python has no name for.

Both are conveniences: without them a descriptor may be kept twice and the exit status of
a grandchild is not known. The holder works all the same.
"""

from __future__ import annotations

import ctypes
import os

_SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "ppc64le": 354, "s390x": 343}
_KCMP_FILE = 0
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_kcmp_number = _SYS_KCMP.get(os.uname().machine)


def same_file(fd: int, other: int) -> bool:
    """Return whether both are duplicates of one open file; False if that cannot be known."""
    if _kcmp_number is None:
        return False
    pid = os.getpid()
    arguments = [ctypes.c_long(value) for value in (pid, pid, _KCMP_FILE, fd, other)]
    return int(_libc.syscall(ctypes.c_long(_kcmp_number), *arguments)) == 0


def become_subreaper() -> bool:
    """Be the parent of descendants whose own parents end; return whether that worked."""
    zero = ctypes.c_ulong(0)
    one = ctypes.c_ulong(1)
    return int(_libc.prctl(_PR_SET_CHILD_SUBREAPER, one, zero, zero, zero)) == 0
