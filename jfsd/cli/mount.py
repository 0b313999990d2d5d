"""`jfsd mount`: serve a volume at a directory, in the foreground."""

from __future__ import annotations

import click

from jfsd import log
from jfsd.cli.argv import hide, password_of
from jfsd.cli.mountpoint import check_mountpoint, check_privilege
from jfsd.cli.options import mount_options, settings_of
from jfsd.config.flags import Value

EPILOG = """\b
Examples:
  jfsd mount redis://localhost/1 /mnt/jfs
  META_PASSWORD=... jfsd mount redis://db.internal/1 /mnt/jfs --cache-size 20G
  jfsd mount unix:///run/redis/redis.sock?db=1 /mnt/jfs --read-only -o noexec
  jfsd mount redis://localhost/1 /mnt/team --subdir /team --buffer-size 1G
"""


@click.command("mount", epilog=EPILOG)
@click.argument("meta_url", metavar="META-URL")
@click.argument("mountpoint", metavar="MOUNTPOINT", type=click.Path())
@mount_options
def command(meta_url: str, mountpoint: str, **parameters: Value | None) -> int:
    """Serve the volume of META-URL at MOUNTPOINT until it is unmounted.

    SIGTERM and Ctrl-C flush what was written, unmount and end it.
    """
    hide([password_of(meta_url)])
    settings = settings_of(parameters)
    log.configure(settings.log_level)
    path = check_mountpoint(mountpoint, settings)
    check_privilege(settings)
    from jfsd.daemon.app import run_mount  # noqa: PLC0415 (half a second of imports)

    return run_mount(meta_url, path, settings)
