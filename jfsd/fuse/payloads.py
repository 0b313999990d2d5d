"""How much memory the contents of writes hold while they wait for room in the write buffer."""

from __future__ import annotations

from collections.abc import Callable

_MOST_BYTES = 32 << 20
_ROOM_BYTES = 1 << 20
_COPY_BYTES = 256 << 10


class Payloads:
    """Counts what the kernel has handed over and the buffer has not taken yet.

    A write that waits keeps its bytes, and there may be as many as there are programs:
    from a limit on no request is read any more, until half of that is gone. The kernel
    keeps what comes meanwhile. Only a store that is away or slow under dozens of writers
    makes it come to this, and it ends with the first block that is stored.
    """

    def __init__(self, hold: Callable[[bool], None], most_bytes: int = _MOST_BYTES) -> None:
        """Call `hold` with True when the limit is reached, with False when there is room."""
        self._hold = hold
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._full = False

    def __repr__(self) -> str:
        return f"<Payloads {self._held_bytes} of {self._most_bytes}{' full' * self._full}>"

    def take(self, length: int) -> int:
        """Count a payload; return what to give back when it is not needed any more."""
        cost = length if length <= _COPY_BYTES else _ROOM_BYTES
        self._held_bytes += cost
        if self._held_bytes > self._most_bytes and not self._full:
            self._full = True
            self._hold(True)
        return cost

    def give(self, cost: int) -> None:
        """Give back what `take` returned."""
        self._held_bytes -= cost
        if self._full and self._held_bytes <= self._most_bytes // 2:
            self._full = False
            self._hold(False)
