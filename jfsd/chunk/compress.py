"""The codecs of a volume: what an object's bytes are (format.md §12.3)."""

from __future__ import annotations

import threading
from typing import Protocol

from jfsd.types import ReadableBuffer

_ZSTD_LEVEL = 1


class DamagedDataError(ValueError):
    """The stored bytes are not the encoding of a block of the expected length."""


class Codec(Protocol):
    """Turns a block into what is stored and back; both may be called from any thread."""

    name: str
    identity: bool
    """True iff the stored bytes are the block itself, so that parts of it can be fetched."""

    def encode(self, block: ReadableBuffer) -> ReadableBuffer:
        """Return what is stored for `block`."""

    def decode(self, stored: bytes, length: int) -> ReadableBuffer:
        """Return the block of `length` bytes that `stored` encodes.

        Raises:
            DamagedDataError: It does not.
        """


class Plain:
    """No compression: an object longer than expected is cut, a shorter one is damaged."""

    name = "none"
    identity = True

    def encode(self, block: ReadableBuffer) -> ReadableBuffer:
        """Return `block` itself."""
        return block

    def decode(self, stored: bytes, length: int) -> ReadableBuffer:
        """Return the first `length` bytes."""
        if len(stored) < length:
            raise DamagedDataError(f"object has {len(stored)} bytes, expected {length}")
        return stored if len(stored) == length else stored[:length]


class Lz4:
    """One raw LZ4 block, without a header."""

    name = "lz4"
    identity = False

    def __init__(self) -> None:
        import lz4.block  # noqa: PLC0415 - most volumes have other codecs, or none

        self._library = lz4.block

    def encode(self, block: ReadableBuffer) -> ReadableBuffer:
        """Compress even if it grows; readers rely on the codec."""
        encoded: bytes = self._library.compress(block, store_size=False)
        return encoded

    def decode(self, stored: bytes, length: int) -> ReadableBuffer:
        """Decompress exactly `length` bytes."""
        try:
            block: bytes = self._library.decompress(stored, uncompressed_size=length)
        except self._library.LZ4BlockError as error:
            raise DamagedDataError(str(error)) from error
        if len(block) != length:
            raise DamagedDataError(f"lz4 block has {len(block)} bytes, expected {length}")
        return block


class Zstd:
    """One zstd frame, level 1, with content size; frames without it are read too."""

    name = "zstd"
    identity = False

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - most volumes have other codecs, or none

        self._library = zstandard
        self._local = threading.local()

    def encode(self, block: ReadableBuffer) -> ReadableBuffer:
        """Compress even if it grows; readers rely on the codec."""
        encoder = getattr(self._local, "encoder", None)
        if encoder is None:
            encoder = self._local.encoder = self._library.ZstdCompressor(level=_ZSTD_LEVEL)
        encoded: bytes = encoder.compress(block)
        return encoded

    def decode(self, stored: bytes, length: int) -> ReadableBuffer:
        """Decompress exactly `length` bytes; a frame that claims another size is refused."""
        decoder = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = self._library.ZstdDecompressor()
        try:
            claimed = self._library.frame_content_size(stored)
            if claimed not in {-1, length}:
                raise DamagedDataError(f"zstd frame of {claimed} bytes, expected {length}")
            block: bytes = decoder.decompress(stored, max_output_size=length)
        except self._library.ZstdError as error:
            raise DamagedDataError(str(error)) from error
        if len(block) != length:
            raise DamagedDataError(f"zstd frame has {len(block)} bytes, expected {length}")
        return block


def open_codec(name: str) -> Codec:
    """Return the codec that the volume's setting names.

    Raises:
        ValueError: There is no such codec.
    """
    codecs: dict[str, type[Plain] | type[Lz4] | type[Zstd]] = {
        "": Plain,
        "none": Plain,
        "lz4": Lz4,
        "zstd": Zstd,
    }
    if name not in codecs:
        raise ValueError(f"unknown compression {name!r}")
    return codecs[name]()
