"""Files in the root of the mount that are on no volume: what the server says of itself.

`.accesslog`, `.stats` and `.config` have the names, modes and inode numbers of the reference
(format.md Appendix F); they are found by name and not listed. Their handles are handles
like any other, so they go on in the next server: the access log with what is asked of
that one, the others with the end of the file, since what they said is gone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from jfsd.clock import monotonic_s, now_ns
from jfsd.types import ROOT_INO, Attr, Caller, Ino, NodeType, ReadableBuffer
from jfsd.vfs.accesslog import AccessLog, AccessLogReader
from jfsd.vfs.core import fail
from jfsd.vfs.dirs import Node
from jfsd.vfs.files import FileOps
from jfsd.vfs.names import NameOps
from jfsd.vfs.ports import Opened, SetAttr
from jfsd.vfs.xattrs import XattrOps

if TYPE_CHECKING:
    from jfsd.chunk.reader import Reader
    from jfsd.chunk.writer import Writer
    from jfsd.meta.client import Meta
    from jfsd.vfs.handles import FileHandle
    from jfsd.vfs.ports import Options

FIRST_VIRTUAL_INO = 0x7FFFFFFF00000000
"""No inode of a volume is above, but those of the trash."""

ACCESS_LOG_INO = 0x7FFFFFFF00000001
STATS_INO = 0x7FFFFFFF00000003
CONFIG_INO = 0x7FFFFFFF00000004


class _File(NamedTuple):
    ino: Ino
    mode: int


_FILES = {
    b".accesslog": _File(ACCESS_LOG_INO, 0o400),
    b".stats": _File(STATS_INO, 0o444),
    b".config": _File(CONFIG_INO, 0o400),
}
_MODES = {file.ino: file.mode for file in _FILES.values()}


class _View(Protocol):
    """What an open handle of such a file shows."""

    async def read(self, off: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class _TextView:
    """A text that is made when it is read from its beginning."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._make = make
        self._text = b""

    async def read(self, off: int, size: int) -> bytes:
        """Return bytes of the text as it was when its beginning was read."""
        if off == 0:
            self._text = self._make().encode()
        return self._text[off : off + size]

    def close(self) -> None:
        """Do nothing."""


class VirtualOps(NameOps, FileOps, XattrOps):
    """Operations as of the other classes, and on the virtual files their own."""

    def __init__(self, meta: Meta, writer: Writer, reader: Reader, options: Options) -> None:
        super().__init__(meta, writer, reader, options)
        self.access = AccessLog()
        self.texts: dict[Ino, Callable[[], str]] = {}
        """Make what `.stats` and `.config` say; without one the file is empty."""
        self._views: dict[int, _View] = {}
        self._born_ns = now_ns()

    @property
    def waiting_locks(self) -> int:
        """Requests that wait for what may take long: a lock, or a line of the access log."""
        return super().waiting_locks + self.access.waiting

    def lookup(self, caller: Caller, parent: Ino, name: bytes) -> Coroutine[Any, Any, Node]:
        """Return the node that `name` in `parent` stands for."""
        if parent == ROOT_INO and name in _FILES:
            return self._virtual_node(_FILES[name].ino)
        return super().lookup(caller, parent, name)

    def getattr(self, caller: Caller, ino: Ino) -> Coroutine[Any, Any, Attr]:
        """Return the attributes of a node."""
        if ino in _MODES:
            return self._virtual_attr(ino)
        return super().getattr(caller, ino)

    def setattr(
        self, caller: Caller, ino: Ino, changes: SetAttr, fh: int | None
    ) -> Coroutine[Any, Any, Attr]:
        """Change attributes; EPERM for a virtual file."""
        _refuse(ino)
        return super().setattr(caller, ino, changes, fh)

    def link(self, caller: Caller, ino: Ino, parent: Ino, name: bytes) -> Coroutine[Any, Any, Node]:
        """Add another name for a file; EPERM for a virtual one."""
        _refuse(ino)
        return super().link(caller, ino, parent, name)

    def getxattr(self, caller: Caller, ino: Ino, name: bytes) -> Coroutine[Any, Any, bytes]:
        """Return an extended attribute; virtual files have none."""
        if ino in _MODES:
            fail(errno.ENODATA)
        return super().getxattr(caller, ino, name)

    def listxattr(self, ino: Ino) -> Coroutine[Any, Any, list[bytes]]:
        """Return the names of extended attributes; virtual files have none."""
        return _nothing() if ino in _MODES else super().listxattr(ino)

    def setxattr(
        self, caller: Caller, ino: Ino, name: bytes, value: bytes, flags: int
    ) -> Coroutine[Any, Any, None]:
        """Set an extended attribute; EPERM for a virtual file."""
        _refuse(ino)
        return super().setxattr(caller, ino, name, value, flags)

    def removexattr(self, caller: Caller, ino: Ino, name: bytes) -> Coroutine[Any, Any, None]:
        """Remove an extended attribute; EPERM for a virtual file."""
        _refuse(ino)
        return super().removexattr(caller, ino, name)

    # -- handles --------------------------------------------------------------------------

    def open(self, caller: Caller, ino: Ino, flags: int) -> Coroutine[Any, Any, Opened]:
        """Return a handle; a virtual file can only be read."""
        if ino in _MODES:
            return self._open_virtual(caller, ino, flags)
        return super().open(caller, ino, flags)

    def read(self, fh: int, off: int, size: int) -> Coroutine[Any, Any, ReadableBuffer]:
        """Return up to `size` bytes from `off`."""
        view = self._views.get(fh)
        return super().read(fh, off, size) if view is None else view.read(off, size)

    async def release(self, caller: Caller, fh: int, flock_owner: int | None) -> None:
        """Forget the handle."""
        view = self._views.pop(fh, None)
        if view is None:
            await super().release(caller, fh, flock_owner)
            return
        view.close()
        self.handles.close(fh)

    def flock(
        self, caller: Caller, fh: int, owner: int, lock_type: int, blocking: bool
    ) -> Coroutine[Any, Any, None]:
        """Take, convert or drop a whole-file lock; EPERM for a virtual file."""
        self._refuse_handle(fh)
        return super().flock(caller, fh, owner, lock_type, blocking)

    def setlk(
        self,
        caller: Caller,
        fh: int,
        owner: int,
        lock_type: int,
        start: int,
        end: int,
        pid: int,
        blocking: bool,
    ) -> Coroutine[Any, Any, None]:
        """Take, convert or drop a lock on bytes; EPERM for a virtual file."""
        self._refuse_handle(fh)
        return super().setlk(caller, fh, owner, lock_type, start, end, pid, blocking)

    def lseek(self, fh: int, off: int, whence: int) -> Coroutine[Any, Any, int]:
        """Return the next offset of data or of a hole; EINVAL for a virtual file."""
        if fh in self._views:
            fail(errno.EINVAL)
        return super().lseek(fh, off, whence)

    def copy_file_range(
        self,
        caller: Caller,
        fh_in: int,
        off_in: int,
        fh_out: int,
        off_out: int,
        length: int,
        flags: int,
    ) -> Coroutine[Any, Any, int]:
        """Let a range of one file share the slices of another; a virtual one has none.

        EXDEV makes the kernel copy bytes.
        """
        if fh_in in self._views:
            fail(errno.EXDEV)
        return super().copy_file_range(caller, fh_in, off_in, fh_out, off_out, length, flags)

    def adopt_view(self, handle: FileHandle) -> None:
        """Let the handle of a virtual file that an earlier server opened be read here."""
        if handle.ino in _MODES:
            self._views[handle.fh] = self._view(handle.ino)

    # -- shared ---------------------------------------------------------------------------

    async def _open_virtual(self, caller: Caller, ino: Ino, flags: int) -> Opened:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            fail(errno.EACCES)
        attr = await self._virtual_attr(ino)
        handle = self.handles.open(ino, attr, flags, monotonic_s(), caller.op)
        if handle.fh not in self._views:
            self._views[handle.fh] = self._view(ino)
        return Opened(handle.fh, direct_io=True)

    def _view(self, ino: Ino) -> _View:
        if ino == ACCESS_LOG_INO:
            return AccessLogReader(self.access)
        return _TextView(self.texts.get(ino, str))

    def _refuse_handle(self, fh: int) -> None:
        if fh in self._views:
            fail(errno.EPERM)

    async def _virtual_node(self, ino: Ino) -> Node:
        return Node(ino, await self._virtual_attr(ino))

    async def _virtual_attr(self, ino: Ino) -> Attr:
        ns = self._born_ns
        times = {"atime_ns": ns, "mtime_ns": ns, "ctime_ns": ns}
        return Attr(NodeType.FILE, _MODES[ino], nlink=1, parent=ROOT_INO, **times)


def _refuse(ino: Ino) -> None:
    if ino in _MODES:
        fail(errno.EPERM)


async def _nothing() -> list[bytes]:
    return []
