"""Operations on names: lookup, create, remove, rename, link, and directory listings."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from dataclasses import dataclass

from jfsd.clock import monotonic_s
from jfsd.meta.codec import damaged, decode_attr, encode_attr
from jfsd.types import (
    MAX_SYMLINK_BYTES,
    ROOT_INO,
    TRASH_INO,
    Attr,
    Caller,
    Ino,
    NodeType,
)
from jfsd.vfs.core import TRASH_NAME, Core, check_name, fail
from jfsd.vfs.dirs import (
    COOKIE_DOT,
    COOKIE_DOTDOT,
    NO_ENTRIES,
    Node,
    Page,
    Snapshot,
    blank_attr,
    place_after,
)
from jfsd.vfs.ports import Opened

_FIRST_BATCH, _BATCH = 256, 1024
"""Entries that are taken from a snapshot, and whose attributes are fetched, together: so many
while somebody waits, and so many ahead of who goes on. The kernel asks for attributes at the
start, and goes on with them only if somebody used some."""

_NO_PARENT = bytes(8)
_TRASH = TRASH_INO.to_bytes(8)
_PARENT = slice(63, 71)
"""Where a record holds the parent (format.md §6.1); 0 if there were several."""

_EXCHANGE = 2
"""Flag of renameat2(2)."""

_DIRECTORY_HANDLE = 1 << 63
"""Set in handles of directories; the other bits are the inode."""

_NODE_TYPES = {
    stat.S_IFREG: NodeType.FILE,
    stat.S_IFDIR: NodeType.DIRECTORY,
    stat.S_IFLNK: NodeType.SYMLINK,
    stat.S_IFIFO: NodeType.FIFO,
    stat.S_IFBLK: NodeType.BLOCKDEV,
    stat.S_IFCHR: NodeType.CHARDEV,
    stat.S_IFSOCK: NodeType.SOCKET,
    0: NodeType.FILE,
}


@dataclass(slots=True, eq=False)
class _Ahead:
    """The page after cookie `after`, whose records were asked for at `at_s`."""

    page: Page
    after: int
    at_s: float
    records: asyncio.Task[list[bytes | None]]


@dataclass(slots=True, eq=False)
class _Listing:
    """An open directory: `page` holds the entries after cookie `after`, fetched at `at_s`.

    `ahead` is the page behind that one, once somebody is about to need it.
    """

    ino: Ino
    snapshot: Snapshot | None = None
    page: Page = NO_ENTRIES
    after: int = 0
    at_s: float = 0.0
    ahead: _Ahead | None = None

    def covers(self, cookie: int) -> bool:
        """Return whether the page has the entry that follows `cookie`."""
        cookies = self.page.cookies
        return bool(cookies) and self.after <= cookie < cookies[-1]

    def forget_ahead(self) -> None:
        """Let go of what was asked for ahead."""
        if self.ahead is not None:
            self.ahead.records.cancel()
            self.ahead = None


class NameOps(Core):
    """Everything that reads or changes directory entries."""

    _listings: dict[int, _Listing]
    _attributes_used = False
    """Whether who went on with a listing last went on to use attributes; the next probably will."""

    async def lookup(self, caller: Caller, parent: Ino, name: bytes) -> Node:  # noqa: ARG002
        """Return the node that `name` in `parent` stands for.

        Raises:
            OSError: ENOENT, ENAMETOOLONG.
        """
        check_name(name)
        if parent == ROOT_INO and name == TRASH_NAME and self.options.root == ROOT_INO:
            return Node(TRASH_INO, await self.meta.getattr(TRASH_INO))
        ino, attr = await self.meta.lookup(self.volume_ino(parent), name)
        if parent >= TRASH_INO:
            self.note_trashed(ino)
        return await self._node(ino, attr)

    async def mknod(self, caller: Caller, parent: Ino, name: bytes, mode: int, rdev: int) -> Node:
        """Create a file of any type but directory and symlink; `mode` is a full st_mode."""
        self.check_new_name(parent, name)
        node_type = _NODE_TYPES.get(stat.S_IFMT(mode))
        if node_type is None:
            fail(errno.EINVAL)
        ino, attr = await self.meta.mknod(
            caller, self.volume_ino(parent), name, node_type, stat.S_IMODE(mode), rdev
        )
        return Node(ino, attr)

    async def mkdir(self, caller: Caller, parent: Ino, name: bytes, mode: int) -> Node:
        """Create an empty directory."""
        self.check_new_name(parent, name)
        ino, attr = await self.meta.mknod(
            caller, self.volume_ino(parent), name, NodeType.DIRECTORY, stat.S_IMODE(mode), 0
        )
        return Node(ino, attr)

    async def symlink(self, caller: Caller, parent: Ino, name: bytes, target: bytes) -> Node:
        """Create a symbolic link; its target never changes."""
        self.check_new_name(parent, name)
        if len(target) > MAX_SYMLINK_BYTES:
            fail(errno.ENAMETOOLONG)
        ino, attr = await self.meta.mknod(
            caller, self.volume_ino(parent), name, NodeType.SYMLINK, 0o777, 0, target
        )
        return Node(ino, attr)

    async def create(
        self, caller: Caller, parent: Ino, name: bytes, mode: int, flags: int
    ) -> tuple[Opened, Node]:
        """Create a regular file, or take the one that is there unless O_EXCL, and open it."""
        self.check_new_name(parent, name)
        excl = bool(flags & os.O_EXCL)
        ino, attr, created = await self.meta.create(
            caller, self.volume_ino(parent), name, stat.S_IMODE(mode), excl=excl
        )
        if not created:
            attr = await self._reused(caller, ino, attr, flags)
        keep = not created and self.same_contents(ino, attr)
        if created:
            self.note_contents(ino, attr)
        elif not keep:
            self.reader.invalidate(ino)
        handle = self.handles.open(ino, attr, flags, monotonic_s(), caller.op)
        return Opened(handle.fh, keep_cache=keep), Node(ino, await self.shown(ino, attr))

    async def tmpfile(
        self, caller: Caller, parent: Ino, mode: int, flags: int
    ) -> tuple[Opened, Node]:
        """Create and open a regular file without a name (O_TMPFILE, open(2))."""
        self.check_writable()
        ino, attr = await self.meta.tmpfile(caller, self.volume_ino(parent), stat.S_IMODE(mode))
        self.note_contents(ino, attr)
        handle = self.handles.open(ino, attr, flags, monotonic_s(), caller.op)
        handle.inode.sustained = True
        return Opened(handle.fh), Node(ino, attr)

    async def unlink(self, caller: Caller, parent: Ino, name: bytes) -> None:
        """Remove the entry of anything but a directory; an open file lives on until closed."""
        self._check_removable(parent, name)
        result = await self.meta.unlink(
            caller, self.volume_ino(parent), name, self.handles.open_inos()
        )
        await self._removed(result.ino, result.sustained, result.freed is not None)

    async def rmdir(self, caller: Caller, parent: Ino, name: bytes) -> None:
        """Remove an empty directory."""
        if name == b".":
            fail(errno.EINVAL)
        if name == b"..":
            fail(errno.ENOTEMPTY)
        self._check_removable(parent, name)
        ino, attr = await self.meta.rmdir(caller, self.volume_ino(parent), name)
        self.note_touched(ino, None)
        if attr is not None:
            self.note_removed(ino, attr)

    async def rename(
        self,
        caller: Caller,
        parent: Ino,
        name: bytes,
        new_parent: Ino,
        new_name: bytes,
        flags: int,
    ) -> None:
        """Move an entry; flags 1 NOREPLACE, 2 EXCHANGE (renameat2(2)), 4 is ENOTSUP."""
        self._check_removable(parent, name)
        self._check_removable(new_parent, new_name)
        result = await self.meta.rename(
            caller,
            self.volume_ino(parent),
            name,
            self.volume_ino(new_parent),
            new_name,
            flags,
            self.handles.open_inos(),
        )
        if flags & _EXCHANGE:
            self._touched.clear()
        else:
            self.note_touched(result.ino, None)
        if result.replaced is not None:
            self.note_touched(result.replaced, None)
            await self._removed(result.replaced, result.sustained, result.freed is not None)

    async def link(self, caller: Caller, ino: Ino, parent: Ino, name: bytes) -> Node:
        """Add another name for a file."""
        self.check_new_name(parent, name)
        attr = await self.meta.link(caller, ino, self.volume_ino(parent), name)
        self.note_touched(ino, None)
        inode = self.handles.find(ino)
        if inode is not None:
            inode.sustained = False  # a file without a name (O_TMPFILE) has one now
        return Node(ino, await self.shown(ino, attr))

    async def readlink(self, ino: Ino) -> bytes:
        """Return the target of a symbolic link."""
        return await self.meta.readlink(ino)

    # -- listings -------------------------------------------------------------------------

    async def opendir(self, caller: Caller, ino: Ino) -> int:  # noqa: ARG002
        """Return a handle for a listing; the directory is read at the first `readdir`.

        The number names the directory and nothing else: it stands for no state that a
        restart could lose, and two listings of one directory share what was read.
        """
        return _DIRECTORY_HANDLE | ino

    async def readdir(self, fh: int, cookie: int, *, plus: bool = True) -> tuple[Page, int]:
        """Return a page, and where in it the entries after `cookie` begin; none is the end.

        Cookie 0 is the start, with a fresh look. Without `plus` the page may have no
        attributes; with it they are not older than the attribute timeout. A handle of an
        earlier process is taken as it comes: cookies depend on names only.
        """
        if not fh & _DIRECTORY_HANDLE:
            fail(errno.EBADF)
        listing = self._listings.get(fh)
        if listing is None:
            listing = self._listings[fh] = _Listing(fh ^ _DIRECTORY_HANDLE)
        if cookie == 0:
            listing.snapshot, listing.page = None, NO_ENTRIES
        page = listing.page
        good = not plus or (page.records is not None and self._attributes_good(page, listing.at_s))
        if not good or not listing.covers(cookie):
            at_s, page = await self._fetch(listing, cookie, plus=plus)
            listing.page, listing.after, listing.at_s = page, cookie, at_s
        start = place_after(page, cookie)
        if cookie > COOKIE_DOTDOT:
            self._attributes_used = plus
        if plus and self._attributes_used:
            self._fetch_ahead(listing)
        return page, start

    async def releasedir(self, fh: int) -> None:
        """Forget the listing."""
        listing = self._listings.pop(fh, None)
        if listing is not None:
            listing.forget_ahead()

    async def fsyncdir(self, fh: int) -> None:
        """Return; every change of a directory is in Redis before it is answered."""

    def _attributes_good(self, page: Page, at_s: float) -> bool:
        """Return whether attributes of `at_s` may be shown.

        The kernel takes them for newer than those that it got with the answer to a change.
        """
        if monotonic_s() - at_s > self.options.attr_timeout_s:
            return False
        return not self.altered_since(at_s, page.inos)

    async def _fetch(self, listing: _Listing, cookie: int, *, plus: bool) -> tuple[float, Page]:
        """Return entries after `cookie`, from the snapshot of the listing or a new one.

        And how old their attributes may be: since when, on the monotonic clock.
        """
        at_s, ahead, own = monotonic_s(), listing.ahead, None
        if (
            plus
            and ahead is not None
            and ahead.after == cookie
            and self._attributes_good(ahead.page, ahead.at_s)
        ):
            listing.ahead = None
            at_s, page, records = ahead.at_s, ahead.page, await ahead.records
        else:
            listing.forget_ahead()
            if cookie < COOKIE_DOTDOT:
                itself = self.attr_of(self.volume_ino(listing.ino))
                page, own = await asyncio.gather(self._entries(listing, cookie, plus=plus), itself)
            else:
                page = await self._entries(listing, cookie, plus=plus)
            records = await self.meta.records(page.inos) if plus and page.inos else []
        if plus:
            await self._bring_up_to_date(page, records)
            page = page._replace(records=records)
        return at_s, page if own is None else self._with_dots(listing.ino, own, cookie, page)

    async def _entries(self, listing: _Listing, cookie: int, *, plus: bool) -> Page:
        """Return entries after `cookie`, without their attributes."""
        snapshot = listing.snapshot
        if snapshot is None:
            snapshot = Snapshot()
            async for pairs in self.meta.scan(self.volume_ino(listing.ino)):
                try:
                    snapshot.add(pairs)
                except ValueError as error:
                    raise damaged("directory entry") from error
            listing.snapshot = snapshot  # another listing of the directory may forget it again
        batch = _BATCH if cookie and not plus else _FIRST_BATCH
        return Page(*snapshot.after(max(cookie, COOKIE_DOTDOT), batch), None)

    def _fetch_ahead(self, listing: _Listing) -> None:
        """Ask for the page behind this one while the kernel still takes entries from it."""
        if listing.ahead is not None or listing.snapshot is None or not listing.page.cookies:
            return
        after = listing.page.cookies[-1]
        page = Page(*listing.snapshot.after(max(after, COOKIE_DOTDOT), _BATCH), None)
        if page.inos:
            records = asyncio.ensure_future(self.meta.records(page.inos))
            records.add_done_callback(_noticed)
            listing.ahead = _Ahead(page, after, monotonic_s(), records)

    async def _bring_up_to_date(self, page: Page, records: list[bytes | None]) -> None:
        """Let records say what `shown` says, where that may be another thing."""
        special = {
            i
            for i, record in enumerate(records)
            if record is not None and not _NO_PARENT < record[_PARENT] < _TRASH
        }
        for known in (*self.own_inos(), self._removed_dirs):
            if known:
                special.update(i for i, ino in enumerate(page.inos) if ino in known)
        for i in special:
            record, ino = records[i], page.inos[i]
            attr = blank_attr(NodeType(page.types[i])) if record is None else decode_attr(record)
            records[i] = encode_attr((await self._node(ino, attr)).attr)

    def _with_dots(self, ino: Ino, attr: Attr, cookie: int, page: Page) -> Page:
        """Return the page with "." and ".." before it, or only the latter after a cookie."""
        above = ino if ino == ROOT_INO else self.kernel_ino(attr.parent)
        first = 0 if cookie < COOKIE_DOT else 1
        return Page(
            [COOKIE_DOT, COOKIE_DOTDOT][first:] + page.cookies,
            [b".", b".."][first:] + page.names,
            [ino, above][first:] + page.inos,
            bytes([attr.type] * 2)[first:] + page.types,
            None if page.records is None else [*[encode_attr(attr)] * (2 - first), *page.records],
        )

    # -- shared ---------------------------------------------------------------------------

    async def _reused(self, caller: Caller, ino: Ino, attr: Attr, flags: int) -> Attr:
        """Return the attributes of a file that another client created just before.

        The kernel takes it for new and sends no truncation of its own.
        """
        if not flags & os.O_TRUNC or not attr.length:
            return self.current(ino, attr)
        if self.writer.dirty(ino) is not None:
            await self.writer.flush(ino)
        attr = await self.meta.truncate(caller, ino, 0, through_handle=False)
        self.reader.invalidate(ino)
        return attr

    async def _node(self, ino: Ino, attr: Attr) -> Node:
        self._removed_dirs.pop(ino, None)  # it has a name, if only one in the trash
        return Node(self.kernel_ino(ino), await self.shown(ino, attr))

    def _check_removable(self, parent: Ino, name: bytes) -> None:
        self.check_writable()
        check_name(name)
        if self.is_reserved(parent, name):
            fail(errno.EPERM)

    async def _removed(self, ino: Ino, sustained: bool, freed: bool) -> None:
        """Keep a file that lost its last name until its last handle here is closed."""
        self._closed.pop(ino, None)
        self.note_altered(ino)
        if freed:
            self.writer.discard(ino)
        elif sustained and not self.handles.sustain(ino):
            await self.meta.release_sustained(ino)


def _noticed(records: asyncio.Task[list[bytes | None]]) -> None:
    """Let an error that nobody waits for any more not be reported as never retrieved."""
    if not records.cancelled():
        records.exception()
