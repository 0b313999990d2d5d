"""Starting a server: as a child, or as one that the service manager inherits at once."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from jfsd.daemon.holder_child import Command, ServerProcess, spawn


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("orphan", [False, True])
def test_an_orphan_is_not_our_child(orphan: bool) -> None:
    pid = spawn(Command(("sleep", "60"), os.environ), [], {}, orphan=orphan)
    process = ServerProcess(pid)
    try:
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
        assert (parent(pid) != os.getpid()) is orphan
        assert not process.ended
    finally:
        process.send_signal(signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        process.close()


@pytest.mark.parametrize("orphan", [False, True])
def test_what_cannot_be_run_is_told_and_leaves_no_child(orphan: bool) -> None:
    with pytest.raises(FileNotFoundError):
        spawn(Command(("/no/such/program",), os.environ), [], {}, orphan=orphan)
    with suppress(ChildProcessError):
        assert os.waitpid(-1, os.WNOHANG) == (0, 0)
