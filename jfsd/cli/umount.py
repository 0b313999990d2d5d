"""`jfsd umount`: take a mount away, after what was written has been stored."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import click

from jfsd.config.runtime import MountRecord, find, unregister
from jfsd.errors import ExitCode, JfsdError

EPILOG = """\b
Examples:
  jfsd umount /mnt/jfs
  jfsd umount --force /mnt/jfs
"""
_PATIENCE_S = 2.0


@click.command("umount", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
@click.option(
    "--force",
    is_flag=True,
    help="Detach at once even if files are open; they stay usable until they are closed.",
)
def command(mountpoint: str, force: bool) -> None:
    """Unmount MOUNTPOINT and wait until its server has stored everything and ended.

    With files open it is refused (exit code 12) and nothing changes.
    """
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    place = mounting.resolve(mountpoint)
    record, mounted = find(place), mounting.find(place)
    mounting.umount(place, lazy=force)
    if record is not None and mounted is not None and not force:
        _await_end(record, lambda: mounting.kept_by(mounted.device))
    if record is not None and not _alive(record.pid):
        _tell_failure(place, record)
        unregister(place, record.pid)


def _tell_failure(place: str, record: MountRecord) -> None:
    """Raise what the server left in its record: it did not store all that was written."""
    left = find(place)
    if left is not None and left.pid == record.pid and left.failure:
        unregister(place, left.pid)
        error = JfsdError(left.failure)
        error.exit_code = ExitCode.STORE_UNREACHABLE
        raise error


def _await_end(record: MountRecord, kept_by: Callable[[], int | None]) -> None:
    """Return when the server has ended; says why if that takes long."""
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
        elsewhere = kept_by()
        reason = (
            "to store what was written"
            if elsewhere is None
            else f"to be unmounted in the mount namespace of process {elsewhere}, too"
        )
        click.echo(f"jfsd: waiting for {record.name} {reason}", err=True)
        poll.poll()
        click.echo(f"jfsd: done after {time.monotonic() - started:.0f} s", err=True)
    finally:
        os.close(descriptor)


def _alive(pid: int) -> bool:
    """Return whether the process runs; one that only waits to be reaped by its parent does not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        return not select.select([descriptor], [], [], 0)[0]
    finally:
        os.close(descriptor)
