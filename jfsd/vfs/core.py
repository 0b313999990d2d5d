"""What all operations share: the parts they use, the mapping of the root, attributes in use."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from jfsd.clock import monotonic_s
from jfsd.meta.codec import decode_attr
from jfsd.types import MAX_NAME_BYTES, ROOT_INO, TRASH_INO, Attr, Ino, NodeType
from jfsd.vfs.handles import Handles, OpenInode
from jfsd.vfs.ports import Options, Seen, dirty_attr

if TYPE_CHECKING:
    from jfsd.chunk.reader import Reader
    from jfsd.chunk.writer import Writer
    from jfsd.meta.client import Meta

TRASH_NAME = b".trash"
RESERVED = frozenset((b".accesslog", b".config", b".stats", b".control", TRASH_NAME))
"""Names that the mount's root keeps for virtual files (format.md §8.2)."""

_SEEN_MAX = 100_000
_CLOSED_MAX = 10_000
_REMOVED_MAX = 1000
_TOUCHED_MAX = 1000
_ALTERED_MAX = 4096


def fail(code: int) -> NoReturn:
    """Raise the OSError of `code`."""
    raise OSError(code, os.strerror(code))


class ByNumber:
    """Turns ENOENT of a node that the kernel named by its number into ESTALE.

    The kernel remembers for a while which number a name had. When another file has
    taken the name since, ENOENT would reach the program that asked for the name; on
    ESTALE the kernel looks the name up anew (path_resolution(7), retry_estale()).
    """

    __slots__ = ()

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise ESTALE in place of ENOENT."""
        if isinstance(error, FileNotFoundError):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None


by_number = ByNumber()
"""One for all: it keeps nothing, and a request passes it."""


class Core:
    """State of one mounted file system, without any operation.

    Inode 1 of the kernel is `options.root` of the volume; every other number is the
    same on both sides.
    """

    def __init__(self, meta: Meta, writer: Writer, reader: Reader, options: Options) -> None:
        self.meta = meta
        self.writer = writer
        self.reader = reader
        self.options = options
        self.handles = Handles()
        self._seen: dict[Ino, Seen] = {}
        """In the order of noting; not an OrderedDict, which takes twice the memory."""
        self.trashed: OrderedDict[Ino, None] = OrderedDict()
        """Inodes that were looked up in the trash lately: who changes them means them."""
        self._removed_dirs: OrderedDict[Ino, Attr] = OrderedDict()
        self._touched: OrderedDict[Ino, tuple[bytes, float]] = OrderedDict()
        """Records of directories as our own last change left them, and when that was."""
        self._altered: OrderedDict[Ino, float] = OrderedDict()
        """When attributes were last changed by an operation of ours, in the order of that."""
        self._altered_before_s = 0.0
        """Changes up to this time may be missing in `_altered`."""
        self._closed: OrderedDict[Ino, tuple[Attr, float]] = OrderedDict()
        """Attributes of files closed lately and when they were true; empty without open cache."""
        meta.touched = self.note_touched

    def set_options(self, options: Options) -> None:
        """Behave as these options say from the next answer on; the root stays."""
        self.options = options
        if not options.open_cache_s:
            self._closed.clear()

    @property
    def attr_timeout_s(self) -> float:
        """How long the kernel may use attributes without asking."""
        return self.options.attr_timeout_s

    @property
    def entry_timeout_s(self) -> float:
        """How long the kernel may use the entry of a file."""
        return self.options.entry_timeout_s

    @property
    def dir_entry_timeout_s(self) -> float:
        """How long the kernel may use the entry of a directory."""
        return self.options.dir_entry_timeout_s

    def volume_ino(self, ino: Ino) -> Ino:
        """Return the volume's number for the kernel's."""
        return self.options.root if ino == ROOT_INO else ino

    def kernel_ino(self, ino: Ino) -> Ino:
        """Return the kernel's number for the volume's."""
        return ROOT_INO if ino == self.options.root else ino

    def is_reserved(self, parent: Ino, name: bytes) -> bool:
        """Return whether `name` in the kernel's `parent` is one of the virtual files."""
        return parent == ROOT_INO and name in RESERVED

    def check_new_name(self, parent: Ino, name: bytes) -> None:
        """Raise EROFS, ENAMETOOLONG, EINVAL or EEXIST if no such entry may be made."""
        self.check_writable()
        check_name(name)
        if self.is_reserved(parent, name) or name in (b".", b".."):
            fail(errno.EEXIST)

    def check_writable(self) -> None:
        """Raise EROFS on a read-only mount."""
        if self.options.read_only:
            fail(errno.EROFS)

    def current(self, ino: Ino, attr: Attr) -> Attr:
        """Return `attr` with what is written here and not yet committed; note it as fresh."""
        inode = self.handles.find(ino)
        if inode is not None:
            if inode.attr.mtime_ns != attr.mtime_ns:
                self.reader.invalidate(ino)
            inode.attr, inode.seen_s = attr, monotonic_s()
        elif ino in self._closed:
            self._closed[ino] = attr, monotonic_s()
        pending = self.writer.dirty(ino)
        return attr if pending is None else dirty_attr(attr, *pending)

    def own_inos(self) -> tuple[Collection[Ino], ...]:
        """Return the nodes of which `current` may know other attributes than the metadata."""
        return self.handles.open_inos(), self._closed.keys(), self.writer.dirty_inos

    async def fresh(self, inode: OpenInode) -> Attr:
        """Return attributes of an open inode from the metadata."""
        attr = await self.meta.getattr(inode.ino)
        self.current(inode.ino, attr)
        return attr

    def committed(self, ino: Ino, attr: Attr) -> None:
        """Note that our own writes made `attr` (the writer calls this at each commit)."""
        self.note_contents(ino, attr)
        self.note_altered(ino)
        inode = self.handles.find(ino)
        if inode is not None:
            inode.attr, inode.seen_s = attr, monotonic_s()
        elif ino in self._closed:
            self._closed[ino] = attr, monotonic_s()

    async def attr_at_open(self, ino: Ino) -> tuple[Attr, float]:
        """Return attributes for an open, and when they were true: now, or within the open cache."""
        inode, now_s = self.handles.find(ino), monotonic_s()
        known = self._closed.get(ino) if inode is None else (inode.attr, inode.seen_s)
        if known is not None and now_s - known[1] < self.options.open_cache_s:
            return known
        return await self.meta.getattr(ino), now_s

    async def attr_of(self, ino: Ino) -> Attr:
        """Return the attributes of a node that the kernel named by its number.

        A directory that was removed here lives on for those who have it open or work in
        it: empty, and with no links.

        Raises:
            OSError: ESTALE if there is no such node any more.
        """
        removed = self._removed_dirs.get(ino)
        if removed is not None:
            return removed
        record = self._record(ino)
        if record is not None:
            return decode_attr(record)
        with by_number:
            return await self.meta.getattr(ino)

    def note_touched(self, ino: Ino, record: bytes | None) -> None:
        """Remember a node that an operation of ours has changed.

        Args:
            ino: The node.
            record: What a directory's attributes are now; None is not known.
        """
        self.note_altered(ino)
        self._touched.pop(ino, None)
        if record is not None and self.options.attr_timeout_s:
            self._touched[ino] = record, monotonic_s()
            if len(self._touched) > _TOUCHED_MAX:
                self._touched.popitem(last=False)

    def note_altered(self, ino: Ino) -> None:
        """Remember that an operation of ours has changed attributes of a node."""
        altered = self._altered
        altered.pop(ino, None)
        altered[ino] = monotonic_s()
        if len(altered) > _ALTERED_MAX:
            _, self._altered_before_s = altered.popitem(last=False)

    def altered_since(self, at_s: float, inos: Sequence[Ino]) -> bool:
        """Return whether a program here may have changed one of the nodes since `at_s`."""
        dirty = self.writer.dirty_inos
        if self._altered_before_s >= at_s or (dirty and not dirty.isdisjoint(inos)):
            return True
        recent = set[Ino]()
        for ino, when_s in reversed(self._altered.items()):
            if when_s < at_s:
                break
            recent.add(ino)
        return bool(recent) and not recent.isdisjoint(inos)

    def attr_valid_s(self, ino: Ino) -> float:
        """Return how long the kernel may use what `getattr` has just said of `ino`.

        What was true a while ago is valid as much shorter: nobody sees attributes older
        than the attribute timeout.
        """
        touched = self._touched.get(self.volume_ino(ino))
        timeout_s = self.options.attr_timeout_s
        return timeout_s if touched is None else max(touched[1] + timeout_s - monotonic_s(), 0.0)

    def touched_record(self, ino: Ino) -> bytes | None:
        """Return the record of a directory that we changed within the attribute timeout.

        The kernel forgets a directory's attributes whenever a name in it changes, and asks
        for them at the next path that leads through it.
        """
        return self._record(self.volume_ino(ino))

    def _record(self, ino: Ino) -> bytes | None:
        touched = self._touched.get(ino)
        if touched is None:
            return None
        if monotonic_s() - touched[1] < self.options.attr_timeout_s:
            return touched[0]
        del self._touched[ino]
        return None

    def note_removed(self, ino: Ino, attr: Attr) -> None:
        """Remember a directory that was just removed."""
        self._touched.pop(ino, None)
        self._removed_dirs[ino] = replace(attr, nlink=0)
        if len(self._removed_dirs) > _REMOVED_MAX:
            self._removed_dirs.popitem(last=False)

    def note_trashed(self, ino: Ino) -> None:
        """Remember that somebody has found the inode in the trash."""
        self.trashed[ino] = None
        self.trashed.move_to_end(ino)
        if len(self.trashed) > _REMOVED_MAX:
            self.trashed.popitem(last=False)

    def note_closed(self, inode: OpenInode) -> None:
        """Keep the attributes of a file that nobody has open any more for its next open."""
        if self.options.open_cache_s:
            self._closed[inode.ino] = inode.attr, inode.seen_s
            self._closed.move_to_end(inode.ino)
            if len(self._closed) > _CLOSED_MAX:
                self._closed.popitem(last=False)

    def file_length(self, inode: OpenInode) -> int:
        """Return the length of an open file as this mount knows it."""
        pending = self.writer.dirty(inode.ino)
        return inode.attr.length if pending is None else max(inode.attr.length, pending[0])

    async def shown(self, ino: Ino, attr: Attr) -> Attr:
        """Return `attr` as programs see it.

        A link that lies in the trash does not count: POSIX wants the number of links that
        a program can reach, and the trash keeps one for every name that was removed.
        """
        attr = self.current(ino, attr)
        if attr.type == NodeType.DIRECTORY or ino >= TRASH_INO:
            return attr
        if attr.parent >= TRASH_INO:
            attr.nlink = 0
        elif attr.parent == 0 and attr.nlink > 1:
            attr.nlink -= min(await self.meta.trash_links(ino), attr.nlink)
        return attr

    def same_contents(self, ino: Ino, attr: Attr) -> bool:
        """Note `attr` and return whether the file's contents are as when last noted.

        Close-to-open: the kernel's pages and the cached slice lists stay valid across
        opens as long as nobody else has committed data (format.md §8.4).
        """
        before = self._seen.get(ino)
        self.note_contents(ino, attr)
        return (
            before is not None and before.mtime_ns == attr.mtime_ns and before.length == attr.length
        )

    def note_contents(self, ino: Ino, attr: Attr) -> None:
        """Remember that the kernel's pages of `ino` are those of `attr`."""
        self._seen.pop(ino, None)
        self._seen[ino] = Seen(attr.mtime_ns, attr.length)
        if len(self._seen) > _SEEN_MAX:
            for old in list(islice(self._seen, _SEEN_MAX // 2)):
                del self._seen[old]


def check_name(name: bytes) -> None:
    """Raise ENAMETOOLONG or EINVAL if `name` cannot be an entry."""
    if len(name) > MAX_NAME_BYTES:
        fail(errno.ENAMETOOLONG)
    if not name or b"/" in name or b"\0" in name:
        fail(errno.EINVAL)
