"""Whether a directory can be mounted on: asked before anything is connected or changed."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from jfsd.config.fuseopts import check_allow_other
from jfsd.config.runtime import kernel_mount, resolve_mountpoint
from jfsd.config.settings import MountSettings
from jfsd.errors import ExitCode, RefusedError

FUSE_DEVICE = Path("/dev/fuse")
FUSE_CONF = Path("/etc/fuse.conf")


def check_mountpoint(path: str, settings: MountSettings) -> str:
    """Return the absolute path of a directory that this process may mount on.

    Raises:
        RefusedError: Missing, no directory, not empty, a mount already, or not ours.
    """
    mountpoint = resolve_mountpoint(path)
    mounted = kernel_mount(mountpoint)
    _check_directory(mountpoint, dead_is_mounted=mounted is not None)
    if mounted is not None:
        raise RefusedError(
            ExitCode.ALREADY_MOUNTED,
            mountpoint,
            f"{mounted.source} ({mounted.kind}) is mounted there",
            "unmount it first with jfsd umount, or take another directory",
        )
    if not settings.fuse.nonempty and _has_entries(mountpoint):
        raise RefusedError(
            ExitCode.MOUNTPOINT_UNUSABLE,
            mountpoint,
            "is not empty, a mount would hide its files",
            "empty it, take another directory, or give -o nonempty",
        )
    return mountpoint


def check_privilege(settings: MountSettings) -> None:
    """Return if this process can mount with FUSE at all.

    Raises:
        RefusedError: No /dev/fuse, or neither root nor fusermount3 (NO_PRIVILEGE).
    """
    if not FUSE_DEVICE.exists():
        raise _no_privilege(
            str(FUSE_DEVICE), "is missing", "load the kernel's fuse module, or pass the device in"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise _no_privilege(
            str(FUSE_DEVICE), "may not be opened", "run as root or correct its mode"
        )
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise _no_privilege(
            "mount", "needs root or the program fusermount3", "run as root or install fuse3"
        )
    text = FUSE_CONF.read_text(encoding="utf-8") if FUSE_CONF.exists() else ""
    check_allow_other(settings.fuse, os.geteuid(), text)


def _check_directory(mountpoint: str, *, dead_is_mounted: bool) -> None:
    """Return if there is a directory; one that hides behind a dead mount counts."""
    try:
        if dead_is_mounted or Path(mountpoint).is_dir():
            return
        rule = "is not a directory" if os.path.lexists(mountpoint) else "does not exist"
    except OSError as error:
        rule = "is a dead mount" if error.errno == errno.ENOTCONN else str(error.strerror)
    mend = "take a directory" if rule == "is not a directory" else f"run mkdir -p {mountpoint}"
    raise RefusedError(ExitCode.MOUNTPOINT_UNUSABLE, mountpoint, rule, mend)


def _has_entries(mountpoint: str) -> bool:
    try:
        with os.scandir(mountpoint) as entries:
            return next(entries, None) is not None
    except OSError as error:
        raise RefusedError(
            ExitCode.MOUNTPOINT_UNUSABLE,
            mountpoint,
            f"cannot be read ({error.strerror})",
            "mount as its owner or as root",
        ) from error


def _no_privilege(value: str, rule: str, mend: str) -> RefusedError:
    return RefusedError(ExitCode.NO_PRIVILEGE, value, rule, mend)
