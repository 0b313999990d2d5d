"""`jfsd status`: a volume's setting, sessions and usage, and how a mount of it is."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Mapping
from typing import Any

import click

from jfsd.cli.argv import hide
from jfsd.config.credentials import password_of
from jfsd.config.runtime import find
from jfsd.errors import ExitCode, JfsdError, RefusedError

EPILOG = """\b
Examples:
  jfsd status redis://localhost/1
  jfsd status /mnt/jfs | jq .Stat.UsedSpace
  jfsd status /mnt/jfs | jq .Mount
"""
_PATIENCE_S = 3.0


@click.command("status", epilog=EPILOG)
@click.argument("target", metavar="META-URL|MOUNTPOINT")
def command(target: str) -> None:
    """Print JSON about a volume: Setting (without secrets), Sessions, Stat (usage, trash).

    For a MOUNTPOINT also Mount: its server, where it stores, what is not stored yet, open
    files, cache, who keeps its descriptors, and the last restarts with their times in
    milliseconds. This part is shown even if Redis does not answer. A mount is found through
    its record, which only its user and root can read.
    """
    hide([password_of(target)])
    meta_url, environ, place = _resolve(target)
    mount = {"Mount": _mount(place)} if place else {}
    try:
        shown = {**asyncio.run(_status(meta_url, environ)), **mount}
    except JfsdError:
        if mount:
            _print(mount)
        raise
    _print(shown)


def _print(shown: dict[str, Any]) -> None:
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))


def _mount(place: str) -> dict[str, Any]:
    """Return what the mount's server says of it, or that there is none at the moment."""
    from jfsd.daemon.control_client import NoServerError, ask  # noqa: PLC0415

    try:
        mount: dict[str, Any] = ask(place, {"do": "status"}, patience_s=_PATIENCE_S).result["mount"]
    except NoServerError as error:
        return {"MountPoint": place, "Pid": 0, "Phase": "no server", "Error": error.rule}
    return mount


def _resolve(target: str) -> tuple[str, Mapping[str, str], str]:
    """Return the metadata URL, the environment with its password, and the mount point, if any."""
    if "://" in target or not (target.startswith((".", "/")) or _is_file(target)):
        return target, os.environ, ""
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    place = mounting.resolve(target)
    record = find(place)
    if record is None or mounting.find(place) is None:
        raise RefusedError(
            ExitCode.NOT_MOUNTED,
            target,
            "is no mount of jfsd that this user serves",
            "give the mount point as the user who mounted it, or a metadata URL",
        )
    return record.meta_url, {**os.environ, **record.passwords}, place


def _is_file(target: str) -> bool:
    """Return whether a file has this name; a mount whose server is gone is one."""
    try:
        os.lstat(target)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return True


async def _status(meta_url: str, environ: Mapping[str, str]) -> dict[str, Any]:
    from jfsd.cli.opening import opened_meta  # noqa: PLC0415
    from jfsd.meta.client import Meta  # noqa: PLC0415
    from jfsd.meta.format import read_volume  # noqa: PLC0415
    from jfsd.meta.status import read_status  # noqa: PLC0415

    async with opened_meta(meta_url, environ) as connection:
        volume = await read_volume(connection)
        meta = Meta(connection, mount_id="status", read_only=True)
        try:
            meta.apply(volume)
            return await read_status(meta, volume)
        finally:
            await meta.close_engine()
