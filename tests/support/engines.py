"""Metadata clients as the daemon has them, several on one database."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from jfsd.config.volume import Volume, new_volume
from jfsd.meta.client import Meta
from jfsd.meta.connection import Connection
from jfsd.meta.url import parse_meta_url
from jfsd.record import replace
from jfsd.types import Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Caller(0, 0)


@contextlib.asynccontextmanager
async def open_meta(
    url: str, name: str = "m1", *, generation: int = 1, read_only: bool = False
) -> AsyncIterator[Meta]:
    """A client of the volume in a database, as mount `name`; it has no session."""
    connection = Connection(parse_meta_url(url, {}))
    await connection.open()
    meta = Meta(connection, mount_id=name, generation=generation, read_only=read_only)
    try:
        setting = await connection.call("GET", meta.keys.setting)
        if setting is not None:
            meta.apply(Volume.parse(setting))
        yield meta
    finally:
        await meta.close_engine()
        await connection.close()


def bare_volume(**changes: object) -> Volume:
    """A volume on a directory that is never used."""

    return replace(new_volume("bare", "file", "/nowhere/"), **changes)
