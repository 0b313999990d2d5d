"""What the service manager knows of a unit: asked through systemctl, which needs no library.

Part of the path of every restart: nothing here is imported that is not loaded anyway.
"""

from __future__ import annotations

import os
import sys


def under_systemd() -> bool:
    """Return whether a service manager started this very process as a unit's."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def stderr_is_journal() -> bool:
    """Return whether what is written to stderr goes into the journal (systemd.exec(5))."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit; those that this systemd does not have are missing.

    Raises:
        OSError: systemctl is not there, or the manager does not answer.
    """
    words = [f"--property={name}" for name in names]
    text = _output("systemctl", "show", "--no-pager", *words, "--", unit)
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def kept(unit: str) -> int:
    """Return how many descriptors the manager keeps for a unit."""
    number = properties(unit, "NFileDescriptorStore").get("NFileDescriptorStore", "")
    return int(number) if number.isdecimal() else 0


def job(unit: str) -> str:
    """Return the kind of the job that is being carried out on a unit ("stop"), "" for none."""
    for line in _output("systemctl", "list-jobs", "--no-legend", "--plain", "--full").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[1] == unit:
            return fields[2]
    return ""


def _output(*argv: str) -> str:
    """Return what a program prints.

    Raises:
        OSError: It cannot be run, or failed.
    """
    reader, writer = os.pipe()
    try:
        pid = os.posix_spawnp(
            argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)]
        )
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    with os.fdopen(reader, encoding="utf-8", errors="surrogateescape") as source:
        text = source.read()
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise OSError(f"{argv[0]} ended with status {os.waitstatus_to_exitcode(status)}")
    return text
