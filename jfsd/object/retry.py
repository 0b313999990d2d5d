"""Waiting for a store that is away: attempts with a time limit, and back-off between them.

A call is tried until it has been repeated `retries` times *and* `deadline_s` seconds have
passed; so a short outage never ends in an error however fast its refusals come, and a slow
store gets its number of chances. What repeating cannot mend is raised at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeVar, cast

from jfsd.clock import monotonic_s
from jfsd.metrics import OBJECT_BYTES, OBJECT_ERRORS, OBJECTS
from jfsd.object.base import ObjectInfo, ObjectMissingError, ObjectStore, StoreError
from jfsd.types import ReadableBuffer

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 5.0
_LOG_EVERY_S = 30.0
_CHECK_POLICY_RETRIES = 2
_CHECK_TIMEOUT_S = 15.0


@dataclass(slots=True)
class RetryPolicy:
    """How long a call is tried. Fields may change while calls run; they see it at once.

    `retries` None means for ever. `deadline_s` counts from the call's first attempt.
    """

    retries: int | None = 10
    deadline_s: float = 120.0
    get_timeout_s: float = 60.0
    put_timeout_s: float = 60.0

    def gives_up(self, repeated: int, waited_s: float) -> bool:
        """Say whether a call that failed again has been tried enough."""
        return self.retries is not None and repeated >= self.retries and waited_s >= self.deadline_s


def delay_s(repeated: int) -> float:
    """Return how long to wait before the next attempt: exponential, with full jitter."""
    longest = min(_LONGEST_DELAY_S, _FIRST_DELAY_S * 2 ** min(repeated, 16))
    return random.uniform(0, longest)  # noqa: S311 - spreads load, guards no secret


class Outage:
    """Tells of failures without flooding: their first, one each 30 s, and their end."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._waiting = 0
        self._since_s: float | None = None
        self._logged_s = -_LOG_EVERY_S
        self._told = False

    def began(self) -> None:
        """Count a call that has failed and will be repeated."""
        self._waiting += 1
        if self._since_s is None:
            self._since_s = monotonic_s()

    def failed(self, error: StoreError) -> None:
        """Log the failure unless one was logged lately."""
        now_s = monotonic_s()
        if now_s - self._logged_s < _LOG_EVERY_S:
            log.debug("%s; trying again", error)
            return
        self._logged_s = now_s
        self._told = True
        log.warning("%s; trying again", error)

    def ended(self, *, success: bool) -> None:
        """Count a call that waits no more; the last success ends the outage."""
        self._waiting -= 1
        if self._waiting > 0 or self._since_s is None:
            return
        if success and self._told:
            log.info("%s: answers again after %.1f s", self._store, monotonic_s() - self._since_s)
            self._told = False
            self._logged_s = -_LOG_EVERY_S
        self._since_s = None


class RetryingStore:
    """A store whose calls fail only after patience, and never hang for ever."""

    def __init__(self, inner: ObjectStore, policy: RetryPolicy) -> None:
        self.inner = inner
        self.policy = policy
        self._name = str(inner)
        self._outage = Outage(self._name)

    def __repr__(self) -> str:
        return f"<RetryingStore {self.policy}: {self.inner!r}>"

    async def check(self) -> None:
        """Return if the bucket exists and may be read; gives up after a few seconds."""
        timeout_s = min(self.policy.get_timeout_s, _CHECK_TIMEOUT_S)
        quick = RetryPolicy(_CHECK_POLICY_RETRIES, 0.0, timeout_s, timeout_s)
        await self._call("CHECK", self.inner.check, quick, quick.get_timeout_s)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of the object."""
        data = await self._read(f"GET {key}", lambda: self.inner.get(key, offset, length))
        OBJECT_BYTES["GET"] += len(data)
        return data

    async def put(self, key: str, body: ReadableBuffer, *, durable: bool = True) -> None:
        """Store the object; repeating is harmless, since it is the same object."""
        await self._call(
            f"PUT {key}",
            lambda: self.inner.put(key, body, durable=durable),
            self.policy,
            self.policy.put_timeout_s,
        )
        OBJECT_BYTES["PUT"] += len(body)

    async def settle(self, keys: Collection[str] | None) -> None:
        """Return when these objects are durable."""
        timeout_s = self.policy.put_timeout_s
        await self._call("SYNC", lambda: self.inner.settle(keys), self.policy, timeout_s)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        await self._read(f"DELETE {key}", lambda: self.inner.delete(key))

    async def head(self, key: str) -> ObjectInfo:
        """Return size and time of the object."""
        return await self._read(f"HEAD {key}", lambda: self.inner.head(key))

    async def list(self, prefix: str, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield objects; after a failure it goes on behind the last one it gave."""
        source: AsyncGenerator[ObjectInfo] | None = None
        last = start_after

        async def following() -> ObjectInfo | None:
            nonlocal source
            if source is None:
                source = cast("AsyncGenerator[ObjectInfo]", self.inner.list(prefix, last))
            try:
                return await anext(source, None)
            except BaseException:
                await source.aclose()
                source = None
                raise

        try:
            while (found := await self._read(f"LIST {prefix}", following)) is not None:
                last = found.key
                yield found
        finally:
            if source is not None:
                await source.aclose()

    async def close(self) -> None:
        """Close the store."""
        await self.inner.close()

    async def _read(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        return await self._call(what, attempt, self.policy, self.policy.get_timeout_s)

    async def _call(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        policy: RetryPolicy,
        timeout_s: float,
    ) -> T:
        """Try once without further ado, which is the usual end of it."""
        started_s = monotonic_s()
        try:
            return await self._timed(what, attempt, timeout_s)
        except StoreError as error:
            if not error.retryable or policy.gives_up(0, monotonic_s() - started_s):
                raise
            failure = error
        self._outage.began()
        success = False
        try:
            result = await self._repeat(what, attempt, policy, timeout_s, started_s, failure)
            success = True
        finally:
            self._outage.ended(success=success)
        return result

    async def _repeat(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        policy: RetryPolicy,
        timeout_s: float,
        started_s: float,
        failure: StoreError,
    ) -> T:
        repeated = 0
        while True:
            self._outage.failed(failure)
            await asyncio.sleep(delay_s(repeated))
            repeated += 1
            try:
                return await self._timed(what, attempt, timeout_s)
            except StoreError as error:
                if not error.retryable or policy.gives_up(repeated, monotonic_s() - started_s):
                    raise
                failure = error

    async def _timed(self, what: str, attempt: Callable[[], Awaitable[T]], timeout_s: float) -> T:
        """Await one attempt, at most `timeout_s` seconds."""
        method, began_s = what.partition(" ")[0], monotonic_s()
        try:
            async with asyncio.timeout(timeout_s):
                return await attempt()
        except TimeoutError as error:
            OBJECT_ERRORS[method] += 1
            text = f"{self._name}: {what}: no answer in {timeout_s:g} s"
            raise StoreError(text) from error
        except ObjectMissingError:
            raise  # an answer like any other
        except StoreError:
            OBJECT_ERRORS[method] += 1
            raise
        finally:
            OBJECTS[method].observe(monotonic_s() - began_s)
