#!/usr/bin/env python3
"""A descriptor store of one service, as small as it can be: the contract of systemd's.

Runs its arguments as a server, keeps the descriptors that the server pushes, starts it
again with them whenever it ends, and ends with it once the mount is gone. SIGUSR2 and
SIGTERM are passed on.

JFSD_KEPT names the server. JFSD_KEPT_PLAN names a file: each start takes its first line
away and runs with that failpoint, so that only this server dies there; a line `hold` makes
it wait until that file is empty, and run without one. `spoil NAME` gives it a state that
is damaged in that way, and all that follow until a line `heal`. Deaths are logged.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
import zlib

ADDRESS = f"@jfsd-test-{os.getpid()}"
FIRST_FD = 3
HIGH_FD = 100
HEADER_BYTES = 64 << 10
HEAD = struct.Struct("<QII")
SPOILT = {
    "layout": {"layout": 99},
    "magic": {"magic": "another program's"},
    "volume": {"volume_uuid": "00000000-0000-0000-0000-000000000000"},
    "mountpoint": {"mountpoint": "/somewhere/else"},
    "newer": {"a field of a later version": [1, 2]},
}
EVERYTHING = b"KEEPER=has heard everything"

store: dict[str, int] = {}
intact: dict = {}
stopping = threading.Event()
heard = threading.Event()
running: list[int] = []


def receive(notify: socket.socket) -> None:
    """Follow what the server says."""
    while True:
        message, fds, _, _ = socket.recv_fds(notify, 8192, 8)
        if message == EVERYTHING:
            heard.set()
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


def hear_everything(notify: socket.socket) -> None:
    """Return when all that the server said before its death has been followed."""
    heard.clear()
    notify.sendto(EVERYTHING, "\0" + ADDRESS[1:])
    heard.wait()


def drop(name: str) -> None:
    """Close what is kept under a name."""
    fd = store.pop(name, None)
    if fd is not None:
        os.close(fd)


def next_failpoint() -> str:
    """Take the failpoint for this start from the plan; "" is none."""
    path = os.environ.get("JFSD_KEPT_PLAN", "")
    if not os.path.exists(path):
        return ""
    with open(path, "r+") as plan:
        first, *rest = plan.read().split("\n")
        if first == "hold":
            while os.path.getsize(path):
                time.sleep(0.01)
            return ""
        plan.seek(0)
        plan.truncate()
        plan.write("\n".join(rest))
    if first.startswith("spoil "):
        spoil(first.split()[1])
        return ""
    if first == "heal":
        os.pwrite(store["state"], intact["header"], 0)
        os.ftruncate(store["arena"], len(intact["arena"]))
        os.pwrite(store["arena"], intact["bytes"], 0)
        return ""
    return first


def spoil(how: str) -> None:
    """Damage the state, whose first 128 KiB are two copies of the header, or the arena."""
    fd = store["state"]
    intact.setdefault("header", os.pread(fd, 2 * HEADER_BYTES, 0))
    intact.setdefault("arena", range(os.fstat(store["arena"]).st_size))
    os.pwrite(fd, intact["header"], 0)
    if how == "arena":
        intact["bytes"] = os.pread(store["arena"], 1 << 20, 0)  # all that the test has written
        os.ftruncate(store["arena"], 0)
    for at in (0, HEADER_BYTES):
        seq, length, crc = HEAD.unpack(os.pread(fd, HEAD.size, at))
        text = os.pread(fd, length, at + HEAD.size)
        if not seq or how == "arena":
            continue
        if how != "crc":
            fields = {**json.loads(text), **SPOILT[how]}
            text = json.dumps(fields).encode()
            crc = zlib.crc32(text, seq) ^ 1
        os.pwrite(fd, HEAD.pack(seq, len(text), crc ^ 1) + text, at)


def start(argv: list[str], failpoint: str) -> int:
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
    if failpoint:
        environ["JFSD_FAILPOINT"] = failpoint
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
        failpoint = next_failpoint()
        running.append(start(argv, failpoint))
        _, status = os.waitpid(running[-1], 0)
        code = os.waitstatus_to_exitcode(status)
        hear_everything(notify)
        if code > 0:
            time.sleep(0.2)
        print(f"keeper: server {len(running)} ended {code} [{failpoint}]", flush=True)
        dead_at_start = failpoint and code == -signal.SIGKILL
        if stopping.is_set() or ("fuse" not in store and not dead_at_start):
            return code


if __name__ == "__main__":
    sys.exit(main())
