"""The mount that a command is about, and what its server says."""

from __future__ import annotations

from jfsd.config.runtime import find
from jfsd.errors import ExitCode, RefusedError


def served_place(mountpoint: str) -> str:
    """Return the resolved path of a mount of jfsd, without looking into the mount.

    Raises:
        RefusedError: NOT_MOUNTED, nothing of jfsd is mounted there, as far as this user may know.
    """
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    place = mounting.resolve(mountpoint)
    if find(place) is None or mounting.find(place) is None:
        raise RefusedError(
            ExitCode.NOT_MOUNTED,
            mountpoint,
            "is no mount of jfsd that this user serves",
            "give the mount point as root, or as the user who mounted it",
        )
    return place
