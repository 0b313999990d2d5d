"""A whole file system without a kernel: Vfs over a real Redis and a real directory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from jfsd.config.settings import MountSettings
from jfsd.config.volume import new_volume
from jfsd.daemon.datapath import DataPath
from jfsd.meta.format import store_volume, stored_setting
from jfsd.meta.jobs.housekeeping import Housekeeping
from jfsd.meta.session import Session, SessionInfo
from jfsd.object.open import open_store
from jfsd.record import replace
from jfsd.vfs.ports import Options
from jfsd.vfs.vfs import Vfs

from .engines import open_meta

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jfsd.config.volume import Volume

_SETTINGS = MountSettings(cache_size_bytes=0, buffer_size_bytes=64 << 20)


async def make_volume(url: str, path: Path, **changes: object) -> Volume:
    """Format the database with a volume on `path`."""
    path.mkdir(exist_ok=True)
    volume = replace(new_volume("test", "file", f"{path}/"), **changes)
    async with open_meta(url, "format") as meta:
        await store_volume(meta.connection, volume, await stored_setting(meta.connection))
    return volume


@contextlib.asynccontextmanager
async def open_vfs(
    url: str, volume: Volume, name: str = "m1", options: Options | None = None
) -> AsyncIterator[Vfs]:
    """A mounted file system as the daemon builds it, with a session of its own."""
    async with contextlib.AsyncExitStack() as stack:
        meta = await stack.enter_async_context(open_meta(url, name))
        session = Session(meta, SessionInfo.of_this_process(f"/mnt/{name}"))
        await session.open()
        stack.push_async_callback(session.close)
        store = open_store(volume.storage, volume.bucket)
        stack.push_async_callback(store.close)
        path = DataPath(meta, store, volume, _SETTINGS)
        await path.start(stack)
        jobs = Housekeeping(meta, path.blocks.delete_slice)
        stack.push_async_callback(jobs.close)
        vfs = Vfs(meta, path.writer, path.reader, options or Options(xattrs=True))
        path.on_commit = vfs.committed
        stack.push_async_callback(path.writer.flush_all)
        yield vfs
