"""The connection of one mount to its Redis: always the same object, whatever becomes of the socket.

Commands of all coroutines share one pipelined socket. When it breaks, what was not answered is
sent again on the next one, in the same order; so every command must be safe to repeat: reads are,
mutations are scripts that carry an identity (handover.md §4). Commands issued meanwhile wait, up
to a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Final

from jfsd.clock import monotonic_s
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.dial import DialError, find_master, open_wire
from jfsd.meta.url import Kind
from jfsd.meta.wire import ReplyError, Request, Wire, pack
from jfsd.metrics import META

if TYPE_CHECKING:
    from jfsd.meta.url import MetaUrl
    from jfsd.meta.wire import Argument, Reply

log = logging.getLogger(__name__)

DEFAULT_DEADLINE_S: Final = 300.0
CONNECT_TIMEOUT_S: Final = 5.0
YOUNG_S: Final = 0.5
"""A connection of this age is not left for an error that may be from the one before."""
LONGEST_PAUSE_S: Final = 1.0
"""Between two attempts to connect: programs wait for the server's return, and see this."""

_ELSEWHERE: Final = frozenset({"MOVED", "READONLY", "MASTERDOWN"})
"""Replies of a server that is not, or no longer, the one to ask."""

_LATER: Final = frozenset(
    {"LOADING", "CLUSTERDOWN", "TRYAGAIN", "ASK", "BUSY", "NOREPLICAS", "MISCONF", "EXECABORT"}
)
"""Replies of a server that will do what was asked some time later; nothing was changed."""


class MetaUnavailableError(OSError):
    """EIO: the server gave no answer until the deadline. Whether it acted is unknown."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "metadata server unavailable")


class Connection:
    """A pipelined connection that comes back by itself.

    Invariant: a request whose future is not done is in exactly one of `_wire.unanswered` and
    `_backlog`, and no two sockets execute it: the old one is killed on the server first.
    """

    def __init__(self, url: MetaUrl, *, deadline_s: float = DEFAULT_DEADLINE_S) -> None:
        self.url = url
        self.deadline_s = deadline_s
        self.reconnects = 0
        self._was_up = False
        self._wire: Wire | None = None
        self._connected_s = 0.0
        self._server_run = b""
        self._info: Reply = None
        """What the server said of itself when it was connected to."""
        self._client_id = b""
        self._target: tuple[str, int] | None = None
        self._backlog: deque[Request] = deque()
        self._connector: asyncio.Task[None] | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "up" if self._wire else "down"
        return f"<Connection {self.url.redacted()} {state}>"

    @property
    def prefix(self) -> str:
        """What precedes every key; final only after `open`, which may find a cluster."""
        return self.url.prefix

    async def open(self, *, wait: bool = False) -> None:
        """Be connected to a server that is fit to hold a volume.

        With `wait`, a server that is away is no error: the connection comes up later.

        Raises:
            RefusedError: META_UNREACHABLE; no answer, wrong password or database, not Redis,
                too old, or without scripts.
        """
        self._clock = self._loop.call_later(1, self._tick)
        if wait:
            self._reconnect()
            return
        try:
            await self._connect()
            self._was_up = True
            await self._check()
        except RefusedError:
            await self.close()
            raise
        except OSError as error:
            await self.close()
            raise _refusal(self.url, error) from error

    async def close(self) -> None:
        """Drop the socket; whoever still waits gets EIO."""
        self._closed = True
        if self._clock is not None:
            self._clock.cancel()
        if self._connector is not None:
            self._connector.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connector
        if self._wire is not None:
            self._backlog.extendleft(reversed(self._wire.unanswered))
            self._wire.close()
            self._wire = None
        for request in self._backlog:
            _fail(request)
        self._backlog.clear()

    def submit(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command; the future is its reply, or a `ReplyError`, or `MetaUnavailableError`."""
        future = self._loop.create_future()
        request = Request(pack(args), future, self._loop.time() + self.deadline_s)
        if self._wire is not None:
            self._wire.send(request)
        elif self._closed:
            _fail(request)
        else:
            self._backlog.append(request)
        return future

    async def call(self, *args: Argument) -> Reply:
        """Return the reply to a command; a server that asks for patience gets it.

        Raises:
            ReplyError: EIO or ENOSPC; the server refused the command.
            MetaUnavailableError: EIO; no answer until the deadline.
        """
        began_s = monotonic_s()
        try:
            return await self.submit(*args)
        except ReplyError as error:
            if error.code not in _ELSEWHERE and error.code not in _LATER:
                raise
            return await self._call_later(args, error)
        finally:
            what = args[1] if args[0] == "EVALSHA" else args[0]
            META[what].observe(monotonic_s() - began_s)

    async def _call_later(self, args: tuple[Argument, ...], error: ReplyError) -> Reply:
        deadline_s = self._loop.time() + self.deadline_s
        log.warning("metadata server %s: %s; trying again", self.url.redacted(), error.strerror)
        attempt = 0
        while self._loop.time() < deadline_s:
            if error.code in _ELSEWHERE:
                self._look_elsewhere(error)
            await asyncio.sleep(self._pause_s(attempt))
            attempt += 1
            try:
                return await self.submit(*args)
            except ReplyError as again:
                if again.code not in _ELSEWHERE and again.code not in _LATER:
                    raise
                error = again
        raise error

    def _look_elsewhere(self, error: ReplyError) -> None:
        """Leave a server that is not the one to ask, unless another call has just done so."""
        age_s = self._loop.time() - self._connected_s
        if self._wire is not None and age_s > YOUNG_S:
            self._target = _moved_to(error)
            self._wire.abort()

    def _pause_s(self, attempt: int) -> float:
        longest: float = self.url.min_retry_backoff_s * (1 << min(attempt, 20))
        return random.uniform(0.5, 1) * min(longest, self.url.max_retry_backoff_s)  # noqa: S311

    # ---- the socket comes and goes

    async def _connect(self) -> None:
        """Have a wire to the right server, and the old one's requests on it."""
        host = await self._find()
        try:
            wire = await open_wire(self.url, host, CONNECT_TIMEOUT_S, self._lost)
        except DialError as error:
            if self.url.kind is not Kind.STANDALONE or "cluster mode" not in str(error):
                raise
            self.url = self.url.as_cluster()
            wire = await open_wire(self.url, host, CONNECT_TIMEOUT_S, self._lost)
        try:
            if self.url.kind is Kind.CLUSTER:
                owner = await self._slot_owner(wire)
                if owner not in (None, host):
                    wire.close()
                    wire = await open_wire(self.url, owner, CONNECT_TIMEOUT_S, self._lost)
            await self._end_former(wire)
        except BaseException:
            wire.close()
            raise
        if wire.closed:
            raise ConnectionResetError(errno.ECONNRESET, "connection lost")
        self._wire = wire
        self._connected_s = self._loop.time()
        backlog, self._backlog = self._backlog, deque()
        for request in backlog:
            if not request.future.done():
                wire.send(request)

    async def _end_former(self, wire: Wire) -> None:
        """Make sure that nothing of the former socket runs any more: it is about to be repeated.

        The server may still have it in a buffer, and would find its identity forgotten later.
        Ids of clients begin anew with each run of a server.
        """
        self._info, client_id = await asyncio.gather(
            self._ask(wire, "INFO", "server"), self._ask(wire, "CLIENT", "ID")
        )
        run = _field(self._info, "run_id")
        if self._client_id and run and run == self._server_run:
            await self._ask(wire, "CLIENT", "KILL", "ID", self._client_id)
        self._client_id = b"%d" % client_id if isinstance(client_id, int) else b""
        self._server_run = run

    async def _find(self) -> tuple[str, int] | None:
        """Return the address to connect to; None for a unix socket."""
        target, self._target = self._target, None
        if target is not None:
            return target
        if self.url.kind is Kind.UNIX:
            return None
        if self.url.kind is not Kind.SENTINEL:
            return random.choice(self.url.hosts)  # noqa: S311 - spreads load, hides nothing
        return await find_master(self.url, CONNECT_TIMEOUT_S)

    async def _slot_owner(self, wire: Wire) -> tuple[str, int] | None:
        slot = await self._ask(wire, "CLUSTER", "KEYSLOT", self.prefix)
        ranges = await self._ask(wire, "CLUSTER", "SLOTS")
        for first, last, master, *_ in ranges if isinstance(ranges, list) else ():
            if first <= slot <= last and master[0]:
                return master[0].decode(), master[1]
        return None

    async def _ask(self, wire: Wire, *args: Argument) -> Reply:
        """Return a reply of a wire that is not in use yet; an error reply is returned too."""
        future = self._loop.create_future()
        wire.send(Request(pack(args), future, 0))
        try:
            return await asyncio.wait_for(future, CONNECT_TIMEOUT_S)
        except ReplyError as error:
            return error

    def _lost(self) -> None:
        """Keep what a broken socket has not answered, and connect anew."""
        wire = self._wire
        if wire is None or not wire.closed or self._closed:
            return
        self._wire = None
        self._backlog.extendleft(reversed(wire.unanswered))
        wire.unanswered.clear()
        self._reconnect()

    def _reconnect(self) -> None:
        if self._connector is None or self._connector.done():
            self._connector = self._loop.create_task(self._keep_connecting(), name="meta-connect")

    async def _keep_connecting(self) -> None:
        began_s, told_s, attempt = self._loop.time(), -60.0, 0
        while self._wire is None:
            try:
                await self._connect()
            except OSError as error:
                now_s = self._loop.time()
                if now_s - told_s >= 60:
                    told_s = now_s
                    log.warning(
                        "metadata server %s is away (%s); trying again",
                        self.url.redacted(),
                        error,
                    )
                await asyncio.sleep(min(self._pause_s(attempt), LONGEST_PAUSE_S))
                attempt += 1
        if not self._was_up:
            self._was_up = True
            if attempt == 0:
                return  # the first connection of a server that was there
        self.reconnects += 1
        log.info(
            "metadata server %s is back after %.1f s, %d requests repeated",
            self.url.redacted(),
            self._loop.time() - began_s,
            len(self._wire.unanswered),
        )

    def _tick(self) -> None:
        """Once a second: give up a socket that hangs, and requests that waited too long."""
        self._clock = self._loop.call_later(1, self._tick)
        now_s = self._loop.time()
        wire = self._wire
        if wire is not None:
            if wire.unanswered and now_s - wire.received_s > self.url.read_timeout_s:
                log.warning("metadata server %s hangs; connecting anew", self.url.redacted())
                wire.abort()
            return
        while self._backlog and self._backlog[0].deadline_s < now_s:
            _fail(self._backlog.popleft())

    # ---- is this server fit

    async def _check(self) -> None:
        """Find out what the server is, once.

        Raises:
            RefusedError: META_UNREACHABLE; not Redis, too old, or scripts are disabled.
        """
        info = self._info
        version = _version(info) if isinstance(info, bytes) else None
        if isinstance(info, ReplyError) and info.code in ("NOAUTH", "NOPERM"):
            raise _refusal(self.url, info)
        if version is not None and version < (4,):
            self._refuse("Redis 4.0 or newer is needed", "upgrade the server")
        if isinstance(info, bytes) and version is None:
            self._refuse("this is no Redis server", "check host and port")
        await self._find_cluster()
        one = await self._reply("EVAL", "return 1", "0")
        if isinstance(one, ReplyError) and one.code not in _LATER:
            self._refuse(
                f"the server runs no Lua scripts ({one.strerror})",
                "allow EVAL, EVALSHA and SCRIPT",
            )
        await self._forbid_eviction()

    async def _reply(self, *args: Argument) -> Reply:
        try:
            return await self.submit(*args)
        except ReplyError as error:
            return error

    async def _find_cluster(self) -> None:
        if self.url.kind is not Kind.STANDALONE:
            return
        state = await self._reply("CLUSTER", "INFO")
        if isinstance(state, bytes) and b"cluster_state:" in state:
            self.url = self.url.as_cluster()
            if self._wire is not None:
                self._wire.close()
                self._wire = None
            await self._connect()

    async def _forbid_eviction(self) -> None:
        policy = await self._eviction_policy()
        if policy in (b"", b"noeviction"):
            return
        done = await self._reply("CONFIG", "SET", "maxmemory-policy", "noeviction")
        if isinstance(done, ReplyError):
            log.warning(
                "metadata server %s may evict keys (maxmemory-policy %s), which destroys the"
                " volume; set it to noeviction",
                self.url.redacted(),
                policy.decode(),
            )
        else:
            log.info(
                "metadata server %s: maxmemory-policy set from %s to noeviction",
                self.url.redacted(),
                policy.decode(),
            )

    async def _eviction_policy(self) -> bytes:
        """Return the policy, also of hosted servers that forbid CONFIG; b"" if none says it."""
        reply = await self._reply("CONFIG", "GET", "maxmemory-policy")
        if isinstance(reply, list) and len(reply) == 2:
            return bytes(reply[1])
        return _field(await self._reply("INFO", "memory"), "maxmemory_policy")

    def _refuse(self, rule: str, mend: str) -> None:
        raise RefusedError(ExitCode.META_UNREACHABLE, self.url.redacted(), rule, mend)


def _fail(request: Request) -> None:
    if not request.future.done():
        request.future.set_exception(MetaUnavailableError())


def _moved_to(error: ReplyError) -> tuple[str, int] | None:
    """Return the address in `MOVED 3999 host:port`; None for other replies."""
    words = (error.strerror or "").split()
    if error.code not in ("MOVED", "ASK") or len(words) < 3:
        return None
    host, _, port = words[2].rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def _field(info: Reply, wanted: str) -> bytes:
    """Return the value of a line of INFO; empty if there is none."""
    for line in info.splitlines() if isinstance(info, bytes) else ():
        name, _, value = line.partition(b":")
        if name == wanted.encode():
            return bytes(value)
    return b""


def _version(info: bytes) -> tuple[int, ...] | None:
    value = _field(info, "redis_version").decode("ascii", "replace")
    return tuple(int(part) for part in value.split(".") if part.isdigit()) or None


def _refusal(url: MetaUrl, error: OSError) -> RefusedError:
    """Return the one line that says why the server cannot be used."""
    text = error.strerror or str(error)
    rule, mend = f"the metadata server cannot be reached ({text})", "start it, or mend the address"
    if any(
        word in text
        for word in ("WRONGPASS", "AUTH", "NOPERM", "username-password", "Authentication")
    ):
        rule, mend = f"the metadata server refuses us ({text})", "mend user and password"
    elif "DB index" in text or "SELECT is not allowed" in text:
        rule, mend = f"the server has no database {url.db} ({text})", "choose another number"
    elif error.errno == errno.EPROTO:
        rule, mend = "this is no Redis server", "check host and port"
    return RefusedError(ExitCode.META_UNREACHABLE, url.redacted(), rule, mend)
