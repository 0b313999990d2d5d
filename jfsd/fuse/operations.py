"""The kernel's requests that come through pyfuse3: decode, call the file system, reply.

Those that programs make most never come here: `jfsd.fuse.direct` has them.

Errors of the file system are OSError. Anything else that a handler raises is a bug of
ours: it is logged with its traceback and the program gets EIO; the loop goes on. A
handler that is cancelled from outside (a forced exit) answers nothing: the request
stays with the kernel, and the next process is asked again.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import stat
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from jfsd import failpoint
from jfsd.clock import monotonic_s
from jfsd.fuse import abi, native
from jfsd.fuse.direct import refuse_poison
from jfsd.fuse.methods import answered
from jfsd.fuse.native import pyfuse3
from jfsd.metrics import REQUEST_ERRORS, REQUESTS
from jfsd.types import MAX_NAME_BYTES, NOW_NS, Attr, Caller, Ino, NodeType
from jfsd.vfs.accesslog import AccessLog
from jfsd.vfs.dirs import Node
from jfsd.vfs.ports import SetAttr
from jfsd.vfs.virtual import ACCESS_LOG_INO

if TYPE_CHECKING:
    from jfsd.vfs.vfs import Vfs

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]

log = logging.getLogger(__name__)

GENERATION = 1
BLOCK_BYTES = 65536
"""st_blksize: what programs like to read and write at once (format.md §9.1)."""

_STATFS_BLOCK = 4096
_FORMATS = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.SYMLINK: stat.S_IFLNK,
    NodeType.FIFO: stat.S_IFIFO,
    NodeType.BLOCKDEV: stat.S_IFBLK,
    NodeType.CHARDEV: stat.S_IFCHR,
    NodeType.SOCKET: stat.S_IFSOCK,
}
_SIZED = frozenset((NodeType.FILE, NodeType.DIRECTORY, NodeType.SYMLINK))
_DEVICES = frozenset((NodeType.BLOCKDEV, NodeType.CHARDEV))


def replying(handler: Handler[P, T]) -> Handler[P, T]:
    """Let `handler` fail with nothing but what pyfuse3 turns into an answer."""
    place = f"request.{handler.__name__}"

    @functools.wraps(handler)
    async def guarded(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> T:
        current, began_s, failure = native.current(), monotonic_s(), 0
        result: T | None = None
        try:
            self._refuse_poison(current[0], args)
            work = handler(self, *args, **kwargs)
            if failpoint.armed:
                work = failpoint.reached(place, work)
            result = await _Marked(work, current[0])
        except OSError as error:
            failure = error.errno or errno.EIO
            raise pyfuse3.FUSEError(failure) from None
        except pyfuse3.FUSEError as error:
            failure = error.errno
            raise
        except Exception:
            failure = errno.EIO
            log.exception("Bug in %s%r", handler.__name__, args)
            raise pyfuse3.FUSEError(failure) from None
        else:
            return result
        finally:
            if current[2] != ACCESS_LOG_INO:  # its readers wait for what others do
                took_s = monotonic_s() - began_s
                REQUESTS[current[1]].observe(took_s)
                if failure:
                    REQUEST_ERRORS[failure] += 1
                if self._access.listeners:
                    self._access.tell(answered(current, args, result, failure, took_s))

    return guarded


class Operations(pyfuse3.Operations):
    """All requests of one mount, answered by `vfs`.

    Node ids are inode numbers and their generation is constant, so that lookup counts
    need no keeping and any process can answer for any node.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self,
        vfs: Vfs,
        *,
        acls: bool = False,
        poisoned: Collection[int] = (),
        access: AccessLog | None = None,
    ) -> None:
        """Serve `vfs`.

        Args:
            vfs: The file system.
            acls: The kernel checks POSIX ACLs.
            poisoned: Requests to answer with EIO, because they killed servers before.
            access: Told each request when it is answered.
        """
        self._access = access or AccessLog()
        self.enable_acl = acls
        self._poisoned = poisoned
        self._vfs = vfs
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._interrupted: set[int] = set()
        native.on_interrupt(self._interrupt)

    @property
    def waiting(self) -> set[int]:
        """Requests that wait for a lock."""
        return set(self._waiting)

    # -- names --------------------------------------------------------------------------------

    @replying
    async def mknod(
        self, parent_inode: Ino, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Create a file, FIFO, socket or device."""
        caller = _writer(ctx)
        check_name(name)
        return self._entry(await self._vfs.mknod(caller, parent_inode, name, mode, rdev))

    @replying
    async def symlink(
        self, parent_inode: Ino, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Create a symbolic link."""
        caller = _writer(ctx)
        check_name(name)
        return self._entry(await self._vfs.symlink(caller, parent_inode, name, target))

    @replying
    async def link(
        self, inode: Ino, new_parent_inode: Ino, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Give a file another name."""
        caller = _writer(ctx)
        check_name(new_name)
        return self._entry(await self._vfs.link(caller, inode, new_parent_inode, new_name))

    @replying
    async def readlink(self, inode: Ino, ctx: pyfuse3.RequestContext) -> bytes:  # noqa: ARG002
        """Return a symbolic link's target."""
        return await self._vfs.readlink(inode)

    # -- attributes ---------------------------------------------------------------------------

    @replying
    async def setattr(
        self,
        inode: Ino,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change those attributes that `fields` names."""
        caller = _writer(ctx)
        body = native.body()
        atime_now, mtime_now = abi.setattr_now(body)
        atime_ns = NOW_NS if atime_now else attr.st_atime_ns
        mtime_ns = NOW_NS if mtime_now else attr.st_mtime_ns
        changes = SetAttr(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=atime_ns if fields.update_atime else None,
            mtime_ns=mtime_ns if fields.update_mtime else None,
            drop_privileges=abi.setattr_drops_privileges(body),
        )
        return self._attributes(inode, await self._vfs.setattr(caller, inode, changes, fh))

    @replying
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:  # noqa: ARG002
        """Return capacity and use."""
        now = await self._vfs.statfs(native.current()[2])
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _STATFS_BLOCK
        data.f_blocks = now.total_bytes // _STATFS_BLOCK
        data.f_bfree = data.f_bavail = now.avail_bytes // _STATFS_BLOCK
        data.f_files = now.inodes
        data.f_ffree = data.f_favail = now.free_inodes
        data.f_namemax = MAX_NAME_BYTES
        return data

    @replying
    async def listxattr(self, inode: Ino, ctx: pyfuse3.RequestContext) -> list[bytes]:  # noqa: ARG002
        """Return the names of all extended attributes."""
        return await self._vfs.listxattr(inode)

    @replying
    async def setxattr(
        self, inode: Ino, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """Create, replace or set an extended attribute, as the request's flags say."""
        caller, flags = _writer(ctx), abi.setxattr_flags(native.body())
        await self._vfs.setxattr(caller, inode, name, value, flags)

    @replying
    async def removexattr(self, inode: Ino, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an extended attribute."""
        await self._vfs.removexattr(_writer(ctx), inode, name)

    # -- files --------------------------------------------------------------------------------

    @replying
    async def read(self, fh: int, off: int, size: int) -> bytes:  # noqa: ARG002
        """Answer READDIR in both forms, GETLK and LSEEK; READ itself never comes here."""
        opcode = native.opcode()
        if opcode in (abi.READDIR, abi.READDIRPLUS):
            return await self._readdir(opcode == abi.READDIRPLUS)
        if opcode == abi.LSEEK:
            return abi.lseek_reply(await self._vfs.lseek(*abi.lseek_request(native.body())))
        return await self._getlk()

    @replying
    async def write(self, fh: int, off: int, buf: bytes) -> int:  # noqa: ARG002
        """Answer COPY_FILE_RANGE; WRITE itself never comes here."""
        request = abi.copy_request(native.body())
        return await self._vfs.copy_file_range(_native_writer(), *request)

    @replying
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make a file durable; also answers FALLOCATE, SETLK and SETLKW."""
        opcode = native.opcode()
        if opcode == abi.FSYNC:
            await self._vfs.fsync(fh, datasync)
        elif opcode == abi.FALLOCATE:
            caller = _native_writer()
            await self._vfs.fallocate(caller, *abi.fallocate_request(native.body()))
        else:
            await self._setlk(opcode == abi.SETLKW)

    # -- directories --------------------------------------------------------------------------

    @replying
    async def opendir(self, inode: Ino, ctx: pyfuse3.RequestContext) -> int:
        """Return a handle for a listing."""
        return await self._vfs.opendir(_writer(ctx), inode)

    async def _readdir(self, plus: bool) -> bytes:
        """Return entries after the request's cookie, as many as fit; nothing is the end."""
        fh, cookie, size = abi.read_request(native.body())
        vfs = self._vfs
        page, start = await vfs.readdir(fh, cookie, plus=plus)
        if not plus:
            page = page._replace(records=None)
        timeouts = (vfs.attr_timeout_s, vfs.entry_timeout_s, vfs.dir_entry_timeout_s)
        return native.pack_entries(page, start, size, timeouts)

    @replying
    async def releasedir(self, fh: int) -> None:
        """Forget a listing."""
        await self._vfs.releasedir(fh)

    @replying
    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: ARG002
        """Make a directory durable."""
        await self._vfs.fsyncdir(fh)

    async def forget(self, inode_list: Sequence[tuple[Ino, int]]) -> None:
        """Do nothing; the native part answers before this is called."""

    # -- locks --------------------------------------------------------------------------------

    async def _getlk(self) -> bytes:
        caller, want = _native_reader(), abi.lock_request(native.body())
        return abi.lock_reply(
            *await self._vfs.getlk(
                caller, want.fh, want.owner, want.type, want.start, want.end, want.pid
            )
        )

    async def _setlk(self, blocking: bool) -> None:
        caller, want = _native_writer(), abi.lock_request(native.body())
        if want.is_flock:
            work = self._vfs.flock(caller, want.fh, want.owner, want.type, blocking)
        else:
            work = self._vfs.setlk(
                caller, want.fh, want.owner, want.type, want.start, want.end, want.pid, blocking
            )
        if blocking:
            await self._interruptible(caller.op, work)
        else:
            await work

    async def _interruptible(self, op: int, work: Awaitable[None]) -> None:
        """Carry `work` to its end, or to EINTR when a signal interrupts request `op`."""
        task = self._waiting[op] = asyncio.ensure_future(work)
        if op in self._interrupted:
            task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            if op not in self._interrupted:
                raise
            raise pyfuse3.FUSEError(errno.EINTR) from None
        finally:
            self._waiting.pop(op, None)
            self._interrupted.discard(op)

    def _interrupt(self, op: int) -> None:
        """Note that a signal interrupts request `op`, which may not have begun to wait."""
        self._interrupted.add(op)
        task = self._waiting.get(op)
        if task is not None:
            task.cancel()

    # -- shared -------------------------------------------------------------------------------

    def _refuse_poison(self, op: int, args: tuple[object, ...]) -> None:
        """Raise EIO for a request that killed its servers before."""
        if op in self._poisoned:
            refuse_poison(op, args)
            raise pyfuse3.FUSEError(errno.EIO)

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        ino, attr = node
        entry = self._attributes(ino, attr)
        vfs = self._vfs
        is_dir = attr.type is NodeType.DIRECTORY
        entry.entry_timeout = vfs.dir_entry_timeout_s if is_dir else vfs.entry_timeout_s
        return entry

    def _attributes(self, ino: Ino, attr: Attr) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        kind = attr.type
        size = attr.length if kind in _SIZED else 0
        entry.st_ino = ino
        entry.generation = GENERATION
        entry.attr_timeout = self._vfs.attr_timeout_s
        entry.st_mode = _FORMATS[kind] | attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev if kind in _DEVICES else 0
        entry.st_size = size
        entry.st_blocks = (size + 511) // 512
        entry.st_blksize = BLOCK_BYTES
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        return entry


class _Marked(Generic[T]):
    """Awaits a handler and tells, step by step, when it is running and when it waits.

    A process that dies while a handler runs leaves its request's number behind.
    """

    __slots__ = ("_handler", "_op")

    def __init__(self, handler: Coroutine[Any, Any, T], op: int) -> None:
        self._handler = handler
        self._op = op

    def __await__(self) -> Generator[Any, Any, T]:
        handler, op, running = self._handler, self._op, native.running
        resume: Callable[[Any], Any] = handler.send
        value: Any = None
        while True:
            running(op)
            try:
                waiting = resume(value)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                running(0)
            try:
                value, resume = (yield waiting), handler.send
            except BaseException as error:  # noqa: BLE001 - handed to the handler
                value, resume = error, handler.throw


def check_name(name: bytes) -> None:
    """Raise ENAMETOOLONG; the kernel lets names of up to 1024 bytes through."""
    if len(name) > MAX_NAME_BYTES:
        raise pyfuse3.FUSEError(errno.ENAMETOOLONG)


def _writer(ctx: pyfuse3.RequestContext) -> Caller:
    """Return who asks, and the identity of the request, watched until it is answered."""
    return Caller(ctx.uid, ctx.gid, ctx.pid, ctx.umask, native.unique())


def _native_reader() -> Caller:
    _, _, _, uid, gid, pid = native.current()
    return Caller(uid, gid, pid)


def _native_writer() -> Caller:
    _, _, _, uid, gid, pid = native.current()
    return Caller(uid, gid, pid, 0, native.unique())
