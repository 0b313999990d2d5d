"""The metadata of one mounted volume: everything that the layers above may ask."""

from __future__ import annotations

from jfsd.meta.files import Files
from jfsd.meta.names import Names


class Meta(Names, Files):
    """All operations on a volume's metadata. See `Engine` for what they have in common."""
