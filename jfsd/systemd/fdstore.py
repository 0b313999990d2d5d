"""The descriptors that the service manager kept for us: sd_listen_fds_with_names(3)."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

FIRST_FD = 3
"""SD_LISTEN_FDS_START: they follow each other from here."""

NO_NAME = "unknown"
"""What systemd calls a descriptor that was given none."""

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def promised(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the descriptors passed to this process; nothing is taken."""
    environ = os.environ if environ is None else environ
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    return environ.get("LISTEN_FDNAMES", "").split(":")


def received(environ: MutableMapping[str, str] | None = None) -> dict[str, list[int]]:
    """Return the descriptors that were passed to this process, by name.

    The caller owns them all, those with names that it does not know and those of which
    there are several included. They are not inherited by children any more, and the
    variables that describe them are gone, so that a child does not take them for its own.

    Raises:
        ValueError: The variables contradict each other.
        OSError: A descriptor that was promised is not there (EBADF).
    """
    environ = os.environ if environ is None else environ
    pid, count, names = (environ.get(name, "") for name in VARIABLES[:3])
    for name in VARIABLES:
        environ.pop(name, None)
    if pid != str(os.getpid()):
        return {}
    if not count.isdecimal():
        raise ValueError(f"LISTEN_FDS={count}: is no number; the service manager is broken")
    words = names.split(":") if names else []
    if words and len(words) != int(count):
        raise ValueError(f"LISTEN_FDNAMES={names}: names {len(words)} of {count} descriptors")
    found: dict[str, list[int]] = {}
    for fd, name in enumerate(words or [NO_NAME] * int(count), FIRST_FD):
        os.set_inheritable(fd, False)
        found.setdefault(name or NO_NAME, []).append(fd)
    return found
