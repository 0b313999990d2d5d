"""What a new server clears away of the one before, once nothing of that can come again.

The requests that the former server had read come again first, and meet their recorded
results. When they are answered, what is left of it in Redis belongs to nobody: results
whose answers were written but not acknowledged, and files without a name whose last
handle was closed by a release that the kill cut short.

A kill in here leaves the rest to the next server.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from jfsd.object.base import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from jfsd.chunk.pending import Draft
    from jfsd.daemon.state import State
    from jfsd.types import Ino

log = logging.getLogger(__name__)

_POLL_S = 0.5


class Kernel(Protocol):
    """What is known of the requests (`jfsd.fuse.session.Session`)."""

    @property
    def caught_up(self) -> bool: ...  # noqa: D102
    @property
    def unanswered(self) -> set[int]: ...  # noqa: D102
    @property
    def waiting(self) -> set[int]: ...  # noqa: D102


class Books(Protocol):
    """What is cleared (`jfsd.meta.client.Meta`)."""

    async def is_compacted_into(self, slice_id: int) -> bool: ...  # noqa: D102
    async def sustained_inos(self) -> set[Ino]: ...  # noqa: D102
    async def release_sustained(self, ino: Ino) -> None: ...  # noqa: D102
    async def forget_others(  # noqa: D102
        self, unanswered: Iterable[int] = (), pending_slices: Iterable[int] = ()
    ) -> None: ...


async def settle(
    drafts: Iterable[Draft],
    state: State,
    meta: Books,
    delete: Callable[[int, int], Awaitable[None]],
) -> None:
    """Return when no objects of the drafts are left but those that were committed.

    To be called before recorded results are forgotten, for drafts that nobody works on.
    What cannot be deleted now is left to the next server.

    Raises:
        OSError: Redis did not answer.
    """
    for draft in drafts:
        if not await meta.is_compacted_into(draft.id):
            try:
                await delete(draft.id, draft.size)
            except StoreError as error:
                log.warning("objects of slice %d are left behind: %s", draft.id, error)
                continue
        state.remove_draft(draft.id)


async def clear_away(
    kernel: Kernel,
    meta: Books,
    open_inos: Callable[[], Iterable[Ino]],
    slice_ids: Callable[[], Iterable[int]],
    tidy: Callable[[], Awaitable[None]],
) -> None:
    """Return when nothing is left of the former server but what is still needed.

    Args:
        kernel: Tells which requests are not answered.
        meta: Where the leftovers are.
        open_inos: Returns the files that are open here.
        slice_ids: Returns the slices that are not committed.
        tidy: Settles the former server's drafts.
    """
    while not kernel.caught_up:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_POLL_S)
    former = kernel.unanswered
    while (former & kernel.unanswered) - kernel.waiting:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(_POLL_S)
    with suppress(OSError):  # the next server will do it
        closed = await meta.sustained_inos() - set(open_inos())
        await asyncio.sleep(_POLL_S)  # some are being opened or closed at this moment
        for ino in closed & await meta.sustained_inos() - set(open_inos()):
            log.info("inode %d was closed by a server that died, its space is freed", ino)
            await meta.release_sustained(ino)
        await tidy()
        await meta.forget_others(kernel.unanswered, slice_ids())
