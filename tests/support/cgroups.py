"""Control groups of the containers that tests boot: made, entered, removed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TOP = Path("/sys/fs/cgroup")


def own(prefix: str) -> str:
    """Return the beginning of the names of a session's groups and machines."""
    return prefix.replace("_", "0")


def here() -> list[Path]:
    """Return the directories of this process in the hierarchies that systemd manages."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, path = line.split(":", 2)
        if controller in ("", "name=systemd"):
            tops = (TOP / "systemd",) if controller else (TOP / "unified", TOP)
            places = [top / path.strip("/") for top in tops if (top / "cgroup.procs").exists()]
            found += places[:1]
    return found


def enter(name: str) -> None:
    """Move this process into groups of its own: two containers in one would fight over it."""
    for place in here():
        (place / name).mkdir(exist_ok=True)
        (place / name / "cgroup.procs").write_text(str(os.getpid()))


def remove(prefix: str) -> None:
    """Remove all groups below ours whose names begin so, with all that is in them but processes."""
    for place in (*here(), TOP / "memory"):
        for group in place.glob(f"{own(prefix)}*"):
            for path, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(path)
