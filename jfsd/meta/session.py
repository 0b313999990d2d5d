"""Sessions: how the clients of a volume know of each other, and who cleans up after the dead.

A session is registered with the second at which it expires, and refreshed at every heartbeat
(format.md §7). One that has expired is cleaned by any client: its locks are dropped, its
unlinked-but-open files deleted, its registration removed. Read-only mounts have no session and
write nothing; they only follow the volume's setting.

Crash story: after a SIGKILL the session stays registered until it expires (five heartbeats). The
process that takes the mount over goes on under the same id before that. If nobody does, another
client cleans it. Cleaning is restartable at any point: its registration goes last, and every step
refuses when the session has been refreshed meanwhile. A session id is lost, never used twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import time
from typing import TYPE_CHECKING, Final

import jfsd
from jfsd import clock
from jfsd.config.version import JUICEFS_LEVEL
from jfsd.config.volume import Volume
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.engine import RESULTS_KEPT_S, FencedError
from jfsd.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from jfsd.meta.engine import Engine

log = logging.getLogger(__name__)

SESSION_VERSION: Final = f"{JUICEFS_LEVEL}+jfsd.{jfsd.__version__}"
"""What we register as: parses under format.md §19, where the part behind `+` does not count."""

DEFAULT_HEARTBEAT_S: Final = 12.0
HEARTBEATS_TO_EXPIRY: Final = 5
FOREVER_S: Final = 365 * 86400
STALE_PER_RUN: Final = 1000
LEGACY_EXPIRY_S: Final = 300
LOCK_KEYS_PER_SCRIPT: Final = 200


class SessionInfo(Record):
    """What a session tells about itself; the reference's tools show it."""

    mount_point: str
    host_name: str
    addresses: tuple[str, ...]
    mount_time_ns: int
    process_id: int
    version: str = SESSION_VERSION

    @classmethod
    def of_this_process(cls, mount_point: str) -> SessionInfo:
        """Return the record of this process, mounted now."""
        return cls(mount_point, socket.gethostname(), _addresses(), clock.now_ns(), os.getpid())

    def to_json(self) -> bytes:
        """Return the value of hash `sessionInfos`."""
        fields = {
            "Version": self.version,
            "HostName": self.host_name,
            "IPAddrs": list(self.addresses),
            "MountPoint": self.mount_point,
            "MountTime": rfc3339(self.mount_time_ns),
            "ProcessID": self.process_id,
        }
        return json.dumps(fields, separators=(",", ":")).encode()


def rfc3339(time_ns: int) -> str:
    """Return a time in UTC as the reference writes it: RFC 3339, no zeros at the end."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{text}{fraction}Z"


class Session:
    """The session of one mount. `engine.sid` is set from `open` to `close`.

    Callbacks, set by the owner:
        on_volume: the setting has changed to this one.
        on_locks_lost: another client has cleaned our session; no lock is held any more.
    """

    def __init__(
        self,
        engine: Engine,
        info: SessionInfo,
        *,
        heartbeat_s: float = DEFAULT_HEARTBEAT_S,
    ) -> None:
        self.on_volume: Callable[[Volume], None] | None = None
        self.on_locks_lost: Callable[[], None] | None = None
        self.clean_others = True
        self._engine = engine
        self._info = info
        self._heartbeat_s = heartbeat_s
        self._changed = asyncio.Event()
        self._setting: bytes | None = None
        self._uuid = ""

    def set_heartbeat(self, heartbeat_s: float) -> None:
        """Change the interval; a beat follows at once and tells others when to expect the next."""
        self._heartbeat_s = heartbeat_s
        self._changed.set()

    async def load_volume(self) -> Volume:
        """Return the volume in the database, and follow its changes from here.

        Raises:
            RefusedError: VOLUME_MISSING, or what is there cannot be used.
        """
        setting = await self._engine.connection.call("GET", self._engine.keys.setting)
        if setting is None:
            raise _missing(self._engine.connection.url.redacted())
        volume = Volume.parse(setting)
        self._setting, self._uuid = setting, volume.uuid
        return volume

    async def open(self, sid: int = 0) -> int:
        """Be registered under a new id, or again under the one that a former process had.

        Returns:
            The session's id; 0 on a read-only mount, which has none.
        """
        if self._engine.read_only:
            return 0
        new = sid == 0
        if new:
            sid = await self._engine.connection.call("INCR", self._engine.keys.next_session)
        missing = await self._refresh(sid, replace=True)
        self._engine.sid = sid
        if missing and not new:
            self._lost()
        return sid

    async def beat(self) -> None:
        """Say that we live, follow the setting, and clean up after the dead when it is our turn.

        Raises:
            RefusedError: The volume is gone, is another one, or is newer than we understand:
                this mount must end.
            FencedError: A newer server owns the mount.
            OSError: Redis did not answer; the next beat tries again.
        """
        await self._follow_setting()  # first: what is not our volume must not be written to
        sid = self._engine.sid
        if sid and not self._engine.read_only and await self._refresh(sid, replace=False):
            self._lost()
        if self.clean_others and not self._engine.read_only:
            period_s = max(int(0.9 * self._heartbeat_s), 1)
            if await take_turn(self._engine, "lastCleanupSessions", period_s):
                await self.clean_stale()

    async def run(self) -> None:
        """Beat until cancelled.

        Raises:
            RefusedError: As `beat`.
            FencedError: As `beat`.
        """
        while True:
            pause_s = self._heartbeat_s or DEFAULT_HEARTBEAT_S
            pause_s *= random.uniform(0.95, 1.05)  # noqa: S311 - spreads load
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await self.beat()
            except FencedError:
                raise
            except OSError as error:
                log.warning("heartbeat of session %d failed: %s", self._engine.sid, error)

    async def close(self) -> None:
        """Leave nothing of the session and its mount behind. Call it when all data is flushed.

        Not for a process that hands its mount over: the session goes on.
        """
        sid, self._engine.sid = self._engine.sid, 0
        if sid:
            await self.clean(sid)
            await self._engine.forget_mount()

    async def clean_stale(self) -> list[int]:
        """Clean sessions that have expired; return the ids of those that are gone."""
        gone = []
        for sid in await self._stale():
            try:
                if await self.clean(sid, clock.now_ns() // 10**9):
                    gone.append(sid)
                    log.info("cleaned stale session %d", sid)
            except OSError as error:
                log.warning("stale session %d is kept for the next run: %s", sid, error)
        return gone

    async def clean(self, sid: int, expired_at_s: int | None = None) -> bool:
        """Drop everything that a session holds, and its registration.

        With `expired_at_s` only if it does not expire later than this second.

        Returns:
            False if it has come back to life, or something could not be cleaned.
        """
        guard = "" if expired_at_s is None else str(expired_at_s)
        try:
            while (await self._engine.run("session_unlock", "0", sid, guard, LOCK_KEYS_PER_SCRIPT))[
                0
            ]:
                pass
            await self._release_all(sid)
            await self._engine.run("session_end", "0", sid, guard)
        except BlockingIOError:
            return False
        return True

    async def _release_all(self, sid: int) -> None:
        """Delete the files that were open and unlinked in a session."""
        key = self._engine.keys.sustained(sid)
        for member in await self._engine.connection.call("SMEMBERS", key):
            (freed,) = await self._engine.run("release", "0", member, sid)
            if freed and self._engine.freed is not None:
                self._engine.freed(int(member), int(freed))

    async def _stale(self) -> list[int]:
        """Return ids of sessions that have expired, not ours."""
        keys, now_s = self._engine.keys, clock.now_ns() // 10**9
        limit = ("LIMIT", 0, STALE_PER_RUN)
        sids = await self._engine.connection.call(
            "ZRANGEBYSCORE", keys.all_sessions, "-inf", now_s, *limit
        )
        if not keys.prefix:
            sids += await self._engine.connection.call(
                "ZRANGEBYSCORE", keys.legacy_sessions, "-inf", now_s - LEGACY_EXPIRY_S, *limit
            )
        return [int(sid) for sid in sids if int(sid) != self._engine.sid]

    async def _refresh(self, sid: int, *, replace: bool) -> bool:
        """Register; return True if our registration was missing."""
        ahead_s = HEARTBEATS_TO_EXPIRY * self._heartbeat_s or FOREVER_S
        (missing,) = await self._engine.run(
            "session_refresh",
            "0",
            sid,
            int(clock.now_ns() / 10**9 + ahead_s),
            self._info.to_json(),
            int(replace),
            RESULTS_KEPT_S,
        )
        return bool(missing)

    def _lost(self) -> None:
        log.warning(
            "session %d had expired and was cleaned by another client: its locks are lost",
            self._engine.sid,
        )
        if self.on_locks_lost is not None:
            self.on_locks_lost()

    def _forsake(self) -> None:
        """Write nothing any more: the database is not our volume, our session's id another's."""
        self._engine.sid, self._engine.read_only = 0, True

    async def _follow_setting(self) -> None:
        setting = await self._engine.connection.call("GET", self._engine.keys.setting)
        if setting is None:
            self._forsake()
            raise _missing(self._engine.connection.url.redacted())
        if setting == self._setting:
            return
        volume = Volume.parse(setting)
        if self._uuid and volume.uuid != self._uuid:
            self._forsake()
            raise RefusedError(
                ExitCode.VOLUME_CONFLICT,
                f"volume {volume.name} ({volume.uuid})",
                f"is not the one that was mounted ({self._uuid})",
                "mount it anew",
            )
        volume.check_served(read_only=self._engine.read_only)
        self._setting, self._uuid = setting, volume.uuid
        if self.on_volume is not None:
            self.on_volume(volume)


async def take_turn(engine: Engine, counter: str, period_s: int) -> bool:
    """Return True if a job is due now and ours to do, for all clients together (format.md §17).

    Turns only limit how often a job runs; jobs tolerate overlap.
    """
    (ours,) = await engine.run("runlock", "0", counter, clock.now_ns() // 10**9, period_s)
    return bool(ours)


def _missing(url: str) -> RefusedError:
    return RefusedError(
        ExitCode.VOLUME_MISSING, url, "there is no volume", "make one with `jfsd format`"
    )


def _addresses() -> tuple[str, ...]:
    """Return the addresses that traffic leaves from; connecting a UDP socket sends nothing."""
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            found.append(probe.getsockname()[0])
    return tuple(found)
