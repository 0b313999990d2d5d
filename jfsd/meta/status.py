"""What a volume looks like from outside, in the JSON of `juicefs status`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from jfsd.meta import codec
from jfsd.meta.jobs.slices import slice_of
from jfsd.meta.scan import scan_hash
from jfsd.meta.session import rfc3339
from jfsd.types import TRASH_INO, NodeType

if TYPE_CHECKING:
    from jfsd.config.volume import Volume
    from jfsd.meta.client import Meta


async def read_status(meta: Meta, volume: Volume, *, more: bool = True) -> dict[str, Any]:
    """Return setting without secrets, sessions and usage; changes nothing.

    With `more` also what waits to be deleted, in the trash and elsewhere; that reads the trash's
    hourly directories and the whole of `sliceRef`. What is zero there is left out.
    """
    sessions, stat = await asyncio.gather(read_sessions(meta), _read_usage(meta))
    if more:
        counts = {**await _read_trash(meta), **await _read_pending(meta)}
        stat.update({name: count for name, count in counts.items() if count})
    return {"Setting": volume.public(), "Sessions": sessions, "Stat": stat}


async def read_sessions(meta: Meta) -> list[dict[str, Any]]:
    """Return what is known of every registered session, stale ones included, by id."""
    expiries, infos = await asyncio.gather(
        meta.connection.call("ZRANGE", meta.keys.all_sessions, 0, -1, "WITHSCORES"),
        meta.connection.call("HGETALL", meta.keys.session_infos),
    )
    known = dict(zip(infos[::2], infos[1::2], strict=True))
    return [
        {
            "Sid": int(sid),
            "Expire": rfc3339(int(float(expiry)) * 10**9),
            **_parse_info(known.get(sid, b"{}")),
        }
        for sid, expiry in sorted(
            zip(expiries[::2], expiries[1::2], strict=True), key=lambda pair: int(pair[0])
        )
    ]


def _parse_info(stored: bytes) -> dict[str, Any]:
    try:
        info = json.loads(stored)
    except ValueError:
        info = None
    return info if isinstance(info, dict) else {"Corrupt": stored.decode(errors="replace")}


async def _read_usage(meta: Meta) -> dict[str, int]:
    total, available, inodes, free_inodes = await meta.statfs()
    return {
        "UsedSpace": total - available,
        "AvailableSpace": available,
        "UsedInodes": inodes - free_inodes,
        "AvailableInodes": free_inodes,
    }


async def _read_trash(meta: Meta) -> dict[str, int]:
    """Return number and length of the files in the trash, and of slices that wait there."""
    files = size = 0
    async for page in scan_hash(meta, meta.keys.directory(TRASH_INO)):
        for _, value in page:
            hour_files, hour_size = await _read_hour(meta, codec.decode_entry(value)[1])
            files += hour_files
            size += hour_size
    slices = slices_size = 0
    async for page in scan_hash(meta, meta.keys.del_slices):
        for _, value in page:
            pairs = codec.decode_delayed(value)
            slices += len(pairs)
            slices_size += sum(length for _, length in pairs)
    return {
        "TrashFileCount": files,
        "TrashFileSize": size,
        "TrashSliceCount": slices,
        "TrashSliceSize": slices_size,
    }


async def _read_hour(meta: Meta, ino: int) -> tuple[int, int]:
    """Return number and length of the files in one directory of the trash."""
    files = size = 0
    async for page in scan_hash(meta, meta.keys.directory(ino)):
        entries = (codec.decode_entry(value) for _, value in page)
        inos = [number for kind, number in entries if kind is NodeType.FILE]
        files += len(inos)
        size += sum(attr.length for attr in await meta.getattrs(inos) if attr)
    return files, size


async def _read_pending(meta: Meta) -> dict[str, int]:
    """Return number and size of what has lost its last reference and is not deleted yet."""
    notes = await meta.connection.call("ZRANGE", meta.keys.delfiles, 0, -1)
    lengths = [note.rpartition(b":")[2] for note in notes]
    slices = slices_size = 0
    async for page in scan_hash(meta, meta.keys.slice_ref):
        for field, count in page:
            found = slice_of(field)
            if found and int(count) < 0:
                slices += 1
                slices_size += found[1]
    return {
        "PendingDeletedFileCount": len(notes),
        "PendingDeletedFileSize": sum(int(length) for length in lengths if length.isdigit()),
        "PendingDeletedSliceCount": slices,
        "PendingDeletedSliceSize": slices_size,
    }
