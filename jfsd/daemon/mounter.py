"""What of a service needs privileges: mounting and unmounting, and nothing else.

The unit runs this as root for a moment, the server beside it never is. `start` mounts, reads
the kernel's INIT and gives both to the service manager to keep; `tune` sets at a reload what
only root can; `stop` unmounts while the server still serves; `clear` takes away what a unit
that has failed for good left behind.

`start` is part of the pause of every restart, where there is nothing for it to do but to find
that out: therefore what it needs then is imported here, and everything else where it is used.
The mount point itself is never looked at before that, for nobody may be serving it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jfsd.systemd import unit as service

if TYPE_CHECKING:
    from jfsd.config.settings import MountSettings
    from jfsd.errors import RefusedError
    from jfsd.fuse.mount import Entry
    from jfsd.systemd.notify import Notifier

USAGE = """\
usage: jfsd-mounter start|tune|stop|clear UNIT MOUNTPOINT CONFIG

Mounts and unmounts for jfs@.service, which runs it; not for people.
"""

MIN_KEPT = 2
"""What a live mount has in the store at least: `fuse` and what tells about it."""

_MANAGER_NAMESPACE = "/proc/1/ns/mnt"
_CLONE_NEWNS = 0x20000
_BARRIER_S = 20.0
_RETRY_S = 0.05
_SLOWEST_RETRY_S = 0.5
_MARGIN_S = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one verb; return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) != 4 or words[0] not in VERBS:
        sys.stderr.write(USAGE)
        return 2
    verb, *rest = words
    try:
        return VERBS[verb](*rest)
    except OSError as error:
        return _tell(f"{rest[1]}: {verb} failed ({error}); see the journal of {rest[0]}")


def start(unit: str, mountpoint: str, config: str) -> int:
    """See to it that the service manager keeps a mount for the server to serve.

    A mount that cannot be made is no failure here: the reason is given to the server
    instead, whose exit status says whether trying again makes sense.
    """
    if service.kept(unit) >= MIN_KEPT:
        return 0  # live, or dead with data that only a server can save
    from jfsd.errors import RefusedError
    from jfsd.systemd.notify import Notifier

    notifier = Notifier.from_environ()
    _forget(notifier)
    try:
        _mount(notifier, unit, mountpoint, config)
    except RefusedError as error:
        _refuse(notifier, error)
        return _tell(str(error), 0)
    return 0


def tune(unit: str, mountpoint: str, config: str) -> int:
    """Let the kernel read ahead as the configuration says, which a reload may have changed."""
    del unit
    from jfsd.errors import RefusedError
    from jfsd.fuse import mount as mounting

    try:
        settings = _settings(config)
    except RefusedError:
        return 0  # the server says why
    _enter_managers_namespace()
    entry = mounting.find(mountpoint)
    if entry is not None and _is_ours(entry):
        mounting.set_readahead(entry.device, settings.max_readahead_bytes)
    return 0


def stop(unit: str, mountpoint: str, config: str) -> int:
    """Unmount while the server serves, if the unit is to stop; a restart changes nothing.

    Files that are open are waited for as configured. Then the mount is detached: it is out
    of sight, and the server goes on for those who have files of it.
    """
    if service.job(unit) != "stop":
        return 0
    from jfsd.errors import ExitCode, RefusedError
    from jfsd.systemd.notify import Notifier

    _enter_managers_namespace()
    notifier = Notifier.from_environ()
    try:
        patience_s = _settings(config).stop_wait_s
    except RefusedError as error:
        _tell(str(error))
        patience_s = 0.0
    try:
        if not _unmounted(mountpoint, patience_s, notifier):
            _detach(mountpoint)
            _tell(f"{mountpoint}: files are open; detached, they can be used until they are closed")
    except RefusedError as error:
        if error.exit_code != ExitCode.NOT_MOUNTED:
            return _tell(str(error))
    return 0


def clear(unit: str, mountpoint: str, config: str) -> int:
    """Detach the mount of a unit that has failed for good; say what to do."""
    del config
    if service.properties(unit, "ActiveState").get("ActiveState") != "failed":
        return 0  # since 254, systemd comes here before every automatic restart, too
    from jfsd.errors import RefusedError
    from jfsd.fuse import mount as mounting

    instance = unit.partition("@")[2].removesuffix(".service")
    _enter_managers_namespace()
    _tell(
        f"{unit}: has failed and is not started again by itself; its last lines say why: "
        f"journalctl -n 20 -u {unit}; then: systemctl restart {unit}"
    )
    entry = mounting.find(mountpoint)
    if entry is None or not _is_ours(entry) or not mounting.is_dead(mountpoint):
        return 0
    try:
        mounting.umount(mountpoint, lazy=True)
    except RefusedError as error:
        return _tell(str(error))
    _tell(f"{mountpoint}: nobody serves it any more; detached (instance {instance})")
    return 0


VERBS = {"start": start, "tune": tune, "stop": stop, "clear": clear}


# -- start ------------------------------------------------------------------------------------


def _mount(notifier: Notifier, unit: str, mountpoint: str, config: str) -> None:
    """Mount, and have the service manager keep it.

    Raises:
        RefusedError: The configuration or the mount point is wrong, or somebody else's.
    """
    from jfsd.daemon.takeover import FUSE, INIT, Fresh
    from jfsd.errors import ExitCode, RefusedError
    from jfsd.fuse import mount as mounting
    from jfsd.record import replace

    settings = _settings(config)
    _enter_managers_namespace()
    place = mounting.resolve(mountpoint)
    if place != mountpoint:
        raise RefusedError(
            ExitCode.MOUNTPOINT_UNUSABLE,
            mountpoint,
            f"is a symbolic link to {place}",
            f"use the unit of that path: jfs@$(systemd-escape --path {place}).service",
        )
    asked = settings.fuse.allow_other
    options = replace(
        settings.fuse,
        read_only=settings.read_only,
        allow_other=True if asked is None else asked,
    )
    name = unit.partition("@")[2].removesuffix(".service")
    mounted = mounting.mount(place, name, options)
    try:
        mounting.set_readahead(mounted.device, settings.max_readahead_bytes)
        fresh = Fresh(mounted.fd, mounted.device, place, mounted.init_in)
        note = fresh.write()
        # The note first: alone it is nothing, while a mount alone could not be served.
        notifier.store(INIT, note)
        notifier.store(FUSE, mounted.fd)
        notifier.barrier(_BARRIER_S)
        _check_kept(unit)
    except BaseException:
        _detach(place)
        raise


def _check_kept(unit: str) -> None:
    """Return if the service manager keeps what it was given; it says nothing if not.

    Raises:
        RefusedError: It does not.
    """
    from jfsd.errors import ExitCode, RefusedError

    if service.kept(unit) < MIN_KEPT:
        raise RefusedError(
            ExitCode.USAGE,
            unit,
            "does not keep the descriptors of its mount",
            "remove FileDescriptorStoreMax= and NotifyAccess= from its drop-ins",
        )


def _refuse(notifier: Notifier, error: RefusedError) -> None:
    """Give the reason to the server, which ends with it."""
    from jfsd.daemon.takeover import INIT, write_refusal

    notifier.store(INIT, write_refusal(error))
    notifier.barrier(_BARRIER_S)


def _forget(notifier: Notifier) -> None:
    """Drop what an earlier attempt left in the store: less than a mount."""
    from jfsd.daemon.takeover import INIT, NAMES, REQUESTS

    for name in (INIT, *NAMES, REQUESTS):
        notifier.remove(name)


def _settings(config: str) -> MountSettings:
    """Return the mount's settings.

    Raises:
        RefusedError: The file cannot be read, or is wrong.
    """
    from jfsd.config.file import read_config
    from jfsd.config.settings import settings_from

    return settings_from(read_config(config).values)


def _enter_managers_namespace() -> None:
    """See the mounts as the service manager, and so all programs, see them.

    A unit with a sandbox has a mount namespace of its own, in which what is mounted would be
    seen by nobody else.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(_MANAGER_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _CLONE_NEWNS) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), _MANAGER_NAMESPACE)
    finally:
        os.close(fd)


# -- stop -------------------------------------------------------------------------------------


def _unmounted(mountpoint: str, patience_s: float, notifier: Notifier) -> bool:
    """Return whether nothing is mounted there any more, after waiting for open files.

    Raises:
        RefusedError: It cannot be unmounted for another reason than open files.
    """
    import time

    from jfsd.errors import ExitCode, RefusedError
    from jfsd.fuse import mount as mounting

    end_s = time.monotonic() + patience_s
    notifier.extend_timeout(patience_s + _MARGIN_S)
    pause_s = _RETRY_S
    told = False
    while True:
        entry = mounting.find(mountpoint)
        if entry is None or not _is_ours(entry):
            return True
        try:
            mounting.umount(mountpoint)
        except RefusedError as error:
            if error.exit_code != ExitCode.BUSY:
                raise
        else:
            return True
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return False
        if not told:
            told = True
            notifier.status(f"stopping: waits up to {patience_s:.0f} s for open files")
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _SLOWEST_RETRY_S)


def _detach(mountpoint: str) -> None:
    from jfsd.fuse import mount as mounting

    mounting.umount(mountpoint, lazy=True)


def _is_ours(entry: Entry) -> bool:
    return entry.fstype.startswith("fuse")


def _tell(line: str, status: int = 1) -> int:
    """Write one line for the journal; return `status`."""
    sys.stderr.write(f"jfsd: {' '.join(line.split())}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
