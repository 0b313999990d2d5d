"""Files: attributes, lengths, and the slice lists that say where contents are."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from jfsd.meta import codec
from jfsd.meta.engine import ASK_CHUNKS, Engine, fail
from jfsd.types import (
    CHUNK_SIZE,
    MAX_FILE_BYTES,
    NOW_NS,
    Attr,
    NodeType,
    PackCommit,
    SliceCommit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jfsd.meta.wire import Argument, Reply
    from jfsd.types import Caller, Ino, Slice

COMPACTED_RECORDS: Final = 1000
"""A compaction takes so many records at most (format.md §11.4)."""

COPY_MAX_BYTES: Final = 1 << 32

_SET_ATIME_NOW, _SET_MTIME_NOW = 128, 256
_SET_MODE, _SET_UID, _SET_GID, _SET_ATIME, _SET_MTIME, _SET_FLAGS = 1, 2, 4, 16, 32, 32768

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
_FALLOC_UNSUPPORTED = 8 | 32


class Files(Engine):
    """Operations on attributes and contents of nodes."""

    async def setattr(
        self,
        caller: Caller,
        ino: Ino,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        flags: int | None = None,
        through_handle: bool = False,
    ) -> Attr:
        """Change what is not None, and ctime; if nothing changes, write nothing.

        A time of NOW_NS is that of the change itself.

        A node that lies in the trash can be changed only through a handle.

        Raises:
            OSError: ENOENT, EPERM (owner, trash), EROFS, EIO (ACL rule missing).
        """
        given = (
            (_SET_MODE, mode),
            (_SET_UID, uid),
            (_SET_GID, gid),
            (_SET_ATIME_NOW if atime_ns == NOW_NS else _SET_ATIME, atime_ns),
            (_SET_MTIME_NOW if mtime_ns == NOW_NS else _SET_MTIME, mtime_ns),
            (_SET_FLAGS, flags),
        )
        result = await self.mutate(
            "setattr",
            caller,
            str(ino),
            str(caller.uid),
            str(sum(bit for bit, value in given if value is not None)),
            str((mode or 0) & 0o7777),
            str(uid or 0),
            str(gid or 0),
            codec.encode_time(atime_ns or 0),
            codec.encode_time(mtime_ns or 0),
            str((flags or 0) & 0xFF),
            "1" if through_handle else "",
        )
        return codec.decode_attr(result[0])

    async def truncate(
        self, caller: Caller, ino: Ino, length: int, *, through_handle: bool
    ) -> Attr:
        """Set the length of a file; what lies between the old and the new reads as zeros.

        Raises:
            OSError: ENOENT, EPERM (no file, flags, trash), EINVAL, EFBIG, ENOSPC, EDQUOT, EROFS.
        """
        if length < 0:
            fail(errno.EINVAL)
        if length > MAX_FILE_BYTES:
            fail(errno.EFBIG)
        through = "1" if through_handle else ""
        return await self._change_length("truncate", caller, ino, codec.encode_u64(length), through)

    async def fallocate(self, caller: Caller, ino: Ino, mode: int, off: int, size: int) -> Attr:
        """Extend a file, or turn a range into zeros; no space is reserved.

        Raises:
            OSError: ENOENT, EPIPE (FIFO), EPERM (no file, flags), EINVAL, ENOTSUP, EFBIG,
                ENOSPC, EDQUOT, EROFS.
        """
        if mode & _FALLOC_UNSUPPORTED:
            fail(errno.ENOTSUP if mode in (8, 32) else errno.EINVAL)
        if mode & FALLOC_PUNCH_HOLE and not mode & FALLOC_KEEP_SIZE:
            fail(errno.EINVAL)
        if mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
            fail(errno.ENOTSUP)
        if size <= 0 or off < 0:
            fail(errno.EINVAL)
        if off + size > MAX_FILE_BYTES:
            fail(errno.EFBIG)
        begin, end = codec.encode_u64(off), codec.encode_u64(off + size)
        return await self._change_length("fallocate", caller, ino, str(mode), begin, end)

    async def _change_length(self, script: str, caller: Caller, ino: Ino, *args: Argument) -> Attr:
        """Run a script that zeroes a range, and list the chunks for it if there are many."""
        listed: list[Argument] = [""]
        while True:
            result = await self.mutate(script, caller, str(ino), *args, *listed)
            if result[0] != ASK_CHUNKS:
                return codec.decode_attr(result[0])
            record = await self.connection.call("GET", self.keys.attr(ino))
            if record is None:
                fail(errno.ENOENT)
            listed = [record[23:35] + record[51:59], *await self._chunk_indexes(ino)]

    async def _chunk_indexes(self, ino: Ino) -> list[Argument]:
        """Return the indexes of a file's chunk lists, found by a scan of all keys."""
        head, cursor, found = self.keys.chunk(ino, 0)[:-1], b"0", set[bytes]()
        pattern = head.replace(b"{", b"\\{") + b"*"
        while True:
            cursor, keys = await self.connection.call(
                "SCAN", cursor, "MATCH", pattern, "COUNT", "10000"
            )
            found.update(key[len(head) :] for key in keys)
            if cursor == b"0":
                return sorted(found)

    async def copy_file_range(
        self, caller: Caller, ino_in: Ino, off_in: int, ino_out: Ino, off_out: int, size: int
    ) -> tuple[int, Attr | None]:
        """Let a range of one file share the slices of another; pending writes are not seen.

        Returns:
            (bytes copied, fewer at the end of the source; attributes of the target, None if
            nothing was copied)

        Raises:
            OSError: ENOENT, EINVAL (no file, overlap), EPERM (flags), EFBIG, ENOSPC, EDQUOT,
                EROFS, EIO (damaged list).
        """
        size = min(size, COPY_MAX_BYTES)
        if off_in < 0 or off_out < 0 or size < 0:
            fail(errno.EINVAL)
        if ino_in == ino_out and off_in < off_out + size and off_out < off_in + size:
            fail(errno.EINVAL)
        if off_in + size > MAX_FILE_BYTES or off_out + size > MAX_FILE_BYTES:
            fail(errno.EFBIG)
        if not size:
            return 0, None
        result = await self.mutate(
            "copy",
            caller,
            str(ino_in),
            codec.encode_u64(off_in),
            str(ino_out),
            codec.encode_u64(off_out),
            str(size),
        )
        return int(result[0]), codec.decode_attr(result[1]) if result[1] else None

    # ---- slices

    async def new_slice_id(self) -> int:
        """Return an id that no client has used; usually without a round trip."""
        return await self.slices.next()

    async def read_slices(self, ino: Ino, index: int, *, known: bool = False) -> list[Slice]:
        """Return the records of a chunk in commit order; empty means zeros.

        Of a file that is `known` to be there, an empty list is taken as it is.

        Raises:
            OSError: ENOENT (no such file), EPERM (not a file), EIO (damaged list).
        """
        records = await self.connection.call("LRANGE", self.keys.chunk(ino, index), "0", "-1")
        if not records and not known:
            record = await self.connection.call("GET", self.keys.attr(ino))
            if record is None:
                fail(errno.ENOENT)
            if codec.decode_attr(record).type is not NodeType.FILE:
                fail(errno.EPERM)
        return codec.decode_slices(records)

    async def commit_slice(self, ino: Ino, index: int, record: Slice, mtime_ns: int) -> SliceCommit:
        """Append `record` and grow the file, exactly once per slice id (format.md §9.11).

        The identity is the slice id: a repeat returns the first result, in whichever process.

        Raises:
            OSError: ENOENT (file gone), EPERM, ENOSPC, EDQUOT, EROFS.
        """
        end = index * CHUNK_SIZE + record.pos + record.len
        result = await self.mutate_as(
            "write",
            f"s{record.id}",
            str(ino),
            str(index),
            codec.encode_slice(record),
            codec.encode_u64(end),
            codec.encode_time(mtime_ns),
        )
        return SliceCommit(int(result[0]), codec.decode_attr(result[1]))

    async def commit_pack(
        self, ino: Ino, records: Sequence[tuple[int, Slice]], mtime_ns: int
    ) -> PackCommit:
        """Append records (chunk index, record) of one slice and grow the file, exactly once.

        As by one commit for each record, in order (format.md §9.11, §11.5); the slice gets as
        many references as there are records. The identity is the slice id.

        Raises:
            OSError: ENOENT (file gone), EPERM, EROFS; ENOSPC, EDQUOT: all were refused.
        """
        first = records[0][1]
        result = await self.mutate_as(
            "write_pack",
            f"s{first.id}",
            str(ino),
            codec.encode_time(mtime_ns),
            f"k{first.id}_{first.size}",
            codec.encode_pack(records),
        )
        lengths = zip(*[iter(result[3:])] * 2, strict=True)
        return PackCommit(
            {int(index): int(length) for index, length in lengths},
            codec.decode_attr(result[0]),
            frozenset(codec.decode_offsets(result[2])),
            int(result[1]),
        )

    async def begin_compaction(self, ino: Ino, index: int) -> list[bytes]:
        """Return the raw records of the chunk, at most 1000, as the origin of a compaction."""
        records: list[bytes] = await self.connection.call(
            "LRANGE", self.keys.chunk(ino, index), "0", str(COMPACTED_RECORDS - 1)
        )
        return records

    async def commit_compaction(
        self,
        ino: Ino,
        index: int,
        origin: list[bytes],
        skipped: int,
        record: Slice,
    ) -> list[tuple[int, int]] | None:
        """Replace `origin[skipped:]` by `record` (format.md §11.4, step 5).

        Returns:
            (slice id, size) of every old slice that lost its last reference, or None when
            the list has changed meanwhile and nothing was done.
        """
        result: list[Reply] = await self.mutate_as(
            "compact",
            draft_identity(record.id),
            str(ino),
            str(index),
            b"".join(origin),
            str(skipped),
            codec.encode_slice(record),
            "1" if self.trash_days > 0 else "",
        )
        if result and isinstance(result[0], int):
            return None
        pairs = (text.split(b"_") for text in result)
        return [(int(slice_id), int(size)) for slice_id, size in pairs]

    async def is_compacted_into(self, slice_id: int) -> bool:
        """Return whether a former server's compaction into this slice was committed.

        To be asked before its results are forgotten; that server is fenced.
        """
        return await self.was_done(draft_identity(slice_id))

    # ---- usage

    async def statfs(self, ino: Ino = 1) -> tuple[int, int, int, int]:
        """Return (bytes, free bytes, inodes, free inodes) of the volume as seen from `ino`.

        Quotas on the directory and above narrow them (format.md §9.1).
        """
        reply = await self.read("statfs", self.keys.used_space, self.keys.prefix, str(ino))
        used, used_inodes = max(int(reply[0]), 0), max(int(reply[1]), 0)
        total = self.capacity_bytes or 1 << 50
        while not self.capacity_bytes and total * 8 < used * 10:
            total *= 2
        total = max(total, used)
        free = total - used
        free_inodes = max(self.inode_limit - used_inodes, 0) if self.inode_limit else 10 << 20
        while not self.inode_limit and used_inodes > free_inodes * 4:
            free_inodes *= 2
        inodes = used_inodes + free_inodes
        for limits, quota_used, quota_inodes in zip(*[iter(reply[2:])] * 3, strict=True):
            max_bytes, max_inodes = codec.decode_quota(limits)
            if max_bytes > 0:
                total = min(total, max_bytes)
                free = min(free, max(max_bytes - int(quota_used), 0))
            if max_inodes > 0:
                inodes = min(inodes, max_inodes)
                free_inodes = min(free_inodes, max(max_inodes - int(quota_inodes), 0))
        return total, free, inodes, free_inodes


def draft_identity(slice_id: int) -> str:
    """Return the identity of the compaction that writes a slice."""
    return f"d{slice_id}"
