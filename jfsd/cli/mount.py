"""`jfsd mount`: serve a volume at a directory, in the foreground or in the background."""

from __future__ import annotations

import click

from jfsd.cli.options import flag_options, given_options
from jfsd.cli.serving import serve
from jfsd.config.flags import MOUNT_FLAGS, Value

EPILOG = """\b
Examples:
  jfsd mount redis://localhost/1 /mnt/jfs
  jfsd mount -d redis://localhost/1 /mnt/jfs     # again: hand over to the installed version
  jfsd mount /mnt/jfs                            # as /etc/jfs/mnt-jfs.toml says
  jfsd mount --config /etc/jfs/mnt-jfs.toml --log-level debug
  META_PASSWORD=... jfsd mount redis://db.internal/1 /mnt/jfs --cache-size 20G
  jfsd mount unix:///run/redis/redis.sock?db=1 /mnt/jfs --read-only -o noexec
  jfsd mount redis://localhost/1 /mnt/team --subdir /team --buffer-size 1G
"""


@click.command("mount", epilog=EPILOG)
@click.argument("where", metavar="[META-URL] [MOUNTPOINT]", nargs=-1)  # click.Path would stat(2)
@click.option(
    "--config",
    metavar="FILE",
    help="Take what the command line does not say from a configuration file (jfs.toml(5)).",
)
@click.option(
    "-d",
    "--background",
    is_flag=True,
    help="Return when the mount is served; a live mount is taken over, without a pause that"
    " programs notice.",
)
@flag_options(MOUNT_FLAGS)
def command(
    where: tuple[str, ...], config: str | None, background: bool, **parameters: Value | None
) -> int | None:
    """Serve the volume of META-URL at MOUNTPOINT until it is unmounted.

    MOUNTPOINT or the instance alone is mounted as its file in /etc/jfs says. Options win
    over a file. SIGTERM and Ctrl-C flush what was written, unmount and end it; SIGHUP reads
    the file again. In the background a small holder keeps the mount alive: a server that is
    killed is replaced at once.
    """
    if parameters["log_level"] is None:
        parameters["log_level"] = click.get_current_context().find_root().params.get("log_level")
    return serve(where, config, background, given_options(parameters))
