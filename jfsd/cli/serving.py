"""What `jfsd mount` does once its words are read: serve here, or under a holder.

Nothing here needs click: see `jfsd.cli.words`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging import Handler
from pathlib import Path

from jfsd import log
from jfsd.cli.argv import hide
from jfsd.cli.mends import say
from jfsd.cli.source import source_of
from jfsd.config.credentials import password_of
from jfsd.config.flags import BY_NAME, Value
from jfsd.config.fuseopts import check_allow_other
from jfsd.config.settings import MountSettings
from jfsd.config.source import Source, Wanted, last_wanted
from jfsd.errors import ExitCode, RefusedError
from jfsd.systemd.fdstore import promised
from jfsd.systemd.unit import stderr_is_journal

FUSE_CONF = Path("/etc/fuse.conf")


def serve(
    where: Sequence[str], config: str | None, background: bool, overrides: Mapping[str, Value]
) -> int | None:
    """Do what `jfsd mount` was asked for; return the exit code of a server in the foreground.

    Args:
        where: META-URL and MOUNTPOINT, or what a file makes of fewer words.
        config: The file that was named, if one was.
        background: Return when the mount is served.
        overrides: Options that were given, by the name of their row.

    Raises:
        RefusedError: It cannot be done.
    """
    hide([password_of(word) for word in where])
    source = source_of(where, config, overrides)
    (meta_url, mountpoint, settings), set_aside = _load(source)
    log.about(mountpoint=mountpoint)
    log.configure(settings.log_level, _journal())
    if background:
        _mount_background(source, meta_url, mountpoint, settings)
        return None
    place = _check_place(mountpoint, settings)
    from jfsd.daemon.app import run_mount  # noqa: PLC0415 (the greater part of a start)

    return run_mount(meta_url, place, settings, source, set_aside=set_aside)


def _load(source: Source) -> tuple[Wanted, str]:
    """Return what is wanted; and why it is not what the file says, if the file is broken.

    A live mount is not given up for that: it goes on as its last server had it.

    Raises:
        RefusedError: There is nothing to go on with, or another server does.
    """
    try:
        return source.load(), ""
    except RefusedError as error:
        from jfsd.daemon.holder_child import STANDBY_VARIABLE  # noqa: PLC0415 - a rare case

        alone = "fuse" in promised() and STANDBY_VARIABLE not in os.environ
        last = last_wanted(source) if alone else None
        if last is None:
            raise
        log.configure(last.settings.log_level)
        set_aside = f"the former options are used: {error}"
        logging.getLogger(__name__).warning("%s", set_aside)
        return last, set_aside


def _journal() -> Handler | None:
    """Return what logs to the journal, if that is where stderr goes."""
    if not stderr_is_journal():
        return None
    from jfsd.systemd.journal import JournalHandler  # noqa: PLC0415

    return JournalHandler()


def _mount_background(
    source: Source, meta_url: str, mountpoint: str, settings: MountSettings
) -> None:
    from jfsd.daemon.background import Background, log_of, mount_background  # noqa: PLC0415
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    place = mounting.resolve(mountpoint)
    _check_privilege(place, settings)
    # What a file says is left to the file: the next server reads it again.
    words = (source.meta_url, place if source.mountpoint else "")
    wanted = Background(
        meta_url,
        password_of(source.meta_url),
        place,
        settings,
        _arguments(source),
        tuple(filter(None, words)),
        source.left_to_file,
    )
    outcome = mount_background(wanted)
    for change in outcome.set_aside:
        say(f"jfsd: {change}: takes effect after umount and a new mount")
    if outcome.took_over:
        phases = " ".join(f"{k}={v}" for k, v in outcome.phases.items() if k.endswith("_ms"))
        say(f"jfsd: server {outcome.server} has taken over {place} ({phases})", err=False)
    else:
        say(f"jfsd: server {outcome.server} serves {place}; its log is {log_of(place)}", err=False)


def _arguments(source: Source) -> list[str]:
    """Return the given options again, for a server with another working directory."""
    config = [f"--config={source.config}"] if source.config else []
    return config + [BY_NAME[name].argument(value) for name, value in source.overrides.items()]


def _check_place(mountpoint: str, settings: MountSettings) -> str:
    """Return the resolved mount point, before anything is connected or changed."""
    from jfsd.daemon.takeover import FUSE, INIT  # noqa: PLC0415
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    if not {FUSE, INIT}.isdisjoint(promised()):
        # A live mount is handed to us: nobody serves it, so nobody may look at it.
        with suppress(RefusedError):  # it says itself where it is
            return mounting.resolve(mountpoint)
        return mountpoint
    place = mounting.resolve(mountpoint)
    mounting.check_mountpoint(place, nonempty=settings.fuse.nonempty)
    _check_privilege(place, settings)
    return place


def _check_privilege(place: str, settings: MountSettings) -> None:
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    os.close(mounting.open_device())
    if os.geteuid() != 0:
        text = FUSE_CONF.read_text(encoding="utf-8") if FUSE_CONF.exists() else ""
        check_allow_other(settings.fuse, os.geteuid(), text)
    if not mounting.may_mount():
        raise RefusedError(
            ExitCode.NO_PRIVILEGE,
            place,
            "may not be mounted on without the capability CAP_SYS_ADMIN",
            "run as root, in a container with that capability",
        )
