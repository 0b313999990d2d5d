"""The kernel's view of mounts and processes, read without touching a mount."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

FUSECTL = Path("/sys/fs/fuse/connections")
MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    path: str
    minor: int
    fstype: str
    source: str
    options: str
    super_options: str


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def table() -> list[Mount]:
    """Return all mounts of this namespace, in mount order."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, right = line.split(" - ", 1)
        fields, tail = left.split(" "), right.split(" ")
        minor = int(fields[2].split(":")[1])
        found.append(
            Mount(_unescape(fields[4]), minor, tail[0], _unescape(tail[1]), fields[5], tail[2])
        )
    return found


def below(root: str | Path) -> list[Mount]:
    """Return the FUSE mounts at or below `root`."""
    prefix = f"{root}".rstrip("/")
    return [
        m
        for m in table()
        if m.fstype.startswith("fuse")
        and m.fstype != "fusectl"
        and (m.path == prefix or m.path.startswith(prefix + "/"))
    ]


def at(path: str | Path) -> list[Mount]:
    """Return the FUSE mounts stacked exactly on `path`, lowest first."""
    return [m for m in below(path) if m.path == str(path)]


def mount_fusectl() -> None:
    """Make /sys/fs/fuse/connections usable."""
    if not any(m.fstype == "fusectl" for m in table()):
        subprocess.run(["mount", "-t", "fusectl", "none", str(FUSECTL)], check=False)


def abort(path: str | Path) -> bool:
    """Free everything that waits for the server of the mount on `path`; False if none is there."""
    mounts = at(path)
    for mount in mounts:
        with contextlib.suppress(FileNotFoundError):
            (FUSECTL / str(mount.minor) / "abort").write_text("1")
    return bool(mounts)


def waiting(path: str | Path) -> int:
    """Return how many requests the server of the mount on `path` has not answered."""
    return int((FUSECTL / str(at(path)[-1].minor) / "waiting").read_text())


def detach(path: str | Path) -> bool:
    """Unmount `path` lazily, all layers of it; False if nothing was mounted."""
    layers = len(at(path))
    for _ in range(layers):
        _libc.umount2(os.fsencode(str(path)), MNT_DETACH)
    return layers > 0


def children(pid: int) -> list[int]:
    """Return the direct children of `pid`, zombies included."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return []
    found: list[int] = []
    for task in tasks:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(p) for p in (task / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Return every process below `pid`, zombies excluded."""
    found: list[int] = []
    todo = children(pid)
    while todo:
        child = todo.pop()
        todo += children(child)
        if state(child) not in ("Z", "X", None):
            found.append(child)
    return sorted(found)


def state(pid: int) -> str | None:
    """Return the scheduler's state letter of a process, None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rsplit(")", 1)[1].split()[0]
