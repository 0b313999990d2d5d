"""Keep one mount alive outside systemd, as systemd does with its descriptor store.

A holder is a small process beside the server of one mount. It keeps duplicates of the
descriptors that the mount lives by, starts the server with them, starts the next when
one ends, hands over to new versions, and goes when the mount is gone. The server does
not know the difference: NOTIFY_SOCKET, FDSTORE=1 and LISTEN_FDS are systemd's.

The holder may be killed: its server lives on and has a new one started
(jfsd.daemon.holder_link). Everything that this process will ever need is imported at its
start, before its files can be replaced underneath.

    python -m jfsd.daemon.holder MOUNTPOINT -- SERVER [ARGUMENT …]     in the foreground
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from jfsd import log as logs
from jfsd.daemon.holder_child import OWN_VARIABLES, Command, protect_from_oom
from jfsd.daemon.holder_keeper import Keeper, Terms
from jfsd.daemon.holder_log import LogFile
from jfsd.daemon.holder_place import HeldError, HolderError, Place
from jfsd.daemon.holder_wire import Json
from jfsd.daemon.program import module_command
from jfsd.errors import ExitCode, JfsdError
from jfsd.fuse import mount as mounting
from jfsd.record import Record, field

WATCHDOG_S = 60.0
"""After so long a silence a server hangs: it is ended, and another one goes on."""

_START_MARGIN_S = 15.0
"""What a holder may take beyond its server's deadline, to end a server and to say so."""


class _SilentError(HolderError):
    """The holder does not say how its start went."""


class Started(NamedTuple):
    """A holder that has done what it was started for."""

    holder: int
    server: int
    """0 for a holder that was only asked to listen."""


class Spec(Record):
    """What a holder is started with."""

    mountpoint: str
    command: Command
    terms: Terms = field(default_factory=Terms)
    adopt: bool = False
    """A server runs already and will come; the command is for the one after it."""
    log_level: str = "info"


def start_holder(
    mountpoint: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    deadline_s: float = 60.0,
    *,
    adopt: bool = False,
    listening: bool = False,
    watchdog_s: float = 0.0,
    drain_s: float = 30.0,
    log_level: str = "info",
) -> Started:
    """Start a holder in the background, with a server; return once the mount is served.

    The holder's working directory is `/`, and so is the server's: its arguments must not
    name relative paths. Both write to the log beside the holder's directory.

    Args:
        mountpoint: Absolute and resolved.
        argv: The server's command line.
        env: The server's environment.
        deadline_s: How long it may take until the server is ready, at this start; at later
            ones the server is ended after this time, and started again.
        adopt: Do not start a server: one runs, its holder died, and it will push its
            descriptors to the new holder.
        listening: Return as soon as the holder can be connected to.
        watchdog_s: Replace a server that is silent for so long; 0: never.
        drain_s: How long a server may take to hand over before it is killed.
        log_level: The holder's own.

    Raises:
        HeldError: The mount has a holder, which is left as it is.
        HolderError: The server did not come up, with the last line that it wrote and its
            exit code; nothing is left behind.
        RefusedError: The runtime directory cannot be used.
    """
    place = Place.of(mountpoint)
    terms = Terms(ready_s=deadline_s, drain_s=drain_s, watchdog_s=watchdog_s)
    spec = Spec(mountpoint, Command(tuple(argv), dict(env)), terms, adopt, log_level)
    spec_fd = os.memfd_create("jfsd-holder-spec")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    log_fd = place.open_log()
    try:
        os.write(spec_fd, _dump(spec))
        launcher = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [*module_command(__name__), f"--spec={spec_fd}", f"--report={writer}"],
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name not in OWN_VARIABLES},
            pass_fds=(spec_fd, writer),
            start_new_session=True,
        )
    finally:
        os.close(spec_fd)
        os.close(writer)
        os.close(log_fd)
    launcher.wait()  # it has forked the holder
    with os.fdopen(reader, "rb") as reports:
        return _await_report(reports.fileno(), deadline_s + _START_MARGIN_S, listening=listening)


def run_holder(spec: Spec, report_fd: int = -1, logfile: LogFile | None = None) -> int:
    """Hold the mount in this process until it is gone; return the last server's exit code.

    Raises:
        HeldError: It has a holder.
        RefusedError: The runtime directory cannot be used.
    """

    def report(message: Json) -> None:
        if report_fd >= 0:
            with suppress(OSError):
                os.write(report_fd, json.dumps(message).encode() + b"\n")

    place = Place.of(spec.mountpoint)
    try:
        lock = place.claim()
    except JfsdError as error:
        held = isinstance(error, HeldError)
        report({"error": str(error), "exit_code": error.exit_code, "held": held})
        raise
    try:
        keeper = Keeper(place, spec.command, spec.terms, logfile=logfile, report=report)
        protect_from_oom()
        code = keeper.run(adopt=spec.adopt)
        if keeper.left_mount:
            _detach_dead(spec.mountpoint)
        place.remove()
    finally:
        os.close(lock)
    return code


def main(arguments: Sequence[str]) -> int:
    """Run as a program: in the background for `start_holder`, in the foreground for people."""
    if arguments and arguments[0].startswith("--spec="):
        spec_fd, report_fd = (int(word.partition("=")[2]) for word in arguments)
        os.set_inheritable(report_fd, False)
        with os.fdopen(spec_fd, "rb") as file:
            file.seek(0)
            spec = _load(file.read())
        if os.fork():
            os._exit(0)  # the holder is nobody's child
        logfile: LogFile | None = LogFile(Place.of(spec.mountpoint).log)
    else:
        mountpoint, separator, *argv = arguments if len(arguments) > 2 else ("", "")
        if separator != "--" or not argv or not os.path.isabs(mountpoint):  # noqa: PTH117
            sys.stderr.write("usage: python -m jfsd.daemon.holder MOUNTPOINT -- SERVER ...\n")
            return int(ExitCode.USAGE)
        spec = Spec(mountpoint, Command(tuple(argv), dict(os.environ)))
        report_fd, logfile = -1, None
    logs.configure(spec.log_level)
    try:
        return run_holder(spec, report_fd, logfile)
    except JfsdError as error:
        sys.stderr.write(f"jfsd: {error}\n")
        return int(error.exit_code)


# -- between start_holder and the holder ------------------------------------------------------


def _dump(spec: Spec) -> bytes:
    terms = spec.terms
    return json.dumps(
        {
            "mountpoint": spec.mountpoint,
            "argv": spec.command.argv,
            "env": dict(spec.command.env),
            "terms": [terms.ready_s, terms.drain_s, terms.watchdog_s],
            "adopt": spec.adopt,
            "log_level": spec.log_level,
        }
    ).encode()


def _load(raw: bytes) -> Spec:
    found = json.loads(raw)
    return Spec(
        found["mountpoint"],
        Command(tuple(found["argv"]), found["env"]),
        Terms(*found["terms"]),
        found["adopt"],
        found["log_level"],
    )


def _await_report(fd: int, limit_s: float, *, listening: bool) -> Started:
    """Return when the holder has said what was waited for; end a holder that says nothing."""
    holder = 0
    try:
        for message in _reports(fd, limit_s):
            holder = message.get("holder", holder)
            if "error" in message:
                kind = HeldError if message.get("held") else HolderError
                raise kind(message["error"], message["exit_code"])
            if "ready" in message or (listening and holder):
                return Started(holder, message.get("ready", 0))
    except (KeyboardInterrupt, _SilentError):
        if holder:
            os.kill(holder, signal.SIGTERM)
        raise
    raise HolderError("the holder died at its start")


def _reports(fd: int, limit_s: float) -> Iterator[Json]:
    """Yield what the holder says until it hangs up.

    Raises:
        HolderError: It has said nothing for too long.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    end_s, pending = time.monotonic() + limit_s, b""
    while poll.poll(max(0.0, end_s - time.monotonic()) * 1000):
        raw = os.read(fd, 65536)
        if not raw:
            return
        *lines, pending = (pending + raw).split(b"\n")
        for line in lines:
            message: Json = json.loads(line)
            end_s += message.get("more_s", 0.0)
            yield message
    raise _SilentError(f"the holder has not answered within {limit_s:g} s")


def _detach_dead(mountpoint: str) -> None:
    """Take a mount out of sight whose first server died in the making of it."""
    entry = mounting.find(mountpoint)
    if entry and entry.fstype.endswith(mounting.SUBTYPE) and mounting.is_dead(mountpoint):
        with suppress(JfsdError):
            mounting.umount(mountpoint, lazy=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
