"""What a server is started with: nothing, or the descriptors of a mount that is live.

The keeper (the service manager's descriptor store, or our holder) passes three: `fuse`,
the mount itself; `state`, what must be known of it; `arena`, the bytes that programs
wrote and the store does not have. All three or none: half a mount is never served.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any

from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Change
from jfsd.config.settings import MountSettings, settings_from
from jfsd.daemon.holder_store import Kept
from jfsd.daemon.state import Header, State, StateError
from jfsd.daemon.timing import started_s
from jfsd.errors import ExitCode, RefusedError
from jfsd.failpoint import reach
from jfsd.record import Record
from jfsd.systemd.fdstore import received
from jfsd.systemd.notify import Notifier

FUSE, STATE, ARENA = NAMES = ("fuse", "state", "arena")
REQUESTS = "requests"
"""Parked, too, on kernels before 6.9: see jfsd.fuse.inflight."""

INIT = "init"
"""Beside `fuse`: what a mount that nobody has served yet begins with, or why there is none."""

HANG_S = 2.0
"""Time in one step of a handler, and until the next server, that no innocent one takes."""

POISON = 3
"""Deaths of servers in the handler of one request after which it is answered with EIO."""


class Takeover:
    """A live mount that was handed to this process; not ours to change before `begin`."""

    def __init__(
        self, fuse_fd: int, arena_fd: int, state: State, requests_fd: int | None = None
    ) -> None:
        self.fuse_fd = fuse_fd
        self.arena_fd = arena_fd
        self.state = state
        self.requests_fd = requests_fd
        self.poisoned: frozenset[int] = frozenset()
        """Requests that killed their servers too often; known from `begin` on."""
        self.leaving: dict[str, Any] = {}
        """What the last server said of its end."""
        self.sealed = False
        """The last server ended as it wanted to."""

    def begin(self) -> None:
        """Make the mount ours: nobody else serves it any more.

        Raises:
            StateError: The last server left something that cannot be used.
        """
        self.state.reload()
        header = self.state.header
        self.leaving, self.sealed = header.leaving, header.sealed
        self.poisoned = _accuse(self.state)


class Fresh(Record):
    """A mount that was made for this process by somebody who may: nobody has served it yet."""

    fuse_fd: int
    device: str
    mountpoint: str
    init_in: bytes

    def write(self) -> int:
        """Return a memory file that says all this but the descriptor."""
        return _write(
            {
                "device": self.device,
                "mountpoint": self.mountpoint,
                "init_in": b64encode(self.init_in).decode(),
            }
        )


def write_refusal(error: RefusedError) -> int:
    """Return a memory file that says why no mount was made."""
    return _write({"refused": [int(error.exit_code), error.value, error.rule, error.mend]})


FIXED = tuple(flag.name for flag in MOUNT_FLAGS if flag.change is Change.FIXED)
"""Names of the options that a live mount cannot change."""


def take_over(notifier: Notifier) -> Takeover | Fresh | None:
    """Return the mount that was handed to this process, or None if it shall make one.

    Memory without a mount belongs to one that is gone: it is dropped, here and there.

    Raises:
        StateError: The mount cannot be served with what is there; it is left as it is.
        RefusedError: Whoever was to make the mount could not.
    """
    found = received()
    note = found.pop(INIT, [])
    if note and not all(found.get(name) for name in NAMES):
        return _fresh(found, note[-1])
    for fd in note:  # its server had parked everything, but was gone before it could say so
        notifier.remove(INIT)
        os.close(fd)
    if not found.get(FUSE):
        for name, fds in found.items():
            notifier.remove(name)
            for fd in fds:
                os.close(fd)
        return None
    for name in NAMES:
        if len(found.get(name, ())) != 1:
            raise StateError(f"comes with {len(found.get(name, ()))} descriptors named {name}")
    state = State.load(found[STATE][0])
    arena_bytes = os.fstat(found[ARENA][0]).st_size
    if arena_bytes < state.header.block_size:
        raise StateError(f"does not fit the write buffer that came with it ({arena_bytes} bytes)")
    requests = found.get(REQUESTS, [None])
    return Takeover(found[FUSE][0], found[ARENA][0], state, requests[0])


def fixed_options(settings: MountSettings) -> dict[str, Any]:
    """Return the options that the kernel fixed at mount time, as they are kept in the state."""
    return {
        flag.option: flag.show(settings.effective(flag))
        for flag in MOUNT_FLAGS
        if flag.change is Change.FIXED
    }


def keeping_fixed(
    settings: MountSettings, header: Header, names: Iterable[str] = FIXED
) -> MountSettings:
    """Return the settings with those of the fixed options that the live mount has.

    Args:
        settings: What is asked for now.
        header: What is kept of the mount.
        names: Which fixed options may stay as they are although something else is asked for.

    Raises:
        RefusedError: The mount has options that this version does not know.
    """
    wanted = fixed_options(settings)
    values = {flag.name: settings.value(flag) for flag in MOUNT_FLAGS}
    for flag in (BY_NAME[name] for name in names):
        kept = header.options.get(flag.option)
        if kept is not None and kept != wanted[flag.option]:
            values[flag.name] = flag.parse(kept)
    return settings_from(values)


def check_same_mount(
    header: Header, mountpoint: str, volume_uuid: str, settings: MountSettings
) -> None:
    """Return if the mount can be served as it is asked for now.

    Raises:
        RefusedError: Another volume or mount point, or options that the kernel fixed
            differ; all differences are named, and the mount is left as it is.
    """
    wanted = {"mount point": mountpoint, "volume": volume_uuid, **fixed_options(settings)}
    kept = {"mount point": header.mountpoint, "volume": header.volume_uuid, **header.options}
    differ = [
        f"{name} was {kept.get(name) or '(none)'}, is {value or '(none)'}"
        for name, value in wanted.items()
        if kept.get(name) != value
    ]
    if differ:
        raise RefusedError(
            ExitCode.ALREADY_MOUNTED,
            header.mountpoint,
            "cannot be taken over: " + ", ".join(differ),
            "start with the former options, or unmount and mount again",
        )


def park(notifier: Notifier, kept: Iterable[Kept]) -> None:
    """Give duplicates of the mount's descriptors to the keeper, if there is one.

    To be called once the kernel's INIT is answered: before, the service manager would
    take the descriptor for a broken one and drop it without a word.
    """
    for name, fd in kept:
        if name == FUSE:
            reach("start.parking")
        notifier.store(name, fd)
    notifier.remove(INIT)


def unpark(notifier: Notifier) -> None:
    """Take the descriptors back: the mount is gone."""
    for name in (INIT, *NAMES, REQUESTS):
        notifier.remove(name)


def _fresh(found: dict[str, list[int]], note: int) -> Fresh:
    """Return the mount that `note` tells about; what else there is, is half a state.

    Raises:
        RefusedError: There is none, for the reason that is given.
    """
    text = os.pread(note, os.fstat(note).st_size, 0)
    told: dict[str, Any] = json.loads(text)
    if refused := told.get("refused"):
        code, value, rule, mend = refused
        raise RefusedError(ExitCode(code), value, rule, mend)
    for fd in (note, *(fd for name, fds in found.items() if name != FUSE for fd in fds)):
        os.close(fd)
    if len(found.get(FUSE, ())) != 1:
        raise StateError(f"comes with {len(found.get(FUSE, ()))} descriptors named {FUSE}")
    return Fresh(
        found[FUSE][0],
        told["device"],
        told["mountpoint"],
        b64decode(told["init_in"], validate=True),
    )


def _write(told: dict[str, Any]) -> int:
    fd = os.memfd_create("jfsd-init", os.MFD_CLOEXEC)
    os.write(fd, json.dumps(told).encode(errors="surrogateescape"))
    return fd


def _accuse(state: State) -> frozenset[int]:
    """Blame the request whose handler was running when the last server died of it.

    Who was killed from outside did not: in a storm of kills the same request may be at work
    each time. A handler that had run for seconds hung, or ate up the memory.
    """
    op, since_s = state.suspect()
    crashed = state.take_crash()
    state.running(0)
    if state.header.sealed or not op or not (crashed or started_s() - since_s > HANG_S):
        return frozenset()
    return frozenset((op,)) if state.accuse(op) >= POISON else frozenset()
