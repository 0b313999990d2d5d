"""CRC-32C, as cache files and S3 carry it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jfsd.types import ReadableBuffer


def crc32c(body: ReadableBuffer) -> int:
    """Return the checksum of some bytes."""
    # The package asks importlib.metadata for its own version when it is imported, which is a
    # tenth of a start. The first block that is cached pays for it, in its thread.
    from crc32c import crc32c as native  # noqa: PLC0415

    return int(native(body))
