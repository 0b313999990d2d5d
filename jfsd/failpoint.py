"""Places at which a test may kill this process; nothing happens unless the environment asks.

    JFSD_FAILPOINT=upload.stored:3      SIGKILL at the third pass of this place
    JFSD_FAILPOINT=request.mkdir        SIGSEGV, as if the request brought it about

`docs/LIFECYCLE.md` says of each what a kill leaves there and who repairs it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable
from typing import Final, TypeVar

T = TypeVar("T")

VARIABLE: Final = "JFSD_FAILPOINT"

START: Final = (
    "start.claimed",
    "start.session",
    "start.state",
    "start.mounted",
    "start.parking",
    "start.parked",
    "start.ready",
)
"""Of a start, in order; those of a takeover are the same and ADOPTION."""
ADOPTION: Final = ("adopt.loaded", "adopt.handles", "adopt.slices", "adopt.resent")
HANDOVER: Final = ("handover.parked", "handover.finished", "handover.sealed")
SCRIPT: Final = ("script.before", "script.after")
WRITE: Final = ("write.copied", "write.recorded")
PRIVILEGES_DROPPED: Final = "privileges.dropped"
PACK: Final = ("pack.begun", "pack.joined", "pack.forgotten")
UPLOAD: Final = ("upload.named", "upload.block", "upload.stored", "upload.recorded")
STORE: Final = ("store.written", "store.named")
"""Of a put in a directory store, reached in jfsd/object/_disk.c."""
COMMIT: Final = ("commit.before", "commit.after", "commit.forgotten")
REFUSAL: Final = ("refused.owed", "refused.buried")
STOP: Final = ("stop.asked", "stop.unmounted", "stop.flushed", "stop.closed")

_name, _, _count = os.environ.get(VARIABLE, "").partition(":")
_left = int(_count or 1)

armed: Final = bool(_name)
"""Whether any place is to kill."""


def reach(name: str) -> None:
    """Return, unless this is the pass of the place at which the process is to die."""
    global _left  # noqa: PLW0603 - one process, one place, one count
    if name == _name:
        _left -= 1
        if _left == 0:
            own = name.startswith("request.")
            os.kill(os.getpid(), signal.SIGSEGV if own else signal.SIGKILL)


async def reached(name: str, work: Awaitable[T]) -> T:
    """Pass a place, then do `work`."""
    reach(name)
    return await work


if not armed:

    def reach(name: str) -> None:
        """Return."""
