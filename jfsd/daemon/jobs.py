"""The background jobs of a mount, on or off at any time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from jfsd.meta.engine import FencedError
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.session import Session

log = logging.getLogger(__name__)


class JobSwitch:
    """Runs the jobs, and the cleaning of dead sessions, while it is on."""

    def __init__(self, jobs: Housekeeping, session: Session, *, allowed: bool = True) -> None:
        """Prepare, switched off.

        Args:
            jobs: What to run.
            session: Whose heartbeat cleans up after the dead.
            allowed: False for a mount that changes nothing: it stays off.
        """
        self._jobs = jobs
        self._session = session
        self._allowed = allowed
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<JobSwitch {'off' if self._task is None else 'on'}>"

    @property
    def on(self) -> bool:
        """Whether the jobs run."""
        return self._task is not None

    async def set(self, on: bool) -> None:
        """Start the jobs, or end them; what a job leaves half done goes on in its next run."""
        self._session.clean_others = on
        if on and self._allowed and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="jobs")
        elif not on and self._task is not None:
            task, self._task = self._task, None
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    async def catch_up(self) -> None:
        """Do now what a former server of this mount had begun."""
        await self._jobs.catch_up()

    async def _run(self) -> None:
        """Run the jobs; one that is fenced stops them, and the heartbeat the server."""
        try:
            await self._jobs.run()
        except* FencedError as group:
            log.warning("background jobs stop: %s", group.exceptions[0])
