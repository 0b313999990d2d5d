"""A server without a file system: it speaks the keeper's protocol, and writes down its life.

Its "mount" is an eventfd, its state a memfd in which every process that serves leaves a
line. Variables of its environment say how it shall behave:

    FAKE_JOURNAL   where it appends what happens, one `event pid` a line (required)
    FAKE_FAIL      "message:code": say the message on stderr and exit before it is ready
    FAKE_FAIL_AT   "mounted": fail after the descriptors were pushed
    FAKE_START_S   how long it takes to be ready
    FAKE_DRAIN_S   how long it takes to hand over
    FAKE_EXIT      its exit code when it was stopped
    FAKE_REVIVE    start a new holder when the holder is gone
    FAKE_NAME      a word that it writes down with "ready"
"""

import asyncio
import fcntl
import os
import signal
import sys

from jfsd.daemon.holder_child import Command
from jfsd.daemon.holder_link import is_kept, keep_holder
from jfsd.daemon.holder_store import Kept
from jfsd.daemon.holder_successor import Standby, Successor
from jfsd.systemd.fdstore import received
from jfsd.systemd.notify import Notifier

NAMES = ("fuse", "state", "arena")
MOUNTPOINT = os.environ.get("FAKE_MOUNTPOINT", "")


def note(*words: object) -> None:
    line = " ".join(str(word) for word in (*words, os.getpid())) + "\n"
    fd = os.open(os.environ["FAKE_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, line.encode())
    os.close(fd)


def fail_if_told(when: str) -> None:
    told = os.environ.get("FAKE_FAIL")
    if told and os.environ.get("FAKE_FAIL_AT", "start") == when:
        message, _, code = told.rpartition(":")
        print(f"jfsd: {message}", file=sys.stderr)
        sys.exit(int(code))


def revive() -> None:
    from jfsd.daemon.holder import start_holder

    start_holder(MOUNTPOINT, sys.orig_argv, os.environ, 10, adopt=True, listening=True)


async def main() -> int:
    note("start")
    fail_if_told("start")
    notifier = Notifier.from_environ()
    standby = Standby.from_environ()
    found = received()
    if standby is not None:
        await asyncio.sleep(float(os.environ.get("FAKE_START_S", "0")))
        note("warm")
        standby.warm()
        found = await asyncio.to_thread(standby.take)
        if found is None:
            note("unneeded")
            return 0
    else:
        await asyncio.sleep(float(os.environ.get("FAKE_START_S", "0")))
    # There must never be two: a lock that only the kernel releases shows it.
    lock = os.open(os.environ["FAKE_JOURNAL"] + ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("TWO-SERVERS")
    if not found:
        found = {
            "fuse": [os.eventfd(0)],
            "state": [os.memfd_create("state")],
            "arena": [os.memfd_create("arena")],
        }
        note("mounted")
    assert all(len(found[name]) == 1 for name in NAMES), found
    state = found["state"][0]
    os.pwrite(state, f"{os.getpid()}\n".encode(), os.fstat(state).st_size)

    def push() -> None:
        for name in reversed(NAMES):
            notifier.store(name, *found[name])
        note("pushed")

    push()
    fail_if_told("mounted")
    end: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def hand_over() -> None:
        note("usr2")
        await asyncio.sleep(float(os.environ.get("FAKE_DRAIN_S", "0")))
        if await asyncio.to_thread(is_kept, NAMES):
            end.set_result(0)
        else:
            note("stays")

    async def hand_over_warm() -> None:
        """Do what systemd has no holder's upgrade for: start the next one ourselves."""
        note("usr1")
        kept = [Kept(name, found[name][0]) for name in NAMES]
        own = ("NOTIFY_SOCKET", "JFSD_HOLDER", "WATCHDOG_USEC")
        variables = {name: os.environ[name] for name in own if name in os.environ}
        next_one = Successor(Command(tuple(sys.orig_argv), os.environ), kept, variables)
        assert await asyncio.to_thread(next_one.hear)
        assert notifier.main_pid(next_one.process.pid)
        assert await asyncio.to_thread(notifier.barrier, 5)
        os.close(lock)
        next_one.promote(kept)
        end.set_result(0)

    tasks = set()

    def run(coroutine) -> None:
        tasks.add(asyncio.create_task(coroutine))

    def stop() -> None:
        note("term")
        notifier.stopping()
        if os.environ.get("FAKE_STUCK") and not os.path.exists(os.environ["FAKE_STUCK"]):
            return
        for name in NAMES:
            notifier.remove(name)
        end.set_result(int(os.environ.get("FAKE_EXIT", "0")))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR2, lambda: run(hand_over()))
    loop.add_signal_handler(signal.SIGUSR1, lambda: run(hand_over_warm()))
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGHUP, lambda: note("hup"))
    again = revive if os.environ.get("FAKE_REVIVE") else None
    run(keep_holder(push, again))
    if notifier.watchdog_interval_s:
        run(beat(notifier))
    note("ready", os.environ.get("FAKE_NAME", ""))
    notifier.ready("serving nothing")
    code = await end
    for task in tasks:
        task.cancel()
    note("end")
    return code


async def beat(notifier: Notifier) -> None:
    while True:
        notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_interval_s)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
