"""The parked state for people: read beside a server that writes to it, or without one.

Nothing is changed: the memory is mapped for reading only, and tables are taken as they
are. A record that changes while it is read does not match its checksum and is left out.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import Any

from jfsd.chunk.pending import UPLOADED
from jfsd.daemon.state import LAYOUT, State, StateError
from jfsd.record import as_dict

_ATTEMPTS = 5
_PAUSE_S = 0.02
_SECTOR_BYTES = 512
_NAME = "/memfd:jfsd-state"


def describe(state_fd: int, arena_fd: int | None = None) -> dict[str, Any]:
    """Return what is in the state, ready for JSON.

    Raises:
        StateError: It cannot be read by this version, or is damaged.
    """
    with closing(_load(state_fd)) as state:
        header = as_dict(state.header)
        more = header.pop("more")
        init_in, init_out = header.pop("init_in"), header.pop("init_out")
        suspects = [{"request": op, "deaths": count} for op, count in state.suspects()]
        slices = [record._asdict() for record in state.slices()]
        return {
            "layout": LAYOUT,
            **header,
            **more,
            "init_in": init_in.hex(),
            "init_out": init_out.hex(),
            "running": state.suspect()[0],
            "suspects": suspects,
            "files": [
                {"fh": each.fh, "ino": each.ino, "flags": f"{each.flags:#o}", "request": each.op}
                for each in state.files()
            ],
            "lock_owners": [{"fh": fh, "owner": f"{owner:#x}"} for fh, owner in state.locks()],
            "slices": slices,
            "arena": _arena(arena_fd, slices, state.header.block_size),
        }


def state_kept_by(pid: int, mountpoint: str) -> int | None:
    """Return a new descriptor, for reading, of the mount's state that a process keeps.

    For a service manager: it gives what it keeps to nobody but the service, but root may look.
    """
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            paths = [entry.path for entry in entries if _target(entry.path).startswith(_NAME)]
    except OSError:
        return None
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        if _mountpoint(fd) == mountpoint:
            return fd
        os.close(fd)
    return None


def _target(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - it is no file that a Path could name
    except OSError:
        return ""


def _mountpoint(fd: int) -> str:
    """Return whose state it is; "" if it does not say."""
    try:
        with closing(State.load(fd, read_only=True)) as state:
            return state.header.mountpoint
    except StateError:
        return ""


def _load(fd: int) -> State:
    """Return the state; a header that is just being written is looked at again."""
    for attempt in range(_ATTEMPTS):
        try:
            return State.load(fd, read_only=True)
        except StateError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError


def _arena(fd: int | None, slices: list[dict[str, Any]], block_size: int) -> dict[str, int]:
    """Return how much of the arena is in use: pages that it has, and bytes that wait in it."""
    waiting = sum(
        min(block_size, each["length"] - block * block_size)
        for each in slices
        for block, slot in enumerate(each["slots"])
        if slot != UPLOADED
    )
    if fd is None:
        return {"waiting_bytes": waiting}
    status = os.fstat(fd)
    return {
        "waiting_bytes": waiting,
        "memory_bytes": status.st_blocks * _SECTOR_BYTES,
        "slots": status.st_size // block_size,
    }
