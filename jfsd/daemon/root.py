"""Which directory of the volume a mount shows as its root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jfsd.errors import ExitCode, RefusedError
from jfsd.types import ROOT_INO, Ino, NodeType

if TYPE_CHECKING:
    from jfsd.config.settings import MountSettings
    from jfsd.meta.client import Meta


async def find_root(meta: Meta, settings: MountSettings) -> Ino:
    """Return the directory that `--subdir` names.

    Raises:
        RefusedError: There is none of this name, or it is no directory.
    """
    ino: Ino = ROOT_INO
    for name in settings.subdir_names:
        try:
            ino, attr = await meta.lookup(ino, name)
        except FileNotFoundError:
            raise _refusal(settings.subdir, "does not exist in the volume") from None
        if attr.type is not NodeType.DIRECTORY:
            raise _refusal(settings.subdir, "is not a directory")
    return ino


def _refusal(path: str, rule: str) -> RefusedError:
    return RefusedError(
        ExitCode.USAGE, f"--subdir {path}", rule, "mount the volume without it and create it"
    )
