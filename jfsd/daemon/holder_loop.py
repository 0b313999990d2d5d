"""One thread that waits for descriptors, signals and times: the holder's only engine."""

from __future__ import annotations

import itertools
import logging
import math
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from typing import Protocol

from jfsd.daemon.holder_log import OWN_LOGGER

log = logging.getLogger(OWN_LOGGER)

_LONGEST_WAIT_S = 3600.0
_AFTER_MISTAKE_S = 0.1

Act = Callable[[], None]


class HasFileno(Protocol):
    """What the kernel can wait for."""

    def fileno(self) -> int:
        """Return its descriptor."""


class Loop:
    """Calls what was asked to be called.

    Within a turn, what came in is dealt with first, then `between`, then what is due: a
    message that was sent before a deadline is heard before the deadline is judged, even
    if this process was stopped meanwhile.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: dict[str, tuple[float, Act]] = {}
        self._calls: set[int] = set()

    def listen_to(self, numbers: Iterable[int], stack: ExitStack) -> None:
        """Collect signals for `take_calls`, and be woken by them; undone by `stack`."""
        reader, writer = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        stack.callback(self._selector.close)
        stack.callback(reader.close)
        stack.callback(writer.close)

        def woken() -> None:
            with suppress(BlockingIOError):
                reader.recv(4096)

        self.watch(reader, woken)
        for number in numbers:
            signal.signal(number, lambda number, _: self._calls.add(number))
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer.fileno()))

    def take_calls(self) -> set[int]:
        """Return the signals that came since it was asked last."""
        calls, self._calls = self._calls, set()
        return calls

    def watch(self, subject: HasFileno | int, act: Act = lambda: None) -> None:
        """Call `act` whenever `subject` is readable."""
        self._selector.register(subject, selectors.EVENT_READ, act)

    def forget(self, subject: HasFileno | int) -> None:
        """Watch it no more; it is open still."""
        with suppress(KeyError):
            self._selector.unregister(subject)

    def after(self, name: str, delay_s: float, act: Act) -> None:
        """Call `act` once, in so many seconds; takes the place of what has this name."""
        self._timers[name] = (time.monotonic() + delay_s, act)

    def extend(self, name: str, delay_s: float) -> None:
        """Let what has this name come no earlier than in so many seconds."""
        if name in self._timers:
            at_s, act = self._timers[name]
            self._timers[name] = (max(at_s, time.monotonic() + delay_s), act)

    def cancel(self, *names: str) -> None:
        """Do not call what has one of these names, if anything has."""
        for name in names:
            self._timers.pop(name, None)

    def turn(self, between: Act) -> None:
        """Wait for something, and deal with all that is there.

        A mistake in here must not cost the mount: it is logged, and the loop goes on.
        """
        due_s = min((at for at, _ in self._timers.values()), default=math.inf)
        wait_s = min(_LONGEST_WAIT_S, max(0.0, due_s - time.monotonic()))
        acts: list[Act] = [key.data for key, _ in self._selector.select(wait_s)]
        for act in itertools.chain(acts, [between], self._due()):
            try:
                act()
            except Exception:
                log.exception("unforeseen; the holder goes on")
                time.sleep(_AFTER_MISTAKE_S)

    def _due(self) -> Iterable[Act]:
        """Yield what is due, looking at the clock late: whatever comes before may cancel it."""
        for name in list(self._timers):
            if name in self._timers and self._timers[name][0] <= time.monotonic():
                yield self._timers.pop(name)[1]
