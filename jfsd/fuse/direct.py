"""The requests that programs make most, between the native dispatcher and the file system.

`_dispatch.c` parses a request, refuses names that are too long, calls the handler here with the
caller and the arguments, and answers what it returns, usually without a task in between; pyfuse3
is not asked. All others come through `jfsd.fuse.operations`. Errors mean the same in both: an
OSError is its errno, anything else is a bug of ours, logged and answered with EIO, and a
cancellation answers nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from jfsd import failpoint
from jfsd.fuse import abi, native
from jfsd.fuse.methods import answered, name_of
from jfsd.fuse.payloads import Payloads
from jfsd.metrics import DURATION_BOUNDS_S, READ_SIZES, REQUEST_ERRORS, REQUESTS, WRITE_SIZES
from jfsd.types import ROOT_INO, Attr, Caller, Ino, NodeType, ReadableBuffer
from jfsd.vfs.accesslog import AccessLog
from jfsd.vfs.core import fail
from jfsd.vfs.dirs import Node
from jfsd.vfs.ports import Opened
from jfsd.vfs.virtual import ACCESS_LOG_INO

if TYPE_CHECKING:
    from jfsd.vfs.vfs import Vfs

log = logging.getLogger(__name__)

Entry: TypeAlias = tuple[Ino, Attr, float, float]
"""A node, and how many seconds its attributes and its entry are valid."""

Known: TypeAlias = tuple[Ino, Attr | bytes, float]

Header: TypeAlias = tuple[int, int, Ino, int, int, int]
"""Number, opcode, node, uid, gid and pid of a request."""

Handler: TypeAlias = Callable[..., Any]


class Direct:
    """Handlers for `native.dispatch`, by the opcode and in the form of their answer."""

    def __init__(
        self,
        vfs: Vfs,
        *,
        payloads: Payloads | None = None,
        access: AccessLog | None = None,
        poisoned: Collection[int] = (),
    ) -> None:
        """Serve `vfs`.

        Args:
            vfs: The file system.
            payloads: Counts the memory of writes that wait.
            access: Told each request when it is answered.
            poisoned: Requests to answer with EIO, because they killed servers before.
        """
        self._vfs = vfs
        self._payloads = payloads
        self._access = access or AccessLog()
        self._poisoned = poisoned

    def begin(self, relieved: Callable[[], None]) -> None:
        """Let the native dispatcher carry out what it can from now on.

        Args:
            relieved: Called when a request that had to wait is answered.
        """
        native.dispatch(
            methods={
                opcode: (_armed(handler), form, changes, REQUESTS[opcode])
                for opcode, handler, form, changes in self._methods()
            },
            bounds=DURATION_BOUNDS_S,
            caller=Caller,
            loop=asyncio.get_running_loop(),
            enter=asyncio._enter_task,  # noqa: SLF001 - documented for such as us
            leave=asyncio._leave_task,  # noqa: SLF001
            cancelled=asyncio.CancelledError,
            relieved=relieved,
            bug=_bug,
            access=self._access,
            tell=self._tell,
            errors=REQUEST_ERRORS,
            poisoned=self._poisoned,
            refuse=refuse_poison,
            unheard=ACCESS_LOG_INO,
        )

    def _methods(self) -> tuple[tuple[int, Handler, int, bool], ...]:
        """Return opcodes, their handlers, forms of answer, and whether they change something."""
        return (
            (abi.LOOKUP, self.lookup, native.ENTRY, False),
            (abi.GETATTR, self.getattr, native.ATTR, False),
            (abi.MKDIR, self.mkdir, native.ENTRY, True),
            (abi.UNLINK, self.unlink, native.NOTHING, True),
            (abi.RMDIR, self.rmdir, native.NOTHING, True),
            (abi.RENAME, self.rename, native.NOTHING, True),
            (abi.RENAME2, self.rename, native.NOTHING, True),
            (abi.CREATE, self.create, native.CREATED, True),
            (abi.TMPFILE, self.tmpfile, native.CREATED, True),
            (abi.OPEN, self.open, native.OPENED, True),
            (abi.READ, self.read, native.DATA, False),
            (abi.WRITE, self.write, native.COUNT, False),
            (abi.GETXATTR, self.getxattr, native.DATA, False),
            (abi.FLUSH, self.flush, native.NOTHING, True),
            (abi.RELEASE, self.release, native.NOTHING, True),
        )

    # -- names --------------------------------------------------------------------------------

    async def lookup(self, caller: Caller, parent: Ino, name: bytes) -> Entry:
        """Find a name, or by "." and ".." what open_by_handle_at(2) asks for."""
        if name in (b".", b".."):
            return self._entry(await self._lookup_dots(caller, parent, name))
        return self._entry(await self._vfs.lookup(caller, parent, name))

    async def mkdir(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> Entry:
        """Create a directory."""
        return self._entry(await self._vfs.mkdir(caller, parent, name, stat.S_IMODE(mode)))

    async def unlink(self, caller: Caller, parent: Ino, name: bytes) -> None:
        """Remove a name that is not a directory's."""
        await self._vfs.unlink(caller, parent, name)

    async def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> None:
        """Remove an empty directory."""
        await self._vfs.rmdir(caller, parent, name)

    async def rename(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> None:
        """Move a name; `flags` as in renameat2(2)."""
        await self._vfs.rename(caller, parent, name, new_parent, new_name, flags)

    # -- attributes ---------------------------------------------------------------------------

    def getattr(self, caller: Caller, ino: Ino) -> Known | Awaitable[Known]:
        """Return a node's attributes or their record, and for how many seconds they are valid."""
        record = self._vfs.touched_record(ino)
        if record is not None:
            return ino, record, self._vfs.attr_valid_s(ino)
        return self._getattr(caller, ino)

    async def _getattr(self, caller: Caller, ino: Ino) -> Known:
        attr = await self._vfs.getattr(caller, ino)
        return ino, attr, self._vfs.attr_valid_s(ino)

    async def getxattr(self, caller: Caller, ino: Ino, name: bytes, size: int) -> bytes:
        """Return an extended attribute; for a size of 0 how long it is.

        Raises:
            OSError: ERANGE if it is longer than `size`.
        """
        value = await self._vfs.getxattr(caller, ino, name)
        if not size:
            return abi.xattr_length(len(value))
        if len(value) > size:
            fail(errno.ERANGE)
        return value

    # -- files --------------------------------------------------------------------------------

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int
    ) -> tuple[Opened, Entry]:
        """Create and open a file."""
        mode = stat.S_IMODE(mode)
        opened, node = await self._vfs.create(caller, parent, name, mode, flags)
        return opened, self._entry(node)

    async def tmpfile(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int
    ) -> tuple[Opened, Entry]:
        """Create and open a file without a name, if the file system can.

        Raises:
            OSError: ENOSYS ends the kernel's asking.
        """
        del name
        make = getattr(self._vfs, "tmpfile", None)
        if make is None:
            fail(errno.ENOSYS)
        opened, node = await make(caller, parent, stat.S_IMODE(mode), flags)
        return opened, self._entry(node)

    async def open(self, caller: Caller, ino: Ino, flags: int) -> Opened:
        """Return a handle for a file."""
        return await self._vfs.open(caller, ino, flags)

    async def read(self, caller: Caller, fh: int, off: int, size: int) -> ReadableBuffer:
        """Return bytes of a file."""
        del caller
        data = await self._vfs.read(fh, off, size)
        READ_SIZES.observe(len(data))
        return data

    async def write(
        self, caller: Caller, fh: int, off: int, data: ReadableBuffer, drops: bool
    ) -> int:
        """Accept bytes; `drops` has setuid and setgid bits cleared before.

        `data` is the receive buffer itself if it is long.
        """
        del caller
        if drops:
            await self._vfs.drop_privileges(fh)
        WRITE_SIZES.observe(len(data))
        if self._payloads is None:
            return await self._vfs.write(fh, off, data)
        cost = self._payloads.take(len(data))
        try:
            return await self._vfs.write(fh, off, data)
        finally:
            self._payloads.give(cost)

    async def flush(self, caller: Caller, fh: int, owner: int) -> None:
        """Store what was written through a descriptor that is being closed."""
        await self._vfs.flush(caller, fh, owner)

    async def release(self, caller: Caller, fh: int, owner: int | None) -> None:
        """Forget a handle after its last descriptor and mapping are gone."""
        await self._vfs.release(caller, fh, owner)

    # -- shared -------------------------------------------------------------------------------

    async def _lookup_dots(self, caller: Caller, ino: Ino, name: bytes) -> Node:
        attr = await self._vfs.getattr(caller, ino)
        if name == b".." and ino != ROOT_INO:
            ino = self._vfs.kernel_ino(attr.parent)
            attr = await self._vfs.getattr(caller, ino)
        return Node(ino, attr)

    def _entry(self, node: Node) -> Entry:
        ino, attr = node
        vfs = self._vfs
        is_dir = attr.type is NodeType.DIRECTORY
        entry_s = vfs.dir_entry_timeout_s if is_dir else vfs.entry_timeout_s
        return ino, attr, vfs.attr_timeout_s, entry_s

    def _tell(
        self, header: Header, args: tuple[object, ...], result: object, failure: int, took_s: float
    ) -> None:
        """Tell those who listen to the access log."""
        self._access.tell(answered(header, args[1:], result, failure, took_s))


def refuse_poison(op: int, args: Sequence[object]) -> None:
    """Say that a request is refused, because it killed its servers before."""
    log.error("request %d killed its servers, answered with EIO: %r", op, args)


def _armed(handler: Handler) -> Handler:
    """Let the handler pass the place at which a test may kill it."""
    if not failpoint.armed:
        return handler
    place = f"request.{handler.__name__}"

    def armed(*args: object) -> object:
        failpoint.reach(place)
        return handler(*args)

    return armed


def _bug(opcode: int, args: tuple[object, ...], error: BaseException) -> None:
    log.error("Bug in %s%r", name_of(opcode), args, exc_info=error)
