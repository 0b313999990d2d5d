"""Version gates of a volume (format.md §19).

We are not JuiceFS and have no JuiceFS version; what counts is the release whose
clients we behave like.
"""

from __future__ import annotations

import re
from typing import NamedTuple

JUICEFS_LEVEL = "1.4.2"
"""The JuiceFS release that jfsd is compatible with."""

_GRAMMAR = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([^+]+))?(?:\+.*)?", re.ASCII)


class Version(NamedTuple):
    """A version in comparable form: a release is greater than its prereleases."""

    major: int
    minor: int
    patch: int
    is_release: bool
    prerelease: bytes


def parse_version(text: str) -> Version:
    """Return the version; what follows `+` does not count.

    Raises:
        ValueError: More than three numbers, or something that is no number.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise ValueError("is not a version (major.minor.patch-prerelease)")
    major, minor, patch, prerelease = match.groups()
    return Version(
        int(major),
        int(minor or 0),
        int(patch or 0),
        prerelease is None,
        (prerelease or "").encode(),
    )


OWN_VERSION = parse_version(JUICEFS_LEVEL)
