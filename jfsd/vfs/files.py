"""Operations on contents and attributes: open, read, write, flush, truncate, copy, seek."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

from jfsd.clock import monotonic_s
from jfsd.failpoint import PRIVILEGES_DROPPED, reach
from jfsd.types import (
    CHUNK_SIZE,
    FLAG_APPEND,
    FLAG_IMMUTABLE,
    MAX_FILE_BYTES,
    TRASH_INO,
    Attr,
    Caller,
    Ino,
    NodeType,
    ReadableBuffer,
)
from jfsd.vfs.core import by_number, fail
from jfsd.vfs.handles import FileHandle
from jfsd.vfs.locks import LockOps
from jfsd.vfs.ports import Opened, SetAttr, StatFs
from jfsd.vfs.seek import next_data, next_hole

_DAEMON = Caller(0, 0)
_SGID_EXECUTED = stat.S_ISGID | stat.S_IXGRP
_TO_EBADF = frozenset((errno.ENOENT, errno.EPERM, errno.EINVAL))
"""Errors of a commit that mean, to a program, that its descriptor is no good (format.md §9.11)."""


class FileOps(LockOps):
    """Everything that reads or changes a file through its inode or a handle."""

    async def getattr(self, caller: Caller, ino: Ino) -> Attr:  # noqa: ARG002
        """Return the attributes of a node, with writes of this mount included.

        Raises:
            OSError: ESTALE if there is no such node any more.
        """
        ino = self.volume_ino(ino)
        return await self.shown(ino, await self.attr_of(ino))

    async def setattr(self, caller: Caller, ino: Ino, changes: SetAttr, fh: int | None) -> Attr:
        """Change attributes; a new size first, all else in one step after it.

        Pending writes are committed before, or their later commit would overwrite the
        times that are set here.
        """
        self.check_writable()
        ino = self.volume_ino(ino)
        if self.writer.dirty(ino) is not None:
            await self.writer.flush(ino)
        attr = None
        if changes.size is not None:
            async with self._by_path(ino):
                attr = await self._truncate(caller, ino, changes.size, fh is not None)
                if changes.drop_privileges:
                    attr = await self._drop_privileges(ino, attr)
        rest = changes._replace(size=None, drop_privileges=False)
        if attr is None or rest != SetAttr():
            async with self._by_path(ino):
                attr = await self.meta.setattr(
                    caller,
                    ino,
                    mode=rest.mode,
                    uid=rest.uid,
                    gid=rest.gid,
                    atime_ns=rest.atime_ns,
                    mtime_ns=rest.mtime_ns,
                    through_handle=self.handles.find(ino) is not None,
                )
            self.note_touched(ino, None)
            self._keep_pages(ino, attr)
        return await self.shown(ino, attr)

    async def open(self, caller: Caller, ino: Ino, flags: int) -> Opened:
        """Return a handle; the file is as its last closer left it (close-to-open).

        Raises:
            OSError: ESTALE, EROFS, EPERM (immutable, append-only or trashed).
        """
        self.handles.begin_opening(ino)  # from here on a removal knows that it is open
        ahead = flags & os.O_ACCMODE != os.O_WRONLY and not self.reader.knows(ino)
        try:
            with by_number:
                if ahead and not self.options.open_cache_s:  # both in one round trip
                    (attr, seen_s), _ = await asyncio.gather(
                        self.attr_at_open(ino), self.reader.look_ahead(ino)
                    )
                else:
                    attr, seen_s = await self.attr_at_open(ino)
            self._check_open(ino, attr, flags)
            keep = self.same_contents(ino, attr)
            if not keep and not ahead:
                self.reader.invalidate(ino)
            handle = self.handles.open(ino, attr, flags, seen_s, caller.op)
            return Opened(handle.fh, keep_cache=keep)
        finally:
            if self.handles.end_opening(ino):
                await self.meta.release_sustained(ino)

    async def read(self, fh: int, off: int, size: int) -> ReadableBuffer:
        """Return up to `size` bytes from `off`; fewer only at the end of the file."""
        inode = self.handles.get(fh).inode
        length = self.file_length(inode)
        if off + size > length and monotonic_s() - inode.seen_s > self.attr_timeout_s:
            await self.fresh(inode)
            length = self.file_length(inode)
        if off >= length:
            return b""
        return await self.reader.read(inode.ino, fh, off, min(size, length - off), length)

    async def write(self, fh: int, off: int, data: ReadableBuffer) -> int:
        """Accept `data` at `off`; it is stored at the latest by fsync, flush or age.

        Raises:
            OSError: EFBIG, or the error with which an earlier write could not be stored.
        """
        handle = self.handles.get(fh)
        if off + len(data) > MAX_FILE_BYTES:
            fail(errno.EFBIG)
        handle.wrote = True
        try:
            await self.writer.write(handle.inode.ino, off, data)
        except OSError as error:
            raise _as_ebadf(error) from error
        return len(data)

    async def drop_privileges(self, fh: int) -> None:
        """Clear setuid, and setgid if the group may execute: the contents will change."""
        inode = self.handles.get(fh).inode
        await self._drop_privileges(inode.ino, inode.attr)

    async def flush(self, caller: Caller, fh: int, lock_owner: int) -> None:  # noqa: ARG002
        """Return when what was written is stored; drop the closing owner's POSIX locks."""
        handle = self.handles.get(fh)
        try:
            if handle.wrote and not handle.inode.sustained:
                await self._flush(handle)
        finally:
            await self._drop_posix(handle, lock_owner)

    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: ARG002
        """Return when every byte written to the file is in the store and committed."""
        handle = self.handles.get(fh)
        try:
            await self.writer.sync(handle.inode.ino)
        except OSError as error:
            raise _as_ebadf(error) from error

    async def release(self, caller: Caller, fh: int, flock_owner: int | None) -> None:
        """Forget the handle; free the file's space if it was unlinked and this was the last."""
        try:
            handle = self.handles.get(fh)
        except OSError:
            return  # a repeat after a restart
        if flock_owner is not None:
            await self._drop_flock(caller, handle, flock_owner)
        await self._drop_ofd(handle)
        if handle.wrote and not handle.inode.sustained:
            with suppress(OSError):  # flush has reported it; the data is kept for a retry
                await self._flush(handle)
        self.reader.release(fh)
        last = self.handles.close(fh)
        if last is None:
            return
        if last.sustained:
            self.writer.discard(last.ino)
            await self.meta.release_sustained(last.ino)
        else:
            self.writer.release(last.ino)
            self.note_closed(last)

    async def fallocate(self, caller: Caller, fh: int, mode: int, off: int, length: int) -> None:
        """Allocate, punch or zero a range (format.md §9.10); no space is reserved."""
        handle = self.handles.get(fh)
        await self._flush(handle)
        attr = await self.meta.fallocate(caller, handle.ino, mode, off, length)
        self._changed(handle.ino, attr)
        if caller.uid:
            await self._drop_privileges(handle.ino, attr)

    async def lseek(self, fh: int, off: int, whence: int) -> int:
        """Return the next offset of data (SEEK_DATA) or of a hole (SEEK_HOLE).

        Raises:
            OSError: ENXIO beyond the end, EINVAL for any other `whence`.
        """
        handle = self.handles.get(fh)
        if self.writer.dirty(handle.ino) is not None:
            await self._flush(handle)
        attr = await self.fresh(handle.inode)
        if off < 0 or off >= attr.length:
            fail(errno.ENXIO)
        seek = {os.SEEK_DATA: next_data, os.SEEK_HOLE: next_hole}.get(whence)
        if seek is None:
            fail(errno.EINVAL)
        return await seek(self.meta, handle.ino, off, attr.length)

    async def copy_file_range(
        self,
        caller: Caller,
        fh_in: int,
        off_in: int,
        fh_out: int,
        off_out: int,
        length: int,
        flags: int,
    ) -> int:
        """Let a range of one file share the slices of another; no data moves.

        Returns:
            Bytes copied, fewer than `length` at the end of the source.
        """
        if flags:
            fail(errno.EINVAL)
        source, target = self.handles.get(fh_in), self.handles.get(fh_out)
        await self.fsync(fh_in, datasync=True)  # the target's fsync knows its own slices only
        if self.writer.dirty(target.ino) is not None:
            await self._flush(target)
        length = min(length, (1 << 32) - CHUNK_SIZE)  # the reply has 32 bits
        copied, attr = await self.meta.copy_file_range(
            caller, source.ino, off_in, target.ino, off_out, length
        )
        if attr is not None:
            self._changed(target.ino, attr)
            if caller.uid:
                await self._drop_privileges(target.ino, attr)
        return copied

    async def statfs(self, ino: Ino) -> StatFs:  # noqa: ARG002
        """Return capacity and use of the volume, narrowed by a quota on the root."""
        return StatFs(*await self.meta.statfs(self.options.root))

    # -- shared ---------------------------------------------------------------------------

    def _check_open(self, ino: Ino, attr: Attr, flags: int) -> None:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return
        self.check_writable()
        if attr.flags & FLAG_IMMUTABLE:
            fail(errno.EPERM)
        if attr.parent > TRASH_INO and (ino in self.trashed or self.handles.find(ino) is None):
            self._refuse_trashed(ino)
        if attr.flags & FLAG_APPEND and (not flags & os.O_APPEND or flags & os.O_TRUNC):
            fail(errno.EPERM)

    def _refuse_trashed(self, ino: Ino) -> NoReturn:
        """Fail a change of a file in the trash that is not open.

        ESTALE if nobody has looked it up there: the name that was asked for is another
        file's by now, or nobody's, and the kernel looks it up anew.
        """
        fail(errno.EPERM if ino in self.trashed else errno.ESTALE)

    @asynccontextmanager
    async def _by_path(self, ino: Ino) -> AsyncIterator[None]:
        """Turn the errors of a node that the kernel named by an outdated name into ESTALE."""
        try:
            with by_number:
                yield
        except PermissionError as error:
            if error.errno == errno.EPERM and (await self.attr_of(ino)).parent > TRASH_INO:
                self._refuse_trashed(ino)
            raise

    async def _truncate(self, caller: Caller, ino: Ino, size: int, by_handle: bool) -> Attr:
        if size > MAX_FILE_BYTES:
            fail(errno.EFBIG)
        through = by_handle or self.handles.find(ino) is not None
        attr = await self.meta.truncate(caller, ino, size, through_handle=through)
        self._changed(ino, attr)
        return attr

    async def _drop_privileges(self, ino: Ino, attr: Attr) -> Attr:
        """Clear the bits that a change of the contents clears; return the attributes then."""
        if not _privileged(attr):
            return attr
        mode = attr.mode & ~(stat.S_ISUID | (stat.S_ISGID if attr.mode & stat.S_IXGRP else 0))
        attr = await self.meta.setattr(_DAEMON, ino, mode=mode, through_handle=True)
        reach(PRIVILEGES_DROPPED)
        self.note_touched(ino, None)
        self._keep_pages(ino, attr)
        return attr

    def _changed(self, ino: Ino, attr: Attr) -> None:
        """Note a change of contents that we made ourselves, past the writer."""
        self.committed(ino, attr)
        self.reader.invalidate(ino)

    def _keep_pages(self, ino: Ino, attr: Attr) -> None:
        """Note a change of times that we made ourselves: contents are as they were."""
        if attr.type == NodeType.FILE:
            self.committed(ino, attr)

    async def _flush(self, handle: FileHandle) -> None:
        try:
            await self.writer.flush(handle.inode.ino)
        except OSError as error:
            raise _as_ebadf(error) from error


def _as_ebadf(error: OSError) -> OSError:
    if error.errno in _TO_EBADF:
        return OSError(errno.EBADF, os.strerror(errno.EBADF))
    return error


def _privileged(attr: Attr) -> bool:
    """Return whether the mode has bits that a change of the contents clears."""
    mode = attr.mode
    return bool(mode & stat.S_ISUID) or mode & _SGID_EXECUTED == _SGID_EXECUTED
