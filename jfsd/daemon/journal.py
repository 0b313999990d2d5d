"""Writes what changes into the parked state, and reads it back into a new server."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jfsd.chunk.pending import Draft, Part, PendingSlice
from jfsd.clock import monotonic_s
from jfsd.daemon.state import FileRecord, State
from jfsd.failpoint import reach
from jfsd.types import Ino, NodeType
from jfsd.vfs.dirs import blank_attr
from jfsd.vfs.virtual import FIRST_VIRTUAL_INO

if TYPE_CHECKING:
    from jfsd.meta.client import Meta
    from jfsd.vfs.vfs import Vfs

log = logging.getLogger(__name__)

_MOST_OWED = 500
"""Files of which an error is remembered over a restart."""


class SliceJournal:
    """Keeps the pending slices of the write buffer in the state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def on_slice_open(self, pending: PendingSlice) -> None:
        """Do nothing: a slice without bytes is worth nothing."""

    def on_write(self, part: Part) -> None:
        """Remember the bytes that are now in the arena; the write is not answered yet.

        The second part makes a slice a pack: first that is remembered, then the first part
        becomes one of its parts, then there is the second one. A kill in between leaves the
        slice, or the pack with one part.
        """
        whole = part.slice
        if whole.packed and not self._state.has_pack(whole.seq):
            self._state.put_pack(whole.as_pack())
            reach("pack.begun")
            self._state.put_slice(whole.parts[0].as_record())
            reach("pack.joined")
        self._state.put_slice(part.as_record())

    def on_named(self, pending: PendingSlice) -> None:
        """Remember the id, so that an upload is repeated under the same keys."""
        self._put(pending)

    def on_freeze(self, pending: PendingSlice) -> None:
        """Do nothing: whatever is found by a next process is frozen."""

    def on_uploaded(self, pending: PendingSlice, block: int) -> None:
        """Remember that a slot of the arena belongs to the slice no more."""
        del block
        self._put(pending)

    def on_part_dropped(self, part: Part) -> None:
        """Forget a part of a pack."""
        self._state.remove_slice(part.seq)

    def on_committed(self, pending: PendingSlice) -> None:
        """Forget the slice; a pack is forgotten with its own record."""
        if pending.packed:
            self._state.remove_pack(pending.seq)
            reach("pack.forgotten")
        for part in pending.parts:
            self._state.remove_slice(part.seq)

    def _put(self, pending: PendingSlice) -> None:
        if pending.packed:
            self._state.put_pack(pending.as_pack())
        else:
            self._state.put_slice(pending.parts[0].as_record())

    def on_owed(self, ino: Ino, number: int) -> None:
        """Remember with which errno the next who asks for the file is answered; 0 forgets it."""
        owed = self._state.header.owed
        if number and len(owed) < _MOST_OWED:
            self._state.change(owed={**owed, str(ino): number})
        elif str(ino) in owed:
            left = {each: what for each, what in owed.items() if each != str(ino)}
            self._state.change(owed=left)

    def on_draft(self, draft: Draft) -> None:
        """Remember objects that nobody refers to yet, or any more."""
        self._state.put_draft(draft)

    def on_settled(self, slice_id: int) -> None:
        """Forget them."""
        self._state.remove_draft(slice_id)


class HandleJournal:
    """Keeps the open handles and the owners of locks in the state."""

    def __init__(self, state: State) -> None:
        self._state = state

    def opened(self, fh: int, ino: Ino, flags: int, op: int) -> None:
        """Remember a handle."""
        self._state.add_file(FileRecord(fh, ino, flags, op))

    def closed(self, fh: int) -> None:
        """Forget a handle."""
        self._state.remove_file(fh)

    def locking(self, fh: int, owner: int) -> None:
        """Remember an owner of byte-range locks."""
        self._state.add_lock(fh, owner)

    def unlocked(self, fh: int, owner: int) -> None:
        """Forget an owner."""
        self._state.remove_lock(fh, owner)


async def restore_handles(state: State, vfs: Vfs, meta: Meta) -> int:
    """Give `vfs` the handles of the last process; return how many there are.

    Which of their files are unlinked and live on only for them is known to Redis, in the
    set of the session.
    """
    records = list(state.files())
    attrs = await meta.getattrs([record.ino for record in records]) if records else []
    sustained = await meta.sustained_inos()
    now_s = monotonic_s()
    for record, attr in zip(records, attrs, strict=True):
        handle = vfs.handles.restore(
            record.fh,
            record.ino,
            attr or blank_attr(NodeType.FILE),
            record.flags,
            record.op,
            now_s,
        )
        handle.inode.sustained = record.ino in sustained
        if record.ino >= FIRST_VIRTUAL_INO:
            vfs.adopt_view(handle)
    for fh, owner in state.locks():
        try:
            handle = vfs.handles.get(fh)
        except OSError:
            state.remove_lock(fh, owner)
            continue
        handle.own(owner)
    vfs.handles.journal = HandleJournal(state)
    return len(records)
