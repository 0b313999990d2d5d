"""What a holder does about the end of a server: decided here, done elsewhere.

The rule behind all of it: as long as something is kept, somebody must serve. Only a
server can give the mount up, by taking its descriptors back.
"""

from __future__ import annotations

import os
import signal
from enum import Enum

from jfsd.record import Record

FIRST_DELAY_S = 0.1
LAST_DELAY_S = 2.0
STEADY_S = 1.0
"""A server that has been ready for so long has not died of its start."""


class Verdict(Enum):
    """What comes after a server's end."""

    END = "end"
    """The mount is gone, as it should be."""
    FAIL = "fail"
    """It never came up; whoever asked for it is told why."""
    RESTART = "restart"
    FALL_BACK = "fall back"
    """Start what ran before: the new version refuses."""


class Death(Record):
    """A server's end."""

    status: int | None
    """Its wait status; None if it was not our child."""
    was_ready: bool
    ready_for_s: float = 0.0
    expired: bool = False
    """We ended it because it was not ready in time."""
    first: bool = False
    """No server has been ready so far."""
    has_former: bool = False
    """It was to replace a command that is known to work."""
    holds_fuse: bool = True
    holds_any: bool = True

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it, so far as we know."""
        return self.status is not None and os.WIFSIGNALED(self.status)

    @property
    def was_sigkilled(self) -> bool:
        """Whether somebody else ended it: nothing that it did can have been the reason."""
        return self.was_killed and os.WTERMSIG(self.status or 0) == signal.SIGKILL


def judge(death: Death) -> Verdict:
    """Return what to do about it."""
    left_by_itself = not death.was_killed
    if death.first:
        return Verdict.FAIL if left_by_itself or death.expired else Verdict.RESTART
    if not death.holds_any or (left_by_itself and not death.holds_fuse):
        return Verdict.END
    if death.has_former and not death.was_ready and (left_by_itself or death.expired):
        return Verdict.FALL_BACK
    return Verdict.RESTART


class Delays:
    """How long to wait before the next start: longer, the more starts fail in a row.

    Programs wait meanwhile, so a server that was up is replaced at once, and so is one that
    left in order; a start that was killed from outside is repeated after a breath, in which
    whatever kills may come to an end.
    """

    def __init__(self) -> None:
        self._failed = 0

    def after(self, death: Death) -> float:
        """Return the seconds to wait after this death."""
        planned = death.status == 0 or death.was_sigkilled
        if death.was_ready and (planned or death.ready_for_s >= STEADY_S):
            self._failed = 0
            return 0.0
        if death.was_sigkilled and not death.expired:
            return FIRST_DELAY_S
        self._failed += 1
        return min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._failed - 1))
