"""The record of a start: kept in the state when it happens, logged once it is complete."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from jfsd.daemon.report import RESENT
from jfsd.daemon.timing import MAX_EVENTS, Event, Timing, line

if TYPE_CHECKING:
    from jfsd.daemon.state import State
    from jfsd.daemon.takeover import Takeover
    from jfsd.fuse.session import Session

log = logging.getLogger(__name__)

FIRST_ANSWER_S = 1.0
"""How long the record of a start waits for the first answer before it is logged without."""


class Telling:
    """Tells one start; `complete` may be called at any time, and does something once."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._told: tuple[Event, list[Event], Counter[str], Session, State] | None = None

    def begin(self, takeover: Takeover | None, kernel: Session, state: State) -> None:
        """Keep the record in the state; it is logged when it is known who was answered when."""
        event = self._timing.event(
            takeover.leaving if takeover else {},
            taken_over=takeover is not None,
            sealed=takeover is not None and takeover.sealed,
        )
        event["generation"] = state.header.generation
        before = state.header.events[1 - MAX_EVENTS :]
        totals = Counter(state.header.totals)
        totals[event["kind"]] += 1
        state.change(events=[*before, event], totals=dict(totals))
        self._told = event, before, totals, kernel, state
        asyncio.get_running_loop().call_later(FIRST_ANSWER_S, self.complete)

    def complete(self) -> None:
        """Add what could not be known when it happened, and log it."""
        if self._told is None:
            return
        (event, before, totals, kernel, state), self._told = self._told, None
        told = {**event, "resent": kernel.resent}
        if kernel.first_answer_s:
            first_ms = (kernel.first_answer_s - self._timing.started_s) * 1000
            told["first_answer_ms"] = round(first_ms, 1)
        totals[RESENT] += kernel.resent
        state.change(events=[*before, told], totals=dict(totals))
        log.info("event %s", line(told), extra={"jfsd_event": told})
