"""The file system, whole: every operation of a mount, without a kernel under it."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from jfsd.vfs.virtual import VirtualOps

if TYPE_CHECKING:
    from jfsd.chunk.reader import Reader
    from jfsd.chunk.writer import Writer
    from jfsd.meta.client import Meta
    from jfsd.vfs.ports import Options


class Vfs(VirtualOps):
    """One mounted file system. Operations are named as in FUSE and raise OSError.

    All methods run in one event loop and may run concurrently; what two of them must
    not do at once the kernel already keeps apart (one writer per inode), or Redis does.
    """

    def __init__(self, meta: Meta, writer: Writer, reader: Reader, options: Options) -> None:
        super().__init__(meta, writer, reader, options)
        self._listings = {}
        self._waiters = defaultdict(set)
