"""`jfsd info`: what files are made of, down to their objects."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from jfsd.config.runtime import MountRecord, find
from jfsd.config.units import show_bytes
from jfsd.errors import ExitCode, RefusedError
from jfsd.types import CHUNK_SIZE, ROOT_INO, Attr, Ino, NodeType, a4k

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from jfsd.config.volume import Volume
    from jfsd.meta.connection import Connection
    from jfsd.meta.describe import Chunk

EPILOG = """\b
Examples:
  jfsd info /mnt/jfs/report.pdf
  jfsd info --json /mnt/jfs/a /mnt/jfs/b | jq '.[].objects[].key'
"""
_LONG_CHUNKS = 1000
"""A file of so many chunks (64 GiB) gets a progress bar."""


class Target(NamedTuple):
    """A path, the mount that it is on, and its inode there."""

    path: str
    record: MountRecord
    inside: str
    """The path as the volume has it, beginning with a slash."""
    ino: Ino


@click.command("info", epilog=EPILOG)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list, one object per path.")
def command(paths: tuple[str, ...], as_json: bool) -> None:
    """Show inode, attributes, chunks, slices and objects of each PATH on a mount of jfsd.

    What was written but not stored yet has no objects; run sync first.
    """
    targets = [_target(path) for path in paths]
    shown = asyncio.run(_describe_all(targets))
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    for description in shown:
        lines = "\n".join(_lines(description))
        click.echo(lines.encode(errors="surrogateescape"))


def _target(path: str) -> Target:
    """Return what the path names.

    Raises:
        RefusedError: It does not exist, or is not on a mount that we have the record of.
    """
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    try:
        status = os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise RefusedError(
                ExitCode.NOT_MOUNTED, path, "is on a mount whose server is gone", "mount it again"
            ) from error
        raise RefusedError(
            ExitCode.USAGE, path, f"cannot be looked at ({error.strerror})", "mend the path"
        ) from error
    # The last name is not followed: a symlink is a file of its own.
    parent, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    place = os.path.join(mounting.resolve(parent), name) if name else parent  # noqa: PTH118
    device = f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    for entry in reversed(mounting.mounts()):
        inside = _inside(place, entry.path)
        if entry.device != device or inside is None:
            continue
        record = find(entry.path)
        if record is not None:
            below = "/" + "/".join(part for part in (record.subdir, inside) if part)
            return Target(path, record, below, status.st_ino)
    raise RefusedError(
        ExitCode.NOT_MOUNTED,
        path,
        "is not on a mount of jfsd that this user serves",
        "give a path below a mount point, as the user who mounted it",
    )


def _inside(place: str, mountpoint: str) -> str | None:
    """Return the path below the mount point, "" for itself, None if it is elsewhere."""
    if place == mountpoint:
        return ""
    head = mountpoint.rstrip("/") + "/"
    return place.removeprefix(head) if place.startswith(head) else None


async def _describe_all(targets: Sequence[Target]) -> list[dict[str, Any]]:
    from jfsd.cli.opening import opened_meta  # noqa: PLC0415
    from jfsd.meta.format import read_volume  # noqa: PLC0415

    described = []
    for target in targets:
        environ = {**os.environ, **target.record.passwords}
        async with opened_meta(target.record.meta_url, environ) as connection:
            volume = await read_volume(connection)
            described.append(await _describe(connection, volume, target))
    return described


async def _describe(connection: Connection, volume: Volume, target: Target) -> dict[str, Any]:
    """Return everything about one path, in the form that `--json` prints."""
    from jfsd.meta import describe  # noqa: PLC0415

    ino: Ino | None = target.ino
    if ino == ROOT_INO and target.record.subdir:
        names = [os.fsencode(name) for name in target.record.subdir.split("/")]
        ino = await describe.find_ino(connection, ROOT_INO, names)
    attr = None if ino is None else await describe.read_attr(connection, ino)
    if ino is None or attr is None:
        raise RefusedError(
            ExitCode.USAGE, target.path, "is no file of the volume", "name a file that is stored"
        )
    chunks = []
    with _progress(attr.length) as bar:
        async for chunk in describe.read_chunks(connection, ino, attr):
            chunks.append(chunk)
            if bar is not None:
                bar.update(min(CHUNK_SIZE, attr.length - chunk.number * CHUNK_SIZE))
    return {
        "path": target.path,
        "volume": volume.name,
        "path_in_volume": target.inside,
        **_attributes(ino, attr),
        "chunks": [_chunk(chunk) for chunk in chunks],
        "objects": [found for chunk in chunks for found in _objects(volume, chunk)],
    }


def _progress(length: int) -> AbstractContextManager[ProgressBar[int] | None]:
    """Return a progress bar if this takes long and somebody watches."""
    if length < _LONG_CHUNKS * CHUNK_SIZE or not sys.stderr.isatty():
        return nullcontext()
    return click.progressbar(length=length, label="reading slices", file=sys.stderr)


def _attributes(ino: Ino, attr: Attr) -> dict[str, Any]:
    return {
        "inode": ino,
        "type": attr.type.name.lower(),
        "mode": f"{attr.mode:04o}",
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink": attr.nlink,
        "length": attr.length,
        "space": a4k(attr.length) if attr.type is NodeType.FILE else 4096,
        "parent": attr.parent,
    }


def _chunk(chunk: Chunk) -> dict[str, Any]:
    return {"index": chunk.number, "slices": [record._asdict() for record in chunk.records]}


def _objects(volume: Volume, chunk: Chunk) -> Iterator[dict[str, Any]]:
    """Yield the objects that hold the visible bytes of a chunk, in the order of the file."""
    from jfsd.chunk import layout, overlay  # noqa: PLC0415

    block = volume.block_size_bytes
    for piece in overlay.build_view(chunk.records):
        if piece.id == 0:
            continue
        begin, end = piece.off, piece.off + piece.len
        for index in range(begin // block, -(-end // block)):
            length = layout.block_length(piece.size, index, block)
            first, last = max(begin, index * block), min(end, index * block + length)
            yield {
                "chunk": chunk.number,
                "pos": chunk.number * CHUNK_SIZE + piece.pos + first - begin,
                "key": layout.block_key(volume.name, volume.hash_prefix, piece.id, index, length),
                "size": length,
                "offset": first - index * block,
                "length": last - first,
            }


def _lines(shown: dict[str, Any]) -> Iterator[str]:
    """Yield the description as people read it."""
    yield f"{shown['path']}:"
    yield f"  volume  {shown['volume']}, {shown['path_in_volume']}"
    yield f"  inode   {shown['inode']} ({shown['type']}, {shown['nlink']} links)"
    yield f"  mode    {shown['mode']}, owner {shown['uid']}:{shown['gid']}"
    yield f"  length  {shown['length']} bytes ({show_bytes(shown['length'])})"
    yield f"  space   {shown['space']} bytes ({show_bytes(shown['space'])})"
    slices = sum(len(chunk["slices"]) for chunk in shown["chunks"])
    if slices:
        yield f"  chunks  {len(shown['chunks'])} with {slices} slices"
    if shown["objects"]:
        yield from _table(shown["objects"])


def _table(objects: Sequence[dict[str, Any]]) -> Iterator[str]:
    heads = {
        "chunk": "chunk",
        "pos": "position",
        "key": "object",
        "size": "size",
        "offset": "offset",
        "length": "length",
    }
    rows = [heads, *({name: str(row[name]) for name in heads} for row in objects)]
    widths = {name: max(len(row[name]) for row in rows) for name in heads}
    for row in rows:
        cells = (
            row[name].ljust(widths[name]) if name == "key" else row[name].rjust(widths[name])
            for name in heads
        )
        yield "  " + "  ".join(cells).rstrip()
