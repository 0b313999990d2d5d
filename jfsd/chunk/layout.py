"""How a slice is cut into blocks and what its objects are called (format.md §12.1)."""

from __future__ import annotations

import struct

from jfsd.types import Slice

SLICE_RECORD = struct.Struct(">IQIII")
"""One record of a chunk's list: pos, id, size, off, len (format.md §6.4)."""


def block_count(size: int, block_size: int) -> int:
    """Return into how many blocks a slice of `size` bytes is cut."""
    return (size + block_size - 1) // block_size


def block_length(size: int, index: int, block_size: int) -> int:
    """Return the plaintext bytes of block `index` of a slice of `size` bytes.

    Raises:
        ValueError: The slice has no such block.
    """
    length = min(block_size, size - index * block_size)
    if index < 0 or length <= 0:
        raise ValueError(f"a slice of {size} bytes has no block {index}")
    return length


def block_path(hash_prefix: bool, slice_id: int, index: int, length: int) -> str:
    """Return the key of a block without the volume's name, as the disk cache uses it."""
    name = f"{slice_id}_{index}_{length}"
    if hash_prefix:
        return f"chunks/{slice_id % 256:02X}/{slice_id // 1_000_000}/{name}"
    return f"chunks/{slice_id // 1_000_000}/{slice_id // 1_000}/{name}"


def block_key(volume_name: str, hash_prefix: bool, slice_id: int, index: int, length: int) -> str:
    """Return the object key of a block; `length` is that of its plaintext."""
    return f"{volume_name}/{block_path(hash_prefix, slice_id, index, length)}"


def path_length(path: str) -> int:
    """Return the plaintext length that a block's path ends with.

    Raises:
        ValueError: This is no path of a block.
    """
    name = path.rpartition("/")[2]
    slice_id, index, length = name.split("_")
    if not (slice_id.isdigit() and index.isdigit() and length.isdigit()):
        raise ValueError(f"{name} is not the name of a block")
    return int(length)


def decode_record(raw: bytes) -> Slice:
    """Return the slice record in `raw`.

    Raises:
        ValueError: It is not 24 bytes long (the whole chunk is then unreadable).
    """
    if len(raw) != SLICE_RECORD.size:
        raise ValueError(f"a slice record has 24 bytes, not {len(raw)}")
    return Slice(*SLICE_RECORD.unpack(raw))
