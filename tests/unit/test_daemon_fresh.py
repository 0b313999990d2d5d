"""What a server is given by whoever mounted for it: a mount, a refusal, or half of something."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from jfsd.daemon.state import Header, State, StateError
from jfsd.daemon.takeover import Fresh, Takeover, take_over, unpark, write_refusal
from jfsd.errors import ExitCode, RefusedError
from jfsd.systemd.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator

INIT_IN = b"\x68\0\0\0 the kernel's words \xff"


class Listener:
    """Whoever hears what a notifier says."""

    def __init__(self) -> None:
        address = f"@jfsd-test-fresh-{os.getpid()}"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:])
        self.socket.setblocking(False)
        self.notifier = Notifier(address)

    def removed(self) -> list[str]:
        """Return the names that were to be dropped since the last call."""
        found = []
        while True:
            try:
                message = self.socket.recv(4096).decode()
            except BlockingIOError:
                return found
            words = dict(line.split("=", 1) for line in message.split("\n"))
            if "FDSTOREREMOVE" in words:
                found.append(words["FDNAME"])


@pytest.fixture
def listener() -> Iterator[Listener]:
    heard = Listener()
    yield heard
    heard.notifier.close()
    heard.socket.close()


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A function that hands descriptors to `take_over` as if a service manager had."""
    given: list[int] = []

    def hand(**fds: int) -> None:
        given.extend(fds.values())
        found = {name: [fd] for name, fd in fds.items()}
        monkeypatch.setattr("jfsd.daemon.takeover.received", lambda: found)

    yield hand
    for fd in given:
        try:
            os.close(fd)
        except OSError:
            continue


def a_state() -> int:
    header = Header("id", "uuid", "/mnt/x", "0:9", 4 << 20)
    state = State.create(header)
    fd = os.dup(state.fd)
    state.close()
    os.close(state.fd)
    return fd


def test_a_mount_that_was_made_for_us_is_fresh(give, listener) -> None:
    fuse = os.memfd_create("fuse")
    give(fuse=fuse, init=Fresh(fuse, "0:57", "/mnt/a b", INIT_IN).write())
    found = take_over(listener.notifier)
    assert found == Fresh(fuse, "0:57", "/mnt/a b", INIT_IN)
    assert listener.removed() == []  # kept until the state is parked: this process may die


def test_half_a_state_beside_it_is_not_used(give, listener) -> None:
    fuse, state = os.memfd_create("fuse"), a_state()
    give(fuse=fuse, state=state, init=Fresh(fuse, "0:57", "/mnt", INIT_IN).write())
    assert isinstance(take_over(listener.notifier), Fresh)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(state)


def test_a_mount_with_all_its_memory_is_taken_over_though_init_is_left(give, listener) -> None:
    fuse, arena = os.memfd_create("fuse"), os.memfd_create("arena")
    os.ftruncate(arena, 64 << 20)
    note = Fresh(fuse, "0:57", "/mnt", INIT_IN).write()
    give(fuse=fuse, state=a_state(), arena=arena, init=note)
    assert isinstance(take_over(listener.notifier), Takeover)
    assert listener.removed() == ["init"]


def test_a_refusal_is_raised_as_it_was_said(give, listener) -> None:
    refused = RefusedError(ExitCode.MOUNTPOINT_UNUSABLE, "/mnt", "is not empty", "empty it")
    give(init=write_refusal(refused))
    with pytest.raises(RefusedError) as raised:
        take_over(listener.notifier)
    assert str(raised.value) == "/mnt: is not empty; empty it"
    assert raised.value.exit_code == ExitCode.MOUNTPOINT_UNUSABLE


def test_a_note_without_its_mount_is_refused(give, listener) -> None:
    fuse = os.memfd_create("fuse")
    give(init=Fresh(fuse, "0:57", "/mnt", INIT_IN).write())
    os.close(fuse)
    with pytest.raises(StateError, match="0 descriptors named fuse"):
        take_over(listener.notifier)


def test_memory_of_a_mount_that_is_gone_is_dropped(give, listener) -> None:
    give(state=a_state(), arena=os.memfd_create("arena"))
    assert take_over(listener.notifier) is None
    assert sorted(listener.removed()) == ["arena", "state"]


def test_a_mount_that_is_gone_leaves_no_name(listener) -> None:
    unpark(listener.notifier)
    assert sorted(listener.removed()) == ["arena", "fuse", "init", "requests", "state"]
