#!/usr/bin/env python3
"""A descriptor store of one service, as small as it can be: the contract of systemd's.

Runs its arguments as a server, keeps the descriptors that the server pushes, starts it
again with them whenever it ends, and ends with it once the mount is gone. SIGUSR2 and
SIGTERM are passed on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import threading

ADDRESS = f"@jfsd-test-{os.getpid()}"
FIRST_FD = 3
HIGH_FD = 100

store: dict[str, int] = {}
stopping = threading.Event()
running: list[int] = []


def receive(notify: socket.socket) -> None:
    """Follow what the server says."""
    while True:
        message, fds, _, _ = socket.recv_fds(notify, 8192, 8)
        words = dict(line.split("=", 1) for line in message.decode().split("\n") if "=" in line)
        if "FDSTORE" in words:
            for fd in fds:
                drop(words["FDNAME"])
                store[words["FDNAME"]] = fd
            continue
        if "FDSTOREREMOVE" in words:
            drop(words["FDNAME"])
        if "STOPPING" in words:
            stopping.set()
        for fd in fds:
            os.close(fd)


def drop(name: str) -> None:
    """Close what is kept under a name."""
    fd = store.pop(name, None)
    if fd is not None:
        os.close(fd)


def start(argv: list[str]) -> int:
    """Start the server with all that is kept; return its pid."""
    kept = list(store.items())
    pid = os.fork()
    if pid:
        return pid
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH_FD) for _, fd in kept]
    for number, fd in enumerate(high, FIRST_FD):
        os.dup2(fd, number)
    os.closerange(FIRST_FD + len(kept), HIGH_FD + 50)
    environ = {**os.environ, "NOTIFY_SOCKET": ADDRESS}
    if kept:
        environ["LISTEN_PID"] = str(os.getpid())
        environ["LISTEN_FDS"] = str(len(kept))
        environ["LISTEN_FDNAMES"] = ":".join(name for name, _ in kept)
    return os.execve(argv[0], argv, environ)


def main() -> int:
    """Keep the server running; return its exit status once the mount is gone."""
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind("\0" + ADDRESS[1:])
    threading.Thread(target=receive, args=(notify,), daemon=True).start()
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(running[-1], number))
    argv = [os.environ["JFSD_KEPT"], *sys.argv[1:]]
    while True:
        running.append(start(argv))
        _, status = os.waitpid(running[-1], 0)
        if stopping.is_set() or "fuse" not in store:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main())
