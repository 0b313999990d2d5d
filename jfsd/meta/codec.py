"""Binary records of the metadata, to and from the types of the program (format.md §6).

Pure. Everything is big-endian. Records are decoded as tolerantly as format.md says and written
at exactly its lengths: 72, 73 (tier), 80 (ACL) or 81 bytes (both).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from jfsd.types import Attr, NodeType, Slice

if TYPE_CHECKING:
    from collections.abc import Iterable

_ATTR = struct.Struct(">BHIIqIqIqIIQI")
_PARENT = struct.Struct(">Q")
_ACLS = struct.Struct(">II")
_ENTRY = struct.Struct(">BQ")
_SLICE = struct.Struct(">IQIII")
_OFFSET = struct.Struct(">I")
_PACKED = struct.Struct(">IIQIII")
_DELAYED = struct.Struct(">QI")
_QUOTA = struct.Struct(">qq")
_TIME = struct.Struct(">qI")
_U64 = struct.Struct(">Q")

_TYPES: Final[tuple[NodeType | None, ...]] = (None, *NodeType)
_SECOND: Final = 1_000_000_000

SLICE_BYTES: Final = _SLICE.size


def damaged(what: str) -> OSError:
    """Return the EIO of a record that cannot be what it should be."""
    return OSError(errno.EIO, f"{os.strerror(errno.EIO)}: damaged {what}")


def node_type(number: int) -> NodeType:
    """Return the type of a number out of a record.

    Raises:
        OSError: EIO; no such type.
    """
    kind = _TYPES[number] if number < len(_TYPES) else None
    if kind is None:
        raise damaged("node type")
    return kind


def encode_time(time_ns: int) -> bytes:
    """Return the 12 bytes of a time: signed seconds, nanoseconds."""
    return _TIME.pack(time_ns // _SECOND, time_ns % _SECOND)


def encode_u64(number: int) -> bytes:
    """Return the 8 bytes of an inode, length or slice id."""
    return _U64.pack(number)


def decode_u64(data: bytes) -> int:
    """Return the number of 8 bytes."""
    return int.from_bytes(data, "big")


def decode_attr(data: bytes) -> Attr:
    """Return the attributes in a record; ancient records without parent have parent 0.

    Raises:
        OSError: EIO; the record is too short or its type unknown.
    """
    size = len(data)
    if size < 63:
        raise damaged("attribute record")
    (flags, mode, uid, gid, a_s, a_n, m_s, m_n, c_s, c_n, nlink, length, rdev) = _ATTR.unpack_from(
        data
    )
    mtime_ns, atime_ns, ctime_ns = m_s * _SECOND + m_n, a_s * _SECOND + a_n, c_s * _SECOND + c_n
    attr = Attr(
        node_type(mode >> 12),
        mode & 0xFFF,
        uid,
        gid,
        mtime_ns if atime_ns == mtime_ns else atime_ns,  # one object: many records are kept
        mtime_ns,
        mtime_ns if ctime_ns == mtime_ns else ctime_ns,
        nlink,
        length,
        rdev,
        _PARENT.unpack_from(data, 63)[0] if size >= 71 else 0,
        flags,
    )
    rest = 71
    if size >= 79:
        attr.access_acl, attr.default_acl = _ACLS.unpack_from(data, 71)
        rest = 79
    if size > rest:
        attr.tier = data[rest]
    return attr


def encode_attr(attr: Attr) -> bytes:
    """Return the record of `attr`, with the spare zero byte at its end."""
    record = _ATTR.pack(
        attr.flags,
        attr.type << 12 | attr.mode & 0xFFF,
        attr.uid,
        attr.gid,
        *divmod(attr.atime_ns, _SECOND),
        *divmod(attr.mtime_ns, _SECOND),
        *divmod(attr.ctime_ns, _SECOND),
        attr.nlink,
        attr.length,
        attr.rdev,
    ) + _PARENT.pack(attr.parent)
    if attr.access_acl or attr.default_acl:
        record += _ACLS.pack(attr.access_acl, attr.default_acl)
    if attr.tier:
        record += bytes([attr.tier])
    return record + b"\0"


def decode_entry(data: bytes) -> tuple[NodeType, int]:
    """Return (type, inode) of a directory entry.

    Raises:
        OSError: EIO; not nine bytes, or an unknown type.
    """
    if len(data) != _ENTRY.size:
        raise damaged("directory entry")
    number, ino = _ENTRY.unpack(data)
    return node_type(number), ino


def encode_entry(kind: NodeType, ino: int) -> bytes:
    """Return the nine bytes of a directory entry."""
    return _ENTRY.pack(kind, ino)


def decode_slices(records: Iterable[bytes]) -> list[Slice]:
    """Return the records of a chunk's list.

    Raises:
        OSError: EIO; an element has not 24 bytes, which makes the whole chunk unreadable.
    """
    try:
        return [Slice(*_SLICE.unpack(record)) for record in records]
    except struct.error as error:
        raise damaged("slice list") from error


def encode_slice(record: Slice) -> bytes:
    """Return the 24 bytes of one record."""
    return _SLICE.pack(*record)


def encode_pack(records: Iterable[tuple[int, Slice]]) -> bytes:
    """Return 28 bytes for each (chunk index, record), as write_pack.lua takes them."""
    return b"".join([_PACKED.pack(index, *record) for index, record in records])


def decode_offsets(data: bytes) -> list[int]:
    """Return the offsets in a slice that write_pack.lua has named, 4 bytes each."""
    return [offset for (offset,) in _OFFSET.iter_unpack(data)]


def decode_delayed(data: bytes) -> list[tuple[int, int]]:
    """Return the (slice id, size) pairs of a value of `delSlices`.

    Raises:
        OSError: EIO; not a multiple of 12 bytes.
    """
    if len(data) % _DELAYED.size:
        raise damaged("delayed slices")
    return list(_DELAYED.iter_unpack(data))


def encode_delayed(slices: Iterable[tuple[int, int]]) -> bytes:
    """Return the value of `delSlices` for (slice id, size) pairs."""
    return b"".join(_DELAYED.pack(*pair) for pair in slices)


def decode_quota(data: bytes) -> tuple[int, int]:
    """Return (bytes, inodes) limits; zero or less means unlimited.

    Raises:
        OSError: EIO; not 16 bytes.
    """
    if len(data) != _QUOTA.size:
        raise damaged("quota")
    space, inodes = _QUOTA.unpack(data)
    return space, inodes


def encode_quota(space: int, inodes: int) -> bytes:
    """Return the 16 bytes of limits; -1 is unlimited."""
    return _QUOTA.pack(space, inodes)


def decode_delfile(member: bytes) -> tuple[int, int]:
    """Return (inode, length) of a member of `delfiles`.

    Raises:
        OSError: EIO; a legacy member, or none at all.
    """
    ino, separator, length = member.partition(b":")
    if not separator or not ino.isdigit() or not length.isdigit():
        raise damaged("delfiles member")
    return int(ino), int(length)
