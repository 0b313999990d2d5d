"""`jfsd umount`: take a mount away, after what was written has been stored."""

from __future__ import annotations

import errno
import os
import select
import time

import click

from jfsd.config.runtime import MountRecord, find, kernel_mount, resolve_mountpoint, unregister
from jfsd.errors import ExitCode, RefusedError

EPILOG = """\b
Examples:
  jfsd umount /mnt/jfs
  jfsd umount --force /mnt/jfs
"""
_PATIENCE_S = 2.0


@click.command("umount", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT", type=click.Path())
@click.option(
    "--force",
    is_flag=True,
    help="Detach at once even if files are open; they stay usable until they are closed.",
)
def command(mountpoint: str, force: bool) -> None:
    """Unmount MOUNTPOINT and wait until its server has stored everything and ended.

    With files open it is refused (exit code 12) and nothing changes.
    """
    path = resolve_mountpoint(mountpoint)
    _check_mounted(path)
    record = find(path)
    _unmount(path, force=force)
    if record is not None and not force:
        _await_end(record)
    if record is not None and not _alive(record.pid):
        unregister(path)


def _check_mounted(path: str) -> None:
    mount = kernel_mount(path)
    if mount is None:
        raise RefusedError(
            ExitCode.NOT_MOUNTED, path, "nothing is mounted there", "see jfsd status or findmnt"
        )
    if not mount.kind.startswith("fuse"):
        raise RefusedError(
            ExitCode.NOT_MOUNTED, path, f"is a mount of type {mount.kind}", "use umount for it"
        )


def _unmount(path: str, *, force: bool) -> None:
    from jfsd.fuse.mount import umount  # noqa: PLC0415

    try:
        umount(path, lazy=force)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise RefusedError(
                ExitCode.BUSY,
                path,
                "files of it are open, or a process works in it",
                "end them (fuser -vm shows them), or give --force",
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            raise RefusedError(
                ExitCode.NO_PRIVILEGE, path, "is not yours to unmount", "run as root"
            ) from error
        raise


def _await_end(record: MountRecord) -> None:
    """Return when the server has ended; says so if that takes long."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if poll.poll(_PATIENCE_S * 1000):
            return
        started = time.monotonic() - _PATIENCE_S
        click.echo(f"jfsd: waiting for {record.name} to store what was written", err=True)
        poll.poll()
        click.echo(f"jfsd: done after {time.monotonic() - started:.0f} s", err=True)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
