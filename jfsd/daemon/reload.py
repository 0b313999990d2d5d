"""SIGHUP: read the configuration again and go by it, while the mount is served.

What a served mount can take is applied at once; nothing is parked, drained or closed, so
no program waits. The rest is named: options that take a restart, and those that the kernel
fixed when the mount was made, which stay as they are. A configuration that cannot be read
changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jfsd import log as logs
from jfsd.config.flags import BY_NAME, Change
from jfsd.config.settings import Difference, MountSettings
from jfsd.config.source import Source, Wanted, differences
from jfsd.errors import JfsdError
from jfsd.fuse import mount as mounting
from jfsd.record import Record, replace

if TYPE_CHECKING:
    from jfsd.daemon.datapath import DataPath
    from jfsd.daemon.exporter import Exporter
    from jfsd.daemon.jobs import JobSwitch
    from jfsd.daemon.store import VolumeStore
    from jfsd.meta.session import Session
    from jfsd.systemd.notify import Notifier
    from jfsd.vfs.vfs import Vfs

log = logging.getLogger(__name__)


class Report:
    """What a reload did; each option is in one list, none if nothing has changed."""

    def __init__(self, error: str = "") -> None:
        self.applied: list[Difference] = []
        self.needs_restart: list[Difference] = []
        self.refused: list[Difference] = []
        """Fixed when the mount was made."""
        self.failed: list[tuple[Difference, str]] = []
        """Could not be applied, and why; the old value stays."""
        self.error = error
        """Why the configuration as a whole was not used."""

    @property
    def complete(self) -> bool:
        """Whether the mount now is as the configuration says."""
        return not (self.error or self.refused or self.needs_restart or self.failed)

    def __str__(self) -> str:
        if self.error:
            return f"reload refused: {self.error}"
        parts = [
            f"{title}{', '.join(map(str, found))}"
            for title, found in (
                ("", self.applied),
                ("needs a restart: ", self.needs_restart),
                ("refused, fixed while mounted: ", self.refused),
                ("refused: ", [f"{one.option} ({why})" for one, why in self.failed]),
            )
            if found
        ]
        return "reloaded: " + ("; ".join(parts) or "nothing has changed")

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON can hold it."""
        return {
            "applied": [_named(each) for each in self.applied],
            "needs_restart": [_named(each) for each in self.needs_restart],
            "refused": [_named(each) for each in self.refused],
            "failed": [{**_named(each), "reason": why} for each, why in self.failed],
            "error": self.error,
        }


def _named(difference: Difference) -> dict[str, str]:
    return {
        "option": difference.option,
        "before": difference.before,
        "after": difference.after,
    }


Apply = Callable[[MountSettings, MountSettings], Awaitable[None]]
"""Makes a part go by the second settings instead of the first; all or nothing."""


class Step(Record):
    """Options that are applied together."""

    names: tuple[str, ...]
    apply: Apply


class Tuner:
    """The parts of a served mount that can take other values, and which option is whose."""

    def __init__(
        self,
        *,
        vfs: Vfs,
        path: DataPath,
        store: VolumeStore,
        session: Session,
        jobs: JobSwitch,
        device: str,
        exporter: Exporter,
    ) -> None:
        self._vfs = vfs
        self._path = path
        self._store = store
        self._session = session
        self._jobs = jobs
        self._device = device
        self._exporter = exporter
        self.steps: tuple[Step, ...] = (
            Step(("log-level",), self._log_level),
            Step(("no-syslog", "backup-meta"), self._nothing),
            Step(("attr-cache", "entry-cache", "dir-entry-cache", "open-cache"), self._times),
            Step(("heartbeat",), self._heartbeat),
            Step(("no-bgjob",), self._background),
            Step(("max-readahead",), self._readahead),
            Step(("prefetch",), self._prefetch),
            Step(("buffer-size",), self._buffer),
            Step(
                (
                    *("get-timeout", "put-timeout", "io-retries", "max-uploads"),
                    *("max-downloads", "upload-limit", "download-limit"),
                ),
                self._limits,
            ),
            Step(("metrics",), self._metrics),
            Step(("cache-dir", "cache-size", "free-space-ratio"), self._cache),
            Step(
                (
                    *("storage", "bucket", "access-key-file"),
                    *("secret-key-file", "session-token-file"),
                ),
                self._move,
            ),
        )
        """In this order: what may wait for a store comes last."""

    async def refresh(self) -> None:
        """Read files of keys again, whose names have not changed.

        Raises:
            JfsdError: They hold keys that do not open the store; the old ones stay.
        """
        await self._store.move(self._store.settings)

    async def _log_level(self, _: MountSettings, new: MountSettings) -> None:
        logs.set_level(new.log_level)

    async def _nothing(self, _: MountSettings, __: MountSettings) -> None:
        """Options without an effect."""

    async def _times(self, _: MountSettings, new: MountSettings) -> None:
        self._vfs.set_options(
            replace(
                self._vfs.options,
                attr_timeout_s=new.attr_cache_s,
                entry_timeout_s=new.entry_cache_s,
                dir_entry_timeout_s=new.dir_entry_cache_s,
                open_cache_s=new.open_cache_s,
            )
        )

    async def _heartbeat(self, _: MountSettings, new: MountSettings) -> None:
        self._session.set_heartbeat(new.heartbeat_s)

    async def _background(self, _: MountSettings, new: MountSettings) -> None:
        await self._jobs.set(not new.no_bgjob)

    async def _readahead(self, _: MountSettings, new: MountSettings) -> None:
        self._path.reader.set_max_readahead(new.max_readahead_bytes)
        mounting.set_readahead(self._device, new.max_readahead_bytes)

    async def _prefetch(self, _: MountSettings, new: MountSettings) -> None:
        self._path.blocks.prefetch_limit = new.prefetch

    async def _buffer(self, _: MountSettings, new: MountSettings) -> None:
        self._path.set_buffer(new.buffer_size_bytes)

    async def _limits(self, _: MountSettings, new: MountSettings) -> None:
        self._store.limit(new)
        self._path.reader.io_retries = new.io_retries
        self._path.writer.set_max_uploads(new.max_uploads)
        self._path.blocks.set_max_downloads(new.max_downloads)

    async def _metrics(self, _: MountSettings, new: MountSettings) -> None:
        await self._exporter.move(new.metrics)

    async def _cache(self, old: MountSettings, new: MountSettings) -> None:
        await self._path.set_cache(old, new)

    async def _move(self, _: MountSettings, new: MountSettings) -> None:
        await self._store.move(new)


class Reload:
    """Brings a served mount to what its source says; one at a time, none is lost."""

    def __init__(
        self,
        source: Source,
        now: Wanted,
        tuner: Tuner,
        notifier: Notifier,
        *,
        status: str,
        on_change: Callable[[MountSettings], None],
    ) -> None:
        """Prepare.

        Args:
            source: What to read.
            now: What is mounted where (resolved), and what it goes by.
            tuner: What to apply it to.
            notifier: Told of the beginning and the end.
            status: See there.
            on_change: Told what the mount goes by after a reload that applied something.
        """
        self._source = source
        self._tuner = tuner
        self._notifier = notifier
        self._now = now
        self.status = status
        """What the service says of itself when there is nothing else to say."""
        self._on_change = on_change
        self._again = False
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.last: Report | None = None
        """What the last reload did."""

    @property
    def settings(self) -> MountSettings:
        """What the mount goes by."""
        return self._now.settings

    def request(self) -> None:
        """Begin a reload; one that is under way is followed by another."""
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._requested(), name="reload")

    async def close(self) -> None:
        """End a reload that is under way, between two options."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def run(self) -> Report:
        """Reload once, and return what came of it; the service is ready again in any case."""
        async with self._lock:
            await asyncio.to_thread(self._notifier.reloading)  # a slow listener may not stop us
            report = Report(error="it was interrupted")
            try:
                report = await self._reload()
            finally:
                self.last = report
                status = self.status if report.complete else f"{self.status}; {report}"
                await asyncio.to_thread(self._notifier.ready, status)
            log.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
            return report

    async def _requested(self) -> None:
        while self._again:
            self._again = False
            try:
                await self.run()
            except Exception:
                log.exception("the reload failed")

    async def _reload(self) -> Report:
        report = Report()
        try:
            # In a thread: the file may lie on a disk that hangs, or on this very mount.
            wanted = await asyncio.to_thread(_load, self._source)
        except JfsdError as error:
            report.error = str(error)
            return report
        found = differences(self._now, wanted)
        report.needs_restart = [each for each in found if each.change is Change.RESTART]
        report.refused = [each for each in found if each.change is Change.FIXED]
        before = self._now.settings
        for step in self._tuner.steps:
            await self._apply(step, wanted.settings, found, report)
        if not any(each.option.endswith("-file") for each in report.applied):
            await self._refresh(report)
        if self._now.settings != before:
            self._on_change(self._now.settings)
        return report

    async def _apply(
        self, step: Step, wanted: MountSettings, found: Sequence[Difference], report: Report
    ) -> None:
        """Apply what differs of a step's options, all together or none."""
        options = {BY_NAME[name].option for name in step.names}
        changed = [each for each in found if each.option in options]
        if not changed:
            return
        old = self._now.settings
        new = old.taking(step.names, wanted)
        try:
            await step.apply(old, new)
        except (JfsdError, OSError) as error:
            report.failed += [(each, str(error)) for each in changed]
            return
        self._now = self._now._replace(settings=new)
        report.applied += changed

    async def _refresh(self, report: Report) -> None:
        try:
            await self._tuner.refresh()
        except JfsdError as error:
            keys = Difference("keys of the store", "", "", Change.LIVE)
            report.failed.append((keys, str(error)))


def _load(source: Source) -> Wanted:
    wanted = source.load()
    return wanted._replace(mountpoint=mounting.resolve(wanted.mountpoint))
