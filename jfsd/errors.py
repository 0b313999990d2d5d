"""Errors that reach a person, and the exit codes that scripts may rely on.

File operations fail with `OSError` and an errno; this module is for what ends a
command. Exit codes are an interface: a number is never given a second meaning.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command (docs/CONFIGURATION.md lists them)."""

    OK = 0
    FAILURE = 1
    """Something unforeseen; the log has the traceback."""
    USAGE = 2
    """A flag, value or argument is wrong."""
    META_UNREACHABLE = 3
    """Redis does not answer, or refuses us."""
    VOLUME_MISSING = 4
    VOLUME_CONFLICT = 5
    """Already formatted differently, or the database holds something else."""
    VOLUME_UNSUPPORTED = 6
    """Newer than we understand, or with a feature that we do not implement."""
    STORE_UNREACHABLE = 7
    STORE_REFUSED = 8
    """Bucket missing, forbidden, or belonging to another volume."""
    MOUNTPOINT_UNUSABLE = 9
    """Missing, not a directory, not empty, not ours to mount on."""
    ALREADY_MOUNTED = 10
    NO_PRIVILEGE = 11
    """Not root and no fusermount3, or no /dev/fuse."""
    BUSY = 12
    """Files are open; nothing was unmounted."""
    NOT_MOUNTED = 13
    NOT_STORED = 14
    """What was written is not all in the store yet; nothing of it is lost."""
    NO_SERVER = 15
    """The mount is there, and no server of it answers."""
    NOT_APPLIED = 16
    """Some options of a configuration that was read again did not take effect."""
    NOT_SMOOTH = 17
    """A reload or restart would fail, or not bring about all that is configured."""


FINAL = frozenset(
    (
        ExitCode.USAGE,
        ExitCode.VOLUME_MISSING,
        ExitCode.VOLUME_CONFLICT,
        ExitCode.VOLUME_UNSUPPORTED,
        ExitCode.STORE_REFUSED,
        ExitCode.MOUNTPOINT_UNUSABLE,
        ExitCode.ALREADY_MOUNTED,
        ExitCode.NO_PRIVILEGE,
    )
)
"""Refusals that somebody has to mend: to try again by itself is of no use."""


class JfsdError(Exception):
    """Base of all errors that end a command with one line on stderr."""

    exit_code = ExitCode.FAILURE


class RefusedError(JfsdError):
    """A request that cannot be met as it stands; nothing was changed.

    The message names the value, the rule that it breaks and the mend, in this order.
    """

    def __init__(self, exit_code: ExitCode, value: str, rule: str, mend: str) -> None:
        super().__init__(f"{value}: {rule}; {mend}")
        self.exit_code = exit_code
        self.value = value
        self.rule = rule
        self.mend = mend
