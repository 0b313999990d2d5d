"""The metadata of one mounted volume: everything that the layers above may ask."""

from __future__ import annotations

from jfsd.meta.files import Files
from jfsd.meta.locks import Locks
from jfsd.meta.names import Names
from jfsd.meta.xattrs import Xattrs


class Meta(Names, Files, Locks, Xattrs):
    """All operations on a volume's metadata. See `Engine` for what they have in common."""
