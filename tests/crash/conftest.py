"""Mounts whose descriptors are kept when a server dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.kept import Kept, KeptJfsd

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.session import Session
    from support.volume import Volume


@pytest.fixture
def kept(new_volume: Callable[..., Volume], bed: Session) -> Kept:
    """A mount on Redis and a directory."""
    return KeptJfsd(bed).mount_kept(new_volume("file"))
