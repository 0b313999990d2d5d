"""Creating a volume in a database and reading or replacing its setting (format.md §3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from jfsd import clock
from jfsd.config.volume import Volume
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.codec import encode_attr
from jfsd.meta.keyspace import Keys
from jfsd.meta.scripts import SCRIPTS
from jfsd.types import ROOT_INO, TRASH_INO, Attr, NodeType

if TYPE_CHECKING:
    from jfsd.meta.connection import Connection

_SECOND_NS = 1_000_000_000


async def stored_setting(connection: Connection) -> bytes:
    """Return the database's setting as it is stored, or b"" if it holds no volume."""
    return cast("bytes", await connection.call("GET", Keys(connection.prefix).setting)) or b""


async def read_volume(connection: Connection) -> Volume:
    """Return the volume of a database.

    Raises:
        RefusedError: There is none (VOLUME_MISSING), or we cannot read it.
    """
    setting = await stored_setting(connection)
    if not setting:
        raise RefusedError(
            ExitCode.VOLUME_MISSING,
            connection.url.redacted(),
            "holds no volume",
            "create one with jfsd format, or mend the number of the database",
        )
    return Volume.parse(setting)


async def foreign_key(connection: Connection) -> bytes | None:
    """Return a key of the database that is no part of a half-made volume, None if there is none."""
    keys = Keys(connection.prefix)
    harmless = {keys.attr(TRASH_INO), keys.setting}
    pattern = keys.prefix.replace(b"{", b"[{]").replace(b"}", b"[}]") + b"*"
    cursor = b"0"
    while True:
        cursor, page = await connection.call("SCAN", cursor, "MATCH", pattern, "COUNT", "1000")
        for key in page:
            if key not in harmless:
                return bytes(key)
        if cursor == b"0":
            return None


async def store_volume(connection: Connection, volume: Volume, seen: bytes) -> None:
    """Make the database this volume, all or nothing.

    Args:
        connection: Where the database is.
        volume: What it shall hold.
        seen: The setting as it was read before; b"" to create the volume.

    Raises:
        RefusedError: Somebody else changed the setting meanwhile (VOLUME_CONFLICT).
    """
    keys = Keys(connection.prefix)
    script = SCRIPTS["format_volume"]
    now_ns = clock.now_ns() // _SECOND_NS * _SECOND_NS
    reply = await connection.call(
        "EVAL",
        script.source,
        "1",
        keys.setting,
        keys.prefix,
        seen,
        volume.to_json(),
        _directory(0o555, now_ns) if volume.trash_days else b"",
        f"i{TRASH_INO}",
        _directory(0o777, now_ns),
    )
    if reply[0] != 1:
        raise RefusedError(
            ExitCode.VOLUME_CONFLICT,
            connection.url.redacted(),
            "another client changed the volume's setting at the same time",
            "look at it with jfsd status and try again",
        )


def _directory(mode: int, now_ns: int) -> bytes:
    """Return the record of a root: its own parent is 1 (format.md §1)."""
    attr = Attr(NodeType.DIRECTORY, mode, nlink=2, length=4096, parent=ROOT_INO)
    attr.atime_ns = attr.mtime_ns = attr.ctime_ns = now_ns
    return encode_attr(attr)
