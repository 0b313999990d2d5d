"""How far a served mount has come: one enum, changed in one place, asked through predicates."""

from __future__ import annotations

import logging
from enum import Enum

log = logging.getLogger(__name__)


class Phase(Enum):
    """Phases of a server's life, in order."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    """Unmount was asked for; requests are still answered."""
    FLUSHING = "flushing"
    """The mount is gone; what was written is being stored."""
    ENDED = "ended"

    @property
    def answers(self) -> bool:
        """Whether requests of the kernel are answered in this phase."""
        return self in (Phase.SERVING, Phase.STOPPING)


class Life:
    """The phase that a server is in; it only ever goes forward."""

    def __init__(self) -> None:
        self.phase = Phase.STARTING

    def __repr__(self) -> str:
        return f"<Life {self.phase.value}>"

    def enter(self, phase: Phase) -> None:
        """Go on to `phase`; going back, or staying, changes nothing."""
        order = list(Phase)
        if order.index(phase) > order.index(self.phase):
            self.phase = phase
            log.debug("phase %s", phase.value)
