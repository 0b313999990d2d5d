"""`jfsd mount -d`: mount under a holder; on a mount that is live, take it over.

What is live is never stacked upon, and never ended by a start that cannot go on with it: all
differences are named while the running server serves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from jfsd.config.settings import Difference, MountSettings, diff
from jfsd.daemon.holder import WATCHDOG_S, start_holder
from jfsd.daemon.holder_link import HolderClient
from jfsd.daemon.holder_place import HeldError, HolderError, Place
from jfsd.daemon.program import module_command
from jfsd.errors import ExitCode, RefusedError
from jfsd.fuse import mount as mounting
from jfsd.record import Record

_MEETING_S = 3.0
"""How long a live mount whose holder was killed may take to have a new one."""

_START_S = 60.0


class Background(Record):
    """A mount to be served in the background."""

    meta_url: str
    password: str
    """What stands in the URL as its password; it travels in the environment instead."""
    mountpoint: str
    """Absolute and resolved."""
    settings: MountSettings
    arguments: Sequence[str]
    """Options of the server's command line, without relative paths."""
    words: Sequence[str]
    """META-URL and MOUNTPOINT, but for what a configuration file says."""
    may_keep: Sequence[str] = ()
    """Fixed options in which a mount that is live may differ, since a file asks for them."""

    def command(self, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Return the server's command line and environment; no secret is an argument."""
        words, env = list(self.words), dict(environ)
        if self.password:
            words = [word.replace(f":{self.password}@", "@", 1) for word in words]
            env["REDIS_PASSWORD"] = unquote(self.password)
        return [*module_command("jfsd"), "mount", *self.arguments, *words], env


class Outcome(Record):
    """What became of it."""

    server: int
    took_over: bool
    phases: dict[str, Any]
    set_aside: Sequence[Difference] = ()
    """Options of the file that the mount, which was there, cannot take."""


def mount_background(wanted: Background) -> Outcome:
    """Return when the mount is served as it is wanted.

    Raises:
        RefusedError: It cannot be; what was there before is there still.
    """
    holder = _find_holder(wanted.mountpoint)
    if holder is not None:
        with holder:
            return _take_over(holder, wanted)
    mounting.check_mountpoint(wanted.mountpoint, nonempty=wanted.settings.fuse.nonempty)
    argv, env = wanted.command(os.environ)
    try:
        started = start_holder(
            wanted.mountpoint,
            argv,
            env,
            _START_S,
            watchdog_s=WATCHDOG_S,
            log_level=wanted.settings.log_level,
        )
    except HeldError:
        raise _busy(wanted.mountpoint) from None
    except HolderError as error:
        raise refusal(error) from error
    return Outcome(started.server, False, {})


def _find_holder(mountpoint: str) -> HolderClient | None:
    """Return the holder of what is mounted there, None if nothing is.

    Raises:
        RefusedError: Something is mounted that no holder keeps.
    """
    end_s = time.monotonic() + _MEETING_S
    while (holder := HolderClient.find(mountpoint)) is None:
        entry = mounting.find(mountpoint)
        if entry is None or not entry.fstype.endswith(mounting.SUBTYPE):
            return None
        if mounting.is_dead(mountpoint):
            return None
        if time.monotonic() > end_s:
            raise RefusedError(
                ExitCode.ALREADY_MOUNTED,
                mountpoint,
                "is served, but not under a holder of `jfsd mount -d`",
                "restart the service that serves it (systemctl restart), or unmount it first",
            )
        time.sleep(0.1)
    return holder


def _take_over(holder: HolderClient, wanted: Background) -> Outcome:
    if holder.status()["stopping"]:
        raise _busy(wanted.mountpoint)
    set_aside = _check_live(holder, wanted)
    argv, env = wanted.command(os.environ)
    try:
        answer = holder.upgrade(argv, env, warm=True, ready_s=_START_S)
    except HolderError as error:
        raise refusal(error) from error
    return Outcome(answer["pid"], True, answer["phases"], set_aside)


def _check_live(holder: HolderClient, wanted: Background) -> list[Difference]:
    """Return if the mount that is live can be served as it is wanted, and but for what."""
    # A fresh mount, whose start somebody waits for, needs none of these.
    import asyncio  # noqa: PLC0415

    from jfsd.daemon.state import read_header  # noqa: PLC0415
    from jfsd.daemon.takeover import STATE, check_same_mount, keeping_fixed  # noqa: PLC0415
    from jfsd.daemon.trial import volume_at  # noqa: PLC0415

    kept = holder.descriptors()
    try:
        fds = [fd for name, fd in kept if name == STATE]
        if not fds:
            raise _busy(wanted.mountpoint)  # it is only just being mounted
        header, _ = read_header(fds[0])
    finally:
        for _, fd in kept:
            os.close(fd)

    uuid = asyncio.run(volume_at(wanted.meta_url)).uuid
    settings = keeping_fixed(wanted.settings, header, wanted.may_keep)
    check_same_mount(header, wanted.mountpoint, uuid, settings)
    return diff(settings, wanted.settings)


def refusal(error: HolderError) -> RefusedError:
    """Return what a server said when it gave up, as if this process had found it out."""
    words = str(error).removeprefix("jfsd: ")
    value, _, rest = words.partition(": ")
    rule, _, mend = rest.rpartition("; ")
    if not rule:
        value, rule, mend = "the server", words, "see its log"
    return RefusedError(error.exit_code, value, rule, mend)


def log_of(mountpoint: str) -> str:
    """Return where a server in the background writes to."""
    return os.fspath(Place.of(mountpoint).log)


def _busy(mountpoint: str) -> RefusedError:
    return RefusedError(
        ExitCode.ALREADY_MOUNTED,
        mountpoint,
        "is being mounted, or unmounted, by another command",
        "try again when that has ended",
    )
