"""What every metadata operation stands on: running scripts exactly once, ids, volume switches.

The operations themselves are mixed into `jfsd.meta.client.Meta` from the modules beside this one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from jfsd import clock, failpoint
from jfsd.failpoint import reach
from jfsd.meta import codec
from jfsd.meta.keyspace import Keys
from jfsd.meta.scripts import SCRIPTS
from jfsd.meta.wire import ReplyError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from jfsd.meta.connection import Connection
    from jfsd.meta.wire import Argument, Reply
    from jfsd.types import Caller, Ino

log = logging.getLogger(__name__)

INODE_BATCH: Final = 1024
SLICE_BATCH: Final = 4096
ACKS_PER_SCRIPT: Final = 500
RESULTS_KEPT_S: Final = 30 * 86400
"""How long recorded results of operations outlive the last refresh of their mount."""
ACK_DELAY_S: Final = 2.0
"""Time after which a result of the daemon's own is forgotten; by then its task has run."""
UNANSWERED_DELAY_S: Final = 60.0
"""The same for a request's result when nobody tells us of answers."""

FENCED: Final = -1
ASK_OPEN: Final = -2
"""A script did nothing: it must know whether an inode is open here."""
ASK_CHUNKS: Final = -2
"""A script did nothing: the chunks of the file must be listed first."""
ASK_TREES: Final = -3
"""A script did nothing: it must know the size of directory trees."""


class FencedError(OSError):
    """EIO: a newer server owns this mount; this one must not write any more."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "a newer server owns this mount")


class NodeExistsError(FileExistsError):
    """EEXIST with the node that is in the way; `attr` is its raw record, or empty."""

    def __init__(self, ino: Ino, attr: bytes) -> None:
        super().__init__(errno.EEXIST, os.strerror(errno.EEXIST))
        self.ino = ino
        self.attr = attr


class VolumeRules(Protocol):
    """The fields of a volume's setting that scripts obey (`jfsd.config.volume.Volume`)."""

    @property
    def dir_stats(self) -> bool: ...  # noqa: D102
    @property
    def user_group_quota(self) -> bool: ...  # noqa: D102
    @property
    def enable_acl(self) -> bool: ...  # noqa: D102
    @property
    def capacity_bytes(self) -> int: ...  # noqa: D102
    @property
    def inodes(self) -> int: ...  # noqa: D102
    @property
    def trash_days(self) -> int: ...  # noqa: D102


_text = functools.cache(os.strerror)


def fail(number: int) -> NoReturn:
    """Raise the `OSError` of an errno."""
    raise OSError(number, _text(number))


class IdBatch:
    """Ids of one counter, taken in batches; the next batch is fetched before this one ends."""

    def __init__(self, engine: Engine, key: bytes, size: int, first: int) -> None:
        self._engine = engine
        self._key = key
        self._size = size
        self._first = first
        self._next = self._end = 0
        self._ahead: deque[range] = deque()
        self._low = size // 10
        self._fetching: asyncio.Task[None] | None = None

    async def next(self) -> int:
        """Return an id that nobody has used and nobody will; lost ids are never reused."""
        while (number := self.take()) is None:
            await asyncio.shield(self._fetch())
        return number

    def take(self) -> int | None:
        """Return such an id, or None if one would have to be waited for."""
        if self._next == self._end and not self._turn():
            return None
        number = self._next
        self._next += 1
        if self._end - number <= self._low and not self._ahead:
            self._fetch()
        return number

    def _turn(self) -> bool:
        """Begin the next batch; return whether there is one."""
        if not self._ahead:
            return False
        batch = self._ahead.popleft()
        self._next, self._end = batch.start, batch.stop
        return True

    def _fetch(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._fetching = self._engine.spawn(self._more(), "meta-ids")
            self._fetching.add_done_callback(_heed)
        return self._fetching

    async def _more(self) -> None:
        last = await self._engine.connection.call("INCRBY", self._key, self._size)
        self._ahead.append(range(max(last - self._size + 1, self._first), last + 1))


class Engine:
    """A mount's way to its metadata.

    Every mutation is one script with an identity; asked again under the same identity it
    returns the first result. Identities are forgotten once answered: `ack_source` yields the
    requests (`Caller.op`) that have been.

    Attributes:
        connection: Where commands go.
        keys: Names of the volume's keys.
        mount_id: Names the hash in which results wait for their answers.
        generation: Number of this server of the mount; a newer one fences this one.
        sid: Session id, 0 while there is none.
        ack_source: Returns the requests answered since it was last asked. None if nobody
            counts answers; results are then kept for a minute.
        freed: Called with (inode, length) when a file's data may be deleted.
        touched: Called with a directory's inode and record when one of our operations has
            changed an entry of it, in the order in which that happened; the record is None if
            a repeat has found it done.
        read_only: Every mutation fails with EROFS.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        mount_id: str,
        generation: int = 1,
        read_only: bool = False,
    ) -> None:
        self.connection = connection
        self.keys = Keys(connection.prefix)
        self.mount_id = mount_id
        self.generation = generation
        self.sid = 0
        self.read_only = read_only
        self.ack_source: Callable[[], Iterable[int]] | None = None
        self.freed: Callable[[Ino, int], None] | None = None
        self.touched: Callable[[Ino, bytes | None], None] | None = None
        self.trash_days = 0
        self.acl = False
        self._switches = ""
        self.capacity_bytes = 0
        self.inode_limit = 0
        self._operations = self.keys.operations(mount_id)
        self._identities = 0
        self._recorded: dict[int, set[str]] = {}
        self._maturing: deque[tuple[float, str, int]] = deque()
        self._underway: set[str] = set()
        self._acks: deque[str] = deque()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ack_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.inodes = IdBatch(self, self.keys.next_inode, INODE_BATCH, 2)
        self.slices = IdBatch(self, self.keys.next_chunk, SLICE_BATCH, 1)

    def apply(self, volume: VolumeRules) -> None:
        """Obey a volume's setting from now on; called again whenever it has changed."""
        self._switches = (
            ("S" if volume.dir_stats else "")
            + ("U" if volume.user_group_quota else "")
            + ("A" if volume.enable_acl else "")
        )
        self.capacity_bytes = max(volume.capacity_bytes, 0)
        self.inode_limit = max(volume.inodes, 0)
        self.trash_days = volume.trash_days
        self.acl = volume.enable_acl

    async def claim(self) -> None:
        """Make this server the one that may write for its mount; older ones are fenced.

        Raises:
            FencedError: A newer server has claimed the mount.
        """
        await self.run("claim", "0", RESULTS_KEPT_S)

    async def forget_others(
        self, unanswered: Iterable[int] = (), pending_slices: Iterable[int] = ()
    ) -> None:
        """Forget results of former servers but those of `unanswered` requests and pending slices.

        To be called when nothing else of a former server can come again.
        """
        fields = await self.connection.call("HKEYS", self._operations)
        keep = {op & ~1 for op in (*unanswered, *self._recorded)}  # now: some are of just now
        own = f"n{self.generation}-"
        slices = {f"s{number}" for number in pending_slices} | self._underway
        slices.update(identity for _, identity, _ in self._maturing)
        gone = [
            field
            for field in (name.decode() for name in fields)
            if field != "g"
            and not field.startswith(own)
            and field not in slices
            and not _belongs(field, keep)
        ]
        if gone:
            await self.connection.call("HDEL", self._operations, *gone)

    async def forget_mount(self) -> None:
        """Remove the mount's hash; the last thing a clean unmount does."""
        await self.connection.call("DEL", self._operations)

    async def close_engine(self) -> None:
        """Hand in what is answered and end the tasks; the connection stays open."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` in a task that ends with this object."""
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- scripts

    async def mutate(self, script: str, caller: Caller | None, *args: Argument) -> list[Reply]:
        """Run a mutation for a caller and return its result after the leading 0.

        A caller with `op` 0, or none, gets an identity of our own, so that a repeat after a
        broken connection is safe there, too.

        Raises:
            OSError: The errno the script decided on; EROFS when read-only.
            NodeExistsError: EEXIST, when the script names the node.
            FencedError: A newer server owns the mount.
        """
        if self.read_only:
            fail(errno.EROFS)
        op = caller.op if caller is not None else 0
        if not op:
            return await self._own(script, self._identity(), args)
        op &= ~1
        identity = f"{caller.op}.{script}" if caller is not None else script
        self._recorded.setdefault(op, set()).add(identity)
        if self.ack_source is None:
            self._mature(identity, UNANSWERED_DELAY_S, op)
        self._arm()
        return await self.run(script, identity, *args)

    async def mutate_as(self, script: str, identity: str, *args: Argument) -> list[Reply]:
        """Run a mutation under an identity that survives this process, such as a slice id."""
        if self.read_only:
            fail(errno.EROFS)
        return await self._own(script, identity, args)

    async def was_done(self, identity: str) -> bool:
        """Return whether the result of an identity is recorded."""
        return bool(await self.connection.call("HEXISTS", self._operations, identity))

    async def _own(self, script: str, identity: str, args: tuple[Argument, ...]) -> list[Reply]:
        self._underway.add(identity)
        try:
            result = await self.run(script, identity, *args)
        finally:
            self._underway.discard(identity)
        self._mature(identity, ACK_DELAY_S, 0)
        return result

    def _identity(self) -> str:
        self._identities += 1
        return f"n{self.generation}-{self._identities}"

    async def run(self, name: str, identity: str, *args: Argument) -> list[Reply]:
        """Run a script under an identity ('0': none; a repeat then acts twice)."""
        script = SCRIPTS[name]
        command = (
            "EVALSHA",
            script.digest,
            "1",
            self._operations,
            self.keys.prefix,
            str(self.generation),
            identity,
            self._take_acks(),
            codec.encode_time(clock.now_ns()),
            self._switches,
            self.capacity_bytes,
            self.inode_limit,
            *args,
        )
        reach("script.before")
        try:
            result = await self.connection.call(*command)
        except ReplyError as error:
            if error.code != "NOSCRIPT":
                log.error("script %s failed: %s", name, error.strerror)  # noqa: TRY400
                raise
            await self.connection.call("SCRIPT", "LOAD", script.source)
            result = await self.connection.call(*command)
        reach("script.after")
        if failpoint.armed:
            reach(f"script.after.{name}")
        status: int = result[0]
        if status == 0:
            return result[1:]  # type: ignore[no-any-return]
        if status == FENCED:
            raise FencedError
        if status == errno.EEXIST and len(result) > 2:
            raise NodeExistsError(int(result[1]), result[2])
        if status < 0:
            return result  # type: ignore[no-any-return]
        fail(status)

    async def read(self, name: str, key: bytes, *args: Argument) -> Reply:
        """Run a script that changes nothing and return its raw reply."""
        script = SCRIPTS[name]
        try:
            return await self.connection.call("EVALSHA", script.digest, "1", key, *args)
        except ReplyError as error:
            if error.code != "NOSCRIPT":
                raise
        await self.connection.call("SCRIPT", "LOAD", script.source)
        return await self.connection.call("EVALSHA", script.digest, "1", key, *args)

    # ---- answered identities

    def _mature(self, identity: str, delay_s: float, op: int) -> None:
        self._maturing.append((self._loop.time() + delay_s, identity, op))
        self._arm()

    def _arm(self) -> None:
        if self._ack_timer is None:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._tick)

    def _collect(self) -> None:
        """Move all identities that are answered to `_acks`."""
        for op in self.ack_source() if self.ack_source is not None else ():
            self._acks.extend(self._recorded.pop(op & ~1, ()))
        now_s = self._loop.time()
        while self._maturing and self._maturing[0][0] <= now_s:
            _, identity, op = self._maturing.popleft()
            self._acks.append(identity)
            self._recorded.pop(op, None)

    def _take_acks(self) -> str:
        if self._maturing or self.ack_source is not None:
            self._collect()
        acks = self._acks
        if not acks:
            return ""
        return " ".join(acks.popleft() for _ in range(min(len(acks), ACKS_PER_SCRIPT)))

    def _tick(self) -> None:
        """Hand in what no script has taken along, and go on while there is something left."""
        self._ack_timer = None
        self._collect()
        if self._acks:
            self.spawn(self._hand_in(), "meta-acks")
        if self._maturing or self._recorded:
            self._arm()

    async def _hand_in(self) -> None:
        while self._acks:
            fields = self._take_acks().split()
            with contextlib.suppress(OSError):
                await self.connection.call("HDEL", self._operations, *fields)


def _heed(task: asyncio.Task[None]) -> None:
    """Take note of a failed fetch; whoever needs an id tries again and reports the error."""
    if not task.cancelled():
        task.exception()


def _belongs(field: str, ops: set[int]) -> bool:
    """Return whether a recorded result is that of one of the requests."""
    op = field.partition(".")[0]
    return op.isdigit() and int(op) & ~1 in ops
