"""Time from `mount` to the first answer, memory, and the stall of a planned restart.

There are two ways to mount, and two times. In the background (`mount -d`) both programs
return when the mount is served; juicefs looks every half second whether it is. In the
foreground, as a service manager starts them, nobody waits for a command, and only what the
programs do counts.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support import mounts
from support.session import Service

if TYPE_CHECKING:
    from support.clients import Client

_SETTLE_S = 1.5


def resident_mib(pids: list[int]) -> float:
    """Return the resident memory of processes, pages that they share counted once each."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def background_ms(client: Client, url: str, path: Path, cache: Path) -> float:
    """Return how long `mount -d` and the first question after it take together."""
    argv = ["mount", "-d", *client.mount_flags(), "--cache-dir", str(cache), url, path]
    began = time.monotonic()
    client.run(*argv)
    assert mounts.at(path)
    os.listdir(path)
    took = time.monotonic() - began
    time.sleep(_SETTLE_S)
    end(client, path)
    return took * 1000


def foreground_ms(client: Client, url: str, path: Path, cache: Path) -> float:
    """Return how long it takes from the start of `mount` until a program gets an answer."""
    before = path.stat().st_dev
    argv = [client.binary, "mount", *client.mount_flags(), "--cache-dir", str(cache)]
    began = time.monotonic()
    service = Service(client.session, [*argv, url, path], path.parent / "l", env=client.env())
    while os.stat(path).st_dev == before:
        assert service.returncode() is None, service.tail()
        time.sleep(0.001)
    os.listdir(path)
    took = time.monotonic() - began
    time.sleep(_SETTLE_S)
    end(client, path)
    return took * 1000


def restart_stalls(client: Client, url: str, path: Path, cache: Path, times: int) -> list[float]:
    """Mount in the background, restart on the live mount; return the longest waits in ms."""
    argv = ["mount", "-d", *client.mount_flags(), "--cache-dir", str(cache), url, path]
    client.run(*argv)
    reader, writer = os.pipe()
    load = os.fork()
    if load == 0:
        os.close(reader)
        try:
            _load(path / "load", writer)
        finally:
            os._exit(1)
    os.close(writer)
    stalls = []
    try:
        time.sleep(_SETTLE_S)
        _longest_ms(reader)
        for _ in range(times):
            client.run(*argv)
            time.sleep(_SETTLE_S)
            stalls.append(_longest_ms(reader))
    finally:
        os.kill(load, signal.SIGKILL)
        os.waitpid(load, 0)
        os.close(reader)
        end(client, path)
    return stalls


def end(client: Client, path: Path) -> None:
    """Unmount; whatever keeps the mount alive elsewhere is not waited for."""
    try:
        client.run("umount", path, limit_s=20)
    except AssertionError:
        client.session.request("detach", path=str(path))
    assert not mounts.at(path)


def _load(top: Path, out: int) -> None:
    """Write, read, stat and list for ever; tell each wait that is long."""
    top.mkdir(exist_ok=True)
    fd = os.open(top / "data", os.O_CREAT | os.O_RDWR)
    page = os.urandom(4096)

    def write(index: int) -> None:
        os.pwrite(fd, page, index % 256 * 4096)

    def sync_or_read(index: int) -> None:
        if index % 16 == 0:
            os.fsync(fd)
        else:
            os.pread(fd, 4096, 0)

    def create(index: int) -> None:
        os.close(os.open(top / f"n{index % 64}", os.O_CREAT | os.O_WRONLY))

    def listing(_index: int) -> None:
        os.listdir(top)

    for index in itertools.count():
        for work in (write, sync_or_read, create, listing):
            began = time.monotonic()
            work(index)
            os.write(out, b"%d\n" % ((time.monotonic() - began) * 1e6))
        time.sleep(0.002)


def _longest_ms(reader: int) -> float:
    """Return the longest wait told since the last call."""
    os.set_blocking(reader, False)
    text = b""
    while True:
        try:
            part = os.read(reader, 1 << 20)
        except BlockingIOError:
            break
        if not part:
            break
        text += part
    return max((int(line) for line in text.split(b"\n")[1:-1]), default=0) / 1000
