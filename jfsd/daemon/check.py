"""What stands between a mount and its configuration: found out before anything is done.

Everything that a start, a reload or a hand-over needs is tried, and nothing is changed. All
that is found is told at once, not only the first. The mount itself is not looked at: a mount
whose server is away lets everybody wait.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jfsd import __version__
from jfsd.config.credentials import with_credentials
from jfsd.config.flags import Change
from jfsd.config.runtime import MountRecord, find, records
from jfsd.config.settings import Difference, MountSettings, settings_from_texts
from jfsd.config.source import Source, Wanted, differences
from jfsd.config.volume import Volume
from jfsd.daemon.control_client import NoServerError, ask
from jfsd.daemon.state import LAYOUT
from jfsd.daemon.store import try_store
from jfsd.daemon.trial import volume_at
from jfsd.errors import ExitCode, JfsdError, RefusedError
from jfsd.fuse import mount as mounting
from jfsd.meta.url import parse_meta_url

SERVER_PATIENCE_S = 3.0
SERVER_SILENCE_S = 5.0


@dataclass(slots=True)
class Verdict:
    """What was found."""

    mountpoint: str
    mounted: bool
    """There is a mount that a reload, restart or upgrade would be about."""
    server: dict[str, Any] = field(default_factory=dict)
    """The server of the mount: version, layout, pid, phase, keeper; empty without one."""
    changes: list[Difference] = field(default_factory=list)
    """What the mount is now, what it shall be, and when that takes effect."""
    problems: list[JfsdError] = field(default_factory=list)
    """What is in the way."""

    @property
    def smooth(self) -> bool:
        """Whether all of it takes effect while programs go on."""
        return not self.problems and all(each.change is not Change.FIXED for each in self.changes)


def live_mount(source: Source) -> MountRecord | None:
    """Return the record of the mount that the source is about, None if nothing is mounted.

    A mount made from the same file comes first: the file may name another place by now.
    """
    mounted = [record for record in records() if mounting.find(record.mountpoint)]
    for record in mounted:
        if source.config and record.source.get("config") == source.config:
            return record
    place = source.mountpoint or source.load().mountpoint
    with suppress(RefusedError):  # it does not exist
        place = mounting.resolve(place)
    here = find(place)
    return here if here in mounted else None


def refuse_path_on_mount(path: str, what: str) -> None:
    """Return if the path, as it is written, does not lead into a mount of jfsd.

    Raises:
        RefusedError: It does; to look at it could take for ever.
    """
    for entry in mounting.mounts():
        below = path == entry.path or path.startswith(entry.path.rstrip("/") + "/")
        if below and entry.fstype.endswith(mounting.SUBTYPE):
            raise RefusedError(
                ExitCode.USAGE,
                f"{what} {path}",
                f"lies on a mount of jfsd ({entry.path})",
                "keep it on a local disk",
            )


def examine(source: Source, record: MountRecord | None) -> Verdict:
    """Return what is in the way of what the source says, and what differs from the mount.

    Raises:
        RefusedError: The configuration itself is wrong.
    """
    wanted = source.load()
    verdict = Verdict(wanted.mountpoint, record is not None)
    try:
        wanted = wanted._replace(mountpoint=mounting.resolve(wanted.mountpoint))
    except RefusedError as error:
        verdict.problems.append(error)
    environ: Mapping[str, str] = os.environ
    if record is None:
        _check_place(wanted, verdict)
    else:
        environ = {**os.environ, **record.passwords}
        verdict.mountpoint = record.mountpoint
        _check_server(record, verdict)
        _compare(record, wanted, verdict)
    verdict.problems += unusable_directories(wanted.settings)
    asyncio.run(_check_volume(wanted, record, environ, verdict))
    return verdict


def unusable_directories(settings: MountSettings) -> Iterator[RefusedError]:
    """Yield what is wrong with the directories of the cache; none of them is made."""
    if settings.memory_cache or not settings.cache_size_bytes:
        return
    for path in settings.cache_dirs:
        try:
            refuse_path_on_mount(path, "--cache-dir")
            _check_writable(path)
        except RefusedError as error:
            yield error


def _check_writable(path: str) -> None:
    place = Path(path)
    try:
        while not place.exists():
            place = place.parent
        rule = "" if place.is_dir() else f"cannot be made, {place} is no directory"
    except OSError as error:
        rule = f"cannot be looked at ({error.strerror})"
    if not rule and not os.access(place, os.W_OK | os.X_OK):
        rule = "may not be written to by this user, or lies on a read-only file system"
    if rule:
        raise RefusedError(ExitCode.USAGE, f"--cache-dir {path}", rule, "name another, or memory")


def _check_place(wanted: Wanted, verdict: Verdict) -> None:
    """Note why nothing could be mounted; what is mounted there is not looked at."""
    if verdict.problems:
        return
    place = wanted.mountpoint
    entry = mounting.find(place)
    if entry is not None:
        verdict.problems.append(
            RefusedError(
                ExitCode.ALREADY_MOUNTED,
                place,
                f"is a mount ({entry.source}, {entry.fstype}) of which this user finds no record",
                "ask as the user of its server or with its JFSD_RUNTIME_DIR, or unmount it",
            )
        )
        return
    try:
        mounting.check_mountpoint(place, nonempty=wanted.settings.fuse.nonempty)
    except RefusedError as error:
        verdict.problems.append(error)


def _check_server(record: MountRecord, verdict: Verdict) -> None:
    verdict.server = {"version": record.version, "layout": record.layout, "pid": record.pid}
    try:
        status = ask(
            record.mountpoint,
            {"do": "status"},
            patience_s=SERVER_PATIENCE_S,
            silence_s=SERVER_SILENCE_S,
        ).result["mount"]
    except NoServerError as error:
        verdict.problems.append(error)
        return
    verdict.server |= {name.lower(): status[name] for name in ("Pid", "Phase", "Keeper")}
    if not status["Keeper"]:
        verdict.problems.append(
            RefusedError(
                ExitCode.NOT_SMOOTH,
                record.mountpoint,
                "nobody keeps its descriptors, so that it ends with its server",
                "reload it; to be able to restart it, mount it with -d or as a service",
            )
        )


def _compare(record: MountRecord, wanted: Wanted, verdict: Verdict) -> None:
    """Note what differs between the mount and what it shall be."""
    try:
        live = settings_from_texts(record.options)
    except RefusedError as error:
        verdict.problems.append(error)
        return
    now = Wanted(record.meta_url, record.mountpoint, live)
    verdict.changes += differences(now, wanted)
    if record.version != __version__:
        verdict.changes.append(Difference("version", record.version, __version__, Change.RESTART))
    if record.layout != LAYOUT:
        verdict.changes.append(
            Difference("layout of the state", str(record.layout), str(LAYOUT), Change.FIXED)
        )


async def _check_volume(
    wanted: Wanted, record: MountRecord | None, environ: Mapping[str, str], verdict: Verdict
) -> None:
    """Note what a server of this version would not find, or not use.

    Raises:
        RefusedError: The metadata URL is wrong.
    """
    parse_meta_url(wanted.meta_url, with_credentials(environ))
    try:
        volume = await volume_at(wanted.meta_url, environ)
        volume.check_mountable(read_only=wanted.settings.read_only)
    except JfsdError as error:
        verdict.problems.append(error)
        return
    if record is not None and record.uuid != volume.uuid:
        before, after = f"{record.name} {record.uuid}", f"{volume.name} {volume.uuid}"
        verdict.changes.append(Difference("volume", before, after, Change.FIXED))
    try:
        await _check_store(volume, wanted.settings)
    except JfsdError as error:
        verdict.problems.append(error)


async def _check_store(volume: Volume, settings: MountSettings) -> None:
    for option, path in (
        ("--access-key-file", settings.access_key_file),
        ("--secret-key-file", settings.secret_key_file),
        ("--session-token-file", settings.session_token_file),
    ):
        refuse_path_on_mount(path, option)
    await try_store(volume, settings)
