"""The write buffer: slots of one block each in a sparse memory file.

The memory file outlives the process if somebody else holds its descriptor, so that the
next process finds the bytes of every accepted write where this one left them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable

from jfsd.chunk.budget import Budget

PAGE_BYTES = 4096
SLOT_COST_BYTES = 4096
"""Charged per slot in use besides its pages: page tables and bookkeeping."""

_SMALL_BYTES, _SMALL_WARM = 64 << 10, 32
"""So many slots that held a small file or less are kept warm, too: small files come in crowds."""

_MIN_SLOTS = 32768
_MAX_MAPPED_BYTES = 32 << 40
"""Addresses that the slots take at most; a process has four times as many."""


def pages(n: int) -> int:
    """Return the bytes of memory that `n` bytes from the start of a slot occupy."""
    return (n + PAGE_BYTES - 1) & -PAGE_BYTES


class Arena:
    """Slots over a memory file; what is touched is charged to the budget.

    Invariants: a slot in use is charged max(pages it ever had, pages in use) plus
    SLOT_COST_BYTES; a warm slot (free, pages kept for the next writer, since a new page
    costs fifteen times a copy into an old one) is lent the same, be it full or one of some
    small ones; all other slots have no pages.
    """

    def __init__(
        self, budget: Budget, slot_bytes: int, *, fd: int | None = None, slots: int | None = None
    ) -> None:
        """Map `fd`, whose size tells the number of slots, or a new memory file.

        The descriptor stays the caller's when it was given. After a takeover, `claim` the
        slots in use and then `sweep` the others before the first `alloc`.
        """
        self.budget = budget
        self.slot_bytes = slot_bytes
        if fd is None:
            wanted = slots or _slots_for(budget.limit, slot_bytes)
            fd = os.memfd_create("jfsd-arena", os.MFD_CLOEXEC)
            os.ftruncate(fd, wanted * slot_bytes)
            self._owned = True
        else:
            self._owned = False
        self.fd = fd
        self.slots = os.fstat(fd).st_size // slot_bytes
        self._map = _mapped(fd, self.slots * slot_bytes)
        self.memory = memoryview(self._map)
        self._charges: dict[int, int] = {}
        self._fresh = 0
        self._free: list[int] = []
        self._warm: list[int] = []
        self._small: list[tuple[int, int]] = []
        """Warm slots of which only the first pages were used, and what those cost."""
        self._warm_cost = pages(slot_bytes) + SLOT_COST_BYTES
        self._small_cost = min(_SMALL_BYTES, slot_bytes // 4)
        budget.reclaimers.insert(0, self._cool)

    def __repr__(self) -> str:
        return f"<Arena used={len(self._charges)} warm={len(self._warm)} of {self.slots}>"

    @property
    def used_slots(self) -> int:
        """Number of slots in use."""
        return len(self._charges)

    @property
    def warm_bytes(self) -> int:
        """Bytes of memory held by slots that are not in use."""
        return len(self._warm) * self._warm_cost + sum(cost for _, cost in self._small)

    def fit(self, limit_bytes: int) -> None:
        """Have slots enough for a budget of `limit_bytes`; views of slots stay valid.

        Raises:
            OSError: The memory file cannot be made larger; nothing has changed.
        """
        slots = _slots_for(limit_bytes, self.slot_bytes)
        if slots <= self.slots:
            return
        os.ftruncate(self.fd, slots * self.slot_bytes)
        # The same pages at other addresses; the old mapping goes with the last view of it.
        self._map = _mapped(self.fd, slots * self.slot_bytes)
        self.memory = memoryview(self._map)
        self.slots = slots

    def alloc(self, *, filled: bool) -> int:
        """Return a slot; `filled` says that its block will probably become a full one.

        Its first pages are charged by `grow`, those of a warm slot at once.

        Raises:
            MemoryError: All slots are in use (cannot happen while every slot is charged
                and the limit is within the arena's size).
        """
        if filled and self._warm:
            slot = self._warm.pop()
            self._charges[slot] = self._warm_cost
            self.budget.reuse(self._warm_cost)
            return slot
        if not filled and self._small:
            slot, cost = self._small.pop()
            self._charges[slot] = cost
            self.budget.reuse(cost)
            return slot
        if self._free:
            slot = self._free.pop()
        elif self._fresh < self.slots:
            slot = self._fresh
            self._fresh += 1
        elif self._warm or self._small:
            self._cool(1)
            slot = self._free.pop()
        else:
            raise MemoryError("every slot of the write buffer is in use")
        self._charges[slot] = 0
        return slot

    def grow(self, slot: int, used: int) -> int:
        """Return the bytes newly charged for `slot` when its first `used` bytes are in use.

        The caller has taken them from the budget. Call before touching the memory.
        """
        charge = pages(used) + SLOT_COST_BYTES
        extra = charge - self._charges[slot]
        if extra <= 0:
            return 0
        self._charges[slot] = charge
        self.budget.settle()
        return extra

    def view(self, slot: int, start: int, stop: int) -> memoryview:
        """Return bytes [start, stop) of a slot; valid until the slot is freed."""
        base = slot * self.slot_bytes
        return self.memory[base + start : base + stop]

    def free(self, slot: int) -> None:
        """Give the slot back; its pages stay warm if it was full or small and memory allows it."""
        charge = self._charges.pop(slot)
        if charge == self._warm_cost and self.warm_bytes <= self.budget.limit // 2:
            self._warm.append(slot)
            self.budget.warm(charge)
        elif charge <= self._small_cost and len(self._small) < _SMALL_WARM:
            self._small.append((slot, charge))
            self.budget.warm(charge)
        else:
            self._punch(slot, charge)
            self._free.append(slot)
            self.budget.give(charge)

    def claim(self, slot: int, used: int) -> None:
        """Mark a slot of an earlier process as in use and charge its first `used` bytes.

        Pages behind them, of whoever had the slot before, are dropped.

        Raises:
            ValueError: There is no such slot, or it is claimed already.
        """
        if not 0 <= slot < self.slots or slot in self._charges:
            raise ValueError(f"slot {slot} of the write buffer cannot be claimed")
        kept = pages(used)
        self._charges[slot] = kept + SLOT_COST_BYTES
        self.budget.charge(self._charges[slot])
        if kept < self.slot_bytes:
            start = slot * self.slot_bytes + kept
            self._map.madvise(mmap.MADV_REMOVE, start, self.slot_bytes - kept)

    def sweep(self) -> None:
        """Drop the pages of every slot that is not claimed."""
        self._fresh = max(self._charges, default=-1) + 1
        self._free = [slot for slot in range(self._fresh) if slot not in self._charges]
        for slot in self._touched():
            if slot not in self._charges:
                self._punch(slot)

    def trim(self, keep_bytes: int) -> None:
        """Drop warm pages until at most `keep_bytes` are left."""
        if self.warm_bytes > keep_bytes:
            self._cool(self.warm_bytes - keep_bytes)

    def close(self) -> None:
        """Unmap the memory; bytes in it live on if another descriptor holds them."""
        self.budget.reclaimers.remove(self._cool)
        self.memory.release()
        with contextlib.suppress(BufferError):
            self._map.close()  # else somebody still holds a view; it goes with the last one
        if self._owned:
            os.close(self.fd)

    def _cool(self, n: int) -> None:
        while n > 0 and self._warm:
            slot = self._warm.pop(0)
            self._punch(slot)
            self._free.append(slot)
            self.budget.repay(self._warm_cost)
            n -= self._warm_cost
        while n > 0 and self._small:
            slot, cost = self._small.pop(0)
            self._punch(slot, cost)
            self._free.append(slot)
            self.budget.repay(cost)
            n -= cost

    def _punch(self, slot: int, length: int | None = None) -> None:
        size = self.slot_bytes if length is None else min(length, self.slot_bytes)
        if size:
            self._map.madvise(mmap.MADV_REMOVE, slot * self.slot_bytes, size)

    def _touched(self) -> Iterable[int]:
        """Yield the slots that have pages."""
        offset, end = 0, self.slots * self.slot_bytes
        while offset < end:
            try:
                start = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError:
                return
            slot = start // self.slot_bytes
            yield slot
            offset = (slot + 1) * self.slot_bytes


def _slots_for(limit_bytes: int, slot_bytes: int) -> int:
    """Return how many slots a budget can fill, the shortest blocks in each."""
    most = _MAX_MAPPED_BYTES // slot_bytes
    return min(max(limit_bytes // (PAGE_BYTES + SLOT_COST_BYTES), _MIN_SLOTS), most)


def _mapped(fd: int, length: int) -> mmap.mmap:
    memory = mmap.mmap(fd, length)
    memory.madvise(mmap.MADV_DONTDUMP)
    return memory
