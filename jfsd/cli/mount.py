"""`jfsd mount`: serve a volume at a directory, in the foreground."""

from __future__ import annotations

import os
from pathlib import Path

import click

from jfsd import log
from jfsd.cli.argv import hide, password_of
from jfsd.cli.options import flag_options, settings_of
from jfsd.config.flags import MOUNT_FLAGS, Value
from jfsd.config.fuseopts import check_allow_other
from jfsd.config.settings import MountSettings
from jfsd.errors import ExitCode, RefusedError
from jfsd.systemd.fdstore import promised

CAP_SYS_ADMIN = 21
FUSE_CONF = Path("/etc/fuse.conf")

EPILOG = """\b
Examples:
  jfsd mount redis://localhost/1 /mnt/jfs
  META_PASSWORD=... jfsd mount redis://db.internal/1 /mnt/jfs --cache-size 20G
  jfsd mount unix:///run/redis/redis.sock?db=1 /mnt/jfs --read-only -o noexec
  jfsd mount redis://localhost/1 /mnt/team --subdir /team --buffer-size 1G
"""


@click.command("mount", epilog=EPILOG)
@click.argument("meta_url", metavar="META-URL")
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
@flag_options(MOUNT_FLAGS)
def command(meta_url: str, mountpoint: str, **parameters: Value | None) -> int:
    """Serve the volume of META-URL at MOUNTPOINT until it is unmounted.

    SIGTERM and Ctrl-C flush what was written, unmount and end it.
    """
    hide([password_of(meta_url)])
    if parameters["log_level"] is None:
        parameters["log_level"] = click.get_current_context().find_root().params.get("log_level")
    settings = settings_of(parameters)
    log.configure(settings.log_level)
    place = _check_place(mountpoint, settings)
    from jfsd.daemon.app import run_mount  # noqa: PLC0415 (half a second of imports)

    return run_mount(meta_url, place, settings)


def _check_place(mountpoint: str, settings: MountSettings) -> str:
    """Return the resolved mount point, before anything is connected or changed."""
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    place = mounting.resolve(mountpoint)
    if "fuse" in promised():
        return place  # a live mount is handed to us: nobody serves it, so nobody may look at it
    mounting.check_mountpoint(place, nonempty=settings.fuse.nonempty)
    os.close(mounting.open_device())
    if os.geteuid() != 0:
        text = FUSE_CONF.read_text(encoding="utf-8") if FUSE_CONF.exists() else ""
        check_allow_other(settings.fuse, os.geteuid(), text)
    if not _may_mount():
        raise RefusedError(
            ExitCode.NO_PRIVILEGE,
            place,
            "may not be mounted on without the capability CAP_SYS_ADMIN",
            "run as root, in a container with that capability",
        )
    return place


def _may_mount() -> bool:
    """Return whether the kernel will let this process call mount(2)."""
    for line in (
        Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    ):
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return True
