"""The volume that a metadata URL names, read once and soon."""

from __future__ import annotations

import os
from collections.abc import Mapping

from jfsd.config.credentials import with_credentials
from jfsd.config.volume import Volume
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.connection import Connection
from jfsd.meta.format import read_volume
from jfsd.meta.url import parse_meta_url

PATIENCE_S = 10.0


async def volume_at(meta_url: str, environ: Mapping[str, str] = os.environ) -> Volume:
    """Return the volume.

    Raises:
        RefusedError: The URL is wrong, Redis does not answer, or there is no volume.
    """
    url = parse_meta_url(meta_url, with_credentials(environ))
    connection = Connection(url, deadline_s=PATIENCE_S)
    try:
        await connection.open()
        return await read_volume(connection)
    finally:
        await connection.close()


async def check_volume_at(meta_url: str, uuid: str) -> None:
    """Return if this volume is there.

    Raises:
        RefusedError: Another is, or none.
    """
    volume = await volume_at(meta_url)
    if volume.uuid != uuid:
        raise RefusedError(
            ExitCode.ALREADY_MOUNTED,
            f"volume {volume.name} {volume.uuid}",
            f"is not the one that is mounted, {uuid}",
            "unmount that first, or correct the metadata URL",
        )
