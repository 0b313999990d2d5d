"""One limit on the memory of the data path, shared by dirty and by clean pages.

Dirty bytes are *charged*: they go away only when they have been stored, so who needs
room for more waits. Clean bytes (blocks read ahead, warm pages of the arena) are
*lent*: whoever holds them gives them back at once when asked, except those *pinned* by
a download under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Budget:
    """Bytes that may be in memory at once.

    Invariants: after `settle`, charged + lent <= limit; requests that wait are served in
    order of arrival and nobody overtakes them; a request that can never fit is served
    when nothing is charged.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.charged = 0
        self.lent = 0
        self.pinned = 0
        """The part of `lent` that cannot be given back yet."""
        self.reclaimers: list[Callable[[int], None]] = []
        """Each is asked to repay so many bytes, in this order; repaying less is allowed."""
        self.on_pressure: Callable[[], None] | None = None
        """Called when somebody has to wait: the owner of the dirty bytes moves them."""
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __repr__(self) -> str:
        return (
            f"<Budget charged={self.charged} lent={self.lent} limit={self.limit}"
            f" waiting={len(self._waiting)}>"
        )

    @property
    def wanted(self) -> int:
        """Bytes that somebody is waiting for."""
        return sum(n for n, _ in self._waiting) if self._waiting else 0

    def set_limit(self, limit_bytes: int) -> None:
        """Change the limit; a lower one takes effect as dirty memory is stored."""
        self.limit = limit_bytes
        self.settle()
        self._serve()

    def try_take(self, n: int) -> bool:
        """Charge `n` bytes now, or return False if this must wait.

        Clean memory is not asked for here: pages that are warm may be the very ones that
        the charge will be spent on. Who touches new memory calls `settle` before.
        """
        if self._waiting or not self._fits(n):
            return False
        self.charged += n
        return True

    async def take(self, n: int) -> None:
        """Charge `n` bytes, after those who came first; a cancelled wait charges nothing."""
        if self.try_take(n):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (n, future)
        self._waiting.append(entry)
        try:
            if self.on_pressure is not None:
                self.on_pressure()
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give(n)  # granted in the same turn
            elif entry in self._waiting:
                self._waiting.remove(entry)
                self._serve()
            raise

    def give(self, n: int) -> None:
        """Take back a charge of `n` bytes and serve those who wait."""
        self.charged -= n
        if self._waiting:
            self._serve()

    def charge(self, n: int) -> None:
        """Charge `n` bytes that are in memory already, whatever the limit says."""
        self.charged += n

    def settle(self) -> None:
        """Have clean memory given back until the limit is kept."""
        excess = self.charged + self.lent - self.limit
        if excess > 0 and self.lent:
            self._reclaim(excess)

    def borrow(self, n: int) -> bool:
        """Lend `n` bytes for clean memory, or return False; never while a writer waits."""
        if self._waiting:
            return False
        excess = self.charged + self.lent + n - self.limit
        if excess > 0:
            self._reclaim(excess)
            if self.charged + self.lent + n > self.limit:
                return False
        self.lent += n
        return True

    def repay(self, n: int) -> None:
        """Take back `n` lent bytes."""
        self.lent -= n

    def pin(self, n: int) -> None:
        """Mark `n` lent bytes as not to be had for now; a negative number unmarks them."""
        self.pinned += n
        if n < 0 and self._waiting:
            self._serve()

    def warm(self, n: int) -> None:
        """Turn `n` charged bytes into lent ones; the sum stays the same."""
        self.charged -= n
        self.lent += n
        if self._waiting:
            self._serve()

    def reuse(self, n: int) -> None:
        """Turn `n` lent bytes into charged ones; the sum stays the same."""
        self.lent -= n
        self.charged += n

    def _fits(self, n: int) -> bool:
        return self.charged + self.pinned + n <= self.limit or self.charged == 0

    def _reclaim(self, excess: int) -> None:
        goal = self.lent - excess
        for reclaim in self.reclaimers:
            if self.lent <= goal:
                return
            reclaim(self.lent - goal)

    def _serve(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            n, future = self._waiting.popleft()
            if not future.done():
                self.charged += n
                future.set_result(None)
