"""Start a server as systemd starts a service, and see it end, be it our child or not.

Between fork and exec only system calls are made. The child is the leader of a session
of its own: what kills the holder does not reach it.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from jfsd.daemon.holder_store import Kept
from jfsd.record import Record
from jfsd.systemd.fdstore import FIRST_FD

STANDBY_VARIABLE = "JFSD_STANDBY_FD"
"""Set for a server that is started beside another: see jfsd.daemon.holder_link.Standby."""

OWN_VARIABLES = (
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "JFSD_HOLDER",
    STANDBY_VARIABLE,
)
"""What a supervisor tells its child, and what must not be handed on to another's."""

_ERRNO = struct.Struct("i")
_PID = struct.Struct("i")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_HOLDER_OOM_SCORE = b"-900"


class Command(Record):
    """What to run: arguments, the first being the program, and the environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


class ServerProcess:
    """A running server, known by a descriptor of the process: its pid cannot be reused.

    `status` is its wait status once it has ended; None if somebody else is its parent.
    """

    def __init__(self, pid: int) -> None:
        """Hold on to the process.

        Raises:
            ProcessLookupError: There is none.
        """
        self.pid = pid
        self.fd = os.pidfd_open(pid)
        self.status: int | None = None
        self.started_s = time.monotonic()
        self.ready_s: float | None = None
        self.signalled: set[int] = set()
        self.warm_ms: float | None = None
        self.said_stopping = False
        self.text = ""

    def __repr__(self) -> str:
        return f"<ServerProcess {self.pid} {self.status}>"

    def close(self) -> None:
        """Let go of the process."""
        os.close(self.fd)

    @property
    def ended(self) -> bool:
        """Whether the process is gone (or a zombie of another parent's)."""
        if self.status is not None:
            return True
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            poll = select.poll()
            poll.register(self.fd, select.POLLIN)
            return bool(poll.poll(0))
        if pid:
            self.status = status
        return pid != 0

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process; one that has ended is none to be told."""
        self.signalled.add(number)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    @property
    def ended_how(self) -> str:
        """How it ended, for people."""
        if self.status is None:
            return "ended"
        code = os.waitstatus_to_exitcode(self.status)
        return f"exited with {code}" if code >= 0 else f"was killed by {signal_name(-code)}"

    @property
    def exit_code(self) -> int | None:
        """Its exit status, 128 + the signal that killed it, or None if nobody knows."""
        if self.status is None:
            return None
        code = os.waitstatus_to_exitcode(self.status)
        return code if code >= 0 else 128 - code


def signal_name(number: int) -> str:
    """Return SIGKILL for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def spawn(
    command: Command,
    kept: Sequence[Kept],
    variables: Mapping[str, str],
    standby_fd: int = -1,
    *,
    orphan: bool = False,
) -> int:
    """Start the command with the descriptors, as sd_listen_fds(3) has it; return its pid.

    Args:
        command: What to run; variables of its environment that a supervisor sets are dropped.
        kept: The descriptors, passed as 3, 4, 5 …
        variables: What else to tell it. "WATCHDOG_PID" gets the child's pid.
        standby_fd: One more descriptor, announced in JFSD_STANDBY_FD.
        orphan: Let it be a child of the service manager at once: of a main process that is
            none, systemd does not wait for the end after it has told it to stop.

    Raises:
        OSError: It cannot be executed.
    """
    env = {name: value for name, value in command.env.items() if name not in OWN_VARIABLES}
    env.update(variables)
    fds = [item.fd for item in kept]
    if kept:
        env["LISTEN_FDS"] = str(len(kept))
        env["LISTEN_FDNAMES"] = ":".join(item.name for item in kept)
    if standby_fd >= 0:
        env[STANDBY_VARIABLE] = str(FIRST_FD + len(fds))
        fds.append(standby_fd)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # A signal to the child before its exec must end it, not set a flag that exec forgets.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            if orphan:
                _become_orphan(writer)
            _become(command.argv, env, fds, writer)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
    with os.fdopen(reader, "rb") as failure:
        raw = failure.read()
    if orphan:
        os.waitpid(pid, 0)
        if not raw:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), command.argv[0])
        (pid,), raw = _PID.unpack(raw[: _PID.size]), raw[_PID.size :]
    if raw:
        if not orphan:
            os.waitpid(pid, 0)
        (number,) = _ERRNO.unpack(raw)
        raise OSError(number, os.strerror(number), command.argv[0])
    return pid


def _become_orphan(pid: int) -> None:
    """Go on as a child of the forked child, which ends; write our number to `pid`."""
    try:
        if os.fork() != 0:
            os._exit(0)
        os.write(pid, _PID.pack(os.getpid()))
    except OSError:
        os._exit(127)


def reap_strangers(known: set[int]) -> None:
    """Collect ended children other than `known`: those whose parents left them to us."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in known:
            return
        os.waitpid(ended.si_pid, os.WNOHANG)


def protect_from_oom() -> None:
    """Be among the last to be killed for want of memory, if we may; children are not."""
    with suppress(OSError):
        _OOM_SCORE.write_bytes(_HOLDER_OOM_SCORE)


_own_oom_score = _OOM_SCORE.read_bytes() if _OOM_SCORE.exists() else b"0"


def _become(argv: Sequence[str], env: dict[str, str], fds: Sequence[int], failure: int) -> NoReturn:
    """Turn the forked child into the server."""
    try:
        os.setsid()
        with suppress(OSError):
            _OOM_SCORE.write_bytes(_own_oom_score)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError):
                signal.signal(number, signal.SIG_DFL)
        failure = _place(fds, failure)
        pid = str(os.getpid())
        if "LISTEN_FDS" in env:
            env["LISTEN_PID"] = pid
        if "WATCHDOG_USEC" in env:
            env["WATCHDOG_PID"] = pid
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(argv[0], list(argv), env)  # noqa: S606 - no shell, on purpose
    except OSError as error:
        os.write(failure, _ERRNO.pack(error.errno or 0))
    finally:
        os._exit(127)


def _place(fds: Sequence[int], failure: int) -> int:
    """Put the descriptors at 3, 4, 5 …; return where `failure` went out of their way."""
    free = FIRST_FD + len(fds)
    failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, free)
    away = array.array("i", [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, free) for fd in fds])
    for number, fd in enumerate(away, FIRST_FD):
        os.dup2(fd, number, inheritable=True)
    return failure
