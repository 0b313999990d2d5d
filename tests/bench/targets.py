"""What each figure shall be, as the ratio of ours to the reference's, in one run."""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Reached by a ratio of at least `ratio`, or at most, where less is better."""

    ratio: float
    less_is_better: bool = False

    def met(self, ratio: float) -> bool:
        """Return whether a measured ratio is good enough."""
        return ratio <= self.ratio if self.less_is_better else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{'≤' if self.less_is_better else '≥'} {self.ratio:g}"


MEMORY = "resident memory after all of it MiB"
BACKGROUND = "mount -d until it returns and answers ms"
"""What the target speaks of: a program can only ask when the command has returned."""

FOREGROUND = "foreground mount to first answer ms"
"""The same without the wait for the command, as a service manager starts it; has no target."""

STALL = "stall of a planned restart ms"

TARGETS = {
    "create, 1 at once /s": Target(1.5),
    "create, 4 at once /s": Target(1.5),
    "rename, 1 at once /s": Target(1.5),
    "unlink, 1 at once /s": Target(1.5),
    "stat, 1 at once /s": Target(1.0),
    "readdir entries/s": Target(1.0),
    "readdir + stat entries/s": Target(1.0),
    "small files written /s": Target(1.2),
    "small files read /s": Target(1.2),
    "sequential write MiB/s": Target(1.0),
    "sequential read, cold MiB/s": Target(1.0),
    "sequential read, again MiB/s": Target(1.0),
    "random read 4 KiB O_DIRECT /s": Target(1.2),
    "random write 4 KiB, fsync at the end /s": Target(1.2),
    "create, 1 ms to Redis /s": Target(2.0),
    "rename, 1 ms to Redis /s": Target(2.0),
    MEMORY: Target(0.7, less_is_better=True),
    BACKGROUND: Target(0.6, less_is_better=True),
    STALL: Target(0.7, less_is_better=True),
}
"""By the name of the figure; the others are watched without a target."""
