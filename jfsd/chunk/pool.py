"""Whole blocks in memory: what was read ahead or has just been read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from jfsd.chunk.budget import Budget
from jfsd.types import ReadableBuffer

_ENTRY_COST_BYTES = 512


class BlockPool:
    """Clean blocks, least recently used dropped first, inside half of the common budget."""

    def __init__(self, budget: Budget) -> None:
        self.on_freed: Callable[[int], None] | None = None
        """Told how many bytes of blocks were let go."""
        self._budget = budget
        self._blocks: OrderedDict[int, ReadableBuffer] = OrderedDict()
        self._used = 0
        self._pinned = 0
        budget.reclaimers.append(self._evict)

    def __contains__(self, key: int) -> bool:
        return key in self._blocks

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def capacity(self) -> int:
        """Bytes that the pool may hold at most."""
        return self._budget.limit // 2

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that are here or have room reserved."""
        return self._used + self._pinned

    def get(self, key: int) -> ReadableBuffer | None:
        """Return a block if it is here."""
        block = self._blocks.get(key)
        if block is not None:
            self._blocks.move_to_end(key)
        return block

    def reserve(self, length: int) -> bool:
        """Make room for a block that is about to be fetched; False if there is none."""
        cost = length + _ENTRY_COST_BYTES
        excess = self._used + self._pinned + cost - self.capacity
        if excess > 0:
            self._evict(excess)
            if self._used + self._pinned + cost > self.capacity:
                return False
        if not self._budget.borrow(cost):
            return False
        self._budget.pin(cost)
        self._pinned += cost
        return True

    def fill(self, key: int, length: int, block: ReadableBuffer | None) -> None:
        """Put a block into the room reserved for it, or give the room back."""
        cost = length + _ENTRY_COST_BYTES
        self._pinned -= cost
        if block is None or key in self._blocks:
            self._budget.repay(cost)
        else:
            self._blocks[key] = block
            self._used += cost
        self._budget.pin(-cost)

    def drop(self, key: int) -> None:
        """Forget a block."""
        block = self._blocks.pop(key, None)
        if block is not None:
            self._repay(block)

    def _evict(self, n: int) -> None:
        before = self._used
        while self._blocks and self._used > before - n:
            self._repay(self._blocks.popitem(last=False)[1])
        if self.on_freed is not None and self._used < before:
            self.on_freed(before - self._used)

    def _repay(self, block: ReadableBuffer) -> None:
        cost = len(block) + _ENTRY_COST_BYTES
        self._used -= cost
        self._budget.repay(cost)
