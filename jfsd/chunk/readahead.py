"""Tells streams from random reads, and how far to read ahead of a stream."""

from __future__ import annotations

from typing import NamedTuple

_MAX_STREAMS = 3


class Advice(NamedTuple):
    """What a read tells about the next ones; [start, stop) is what to fetch now."""

    sequential: bool
    start: int
    stop: int


class _Stream:
    __slots__ = ("ahead", "next", "since", "window")

    def __init__(self, start: int, window: int) -> None:
        self.next = start
        self.ahead = start
        self.window = window
        self.since = 0


class Streams:
    """The streams of one file handle, the one used last first.

    A read at the start of the file begins a stream at once, any other read when a second
    one follows on it. The window doubles each time as much was read as it is wide. Requests
    of a stream may overtake each other by their own size, or by the first window.
    """

    __slots__ = ("_first", "_max", "_step", "_streams")

    def __init__(self, first_bytes: int, max_bytes: int) -> None:
        self._step = first_bytes
        self._first = min(first_bytes, max_bytes)
        self._max = max_bytes
        self._streams: list[_Stream] = []

    @property
    def window(self) -> int:
        """Bytes that all streams together may have fetched ahead."""
        return sum(stream.window for stream in self._streams)

    def limit(self, max_bytes: int) -> None:
        """Let no window be wider than `max_bytes`."""
        self._max = max_bytes
        self._first = min(self._step, max_bytes)
        for stream in self._streams:
            stream.window = min(stream.window, max_bytes)

    def observe(self, off: int, size: int, room: int) -> Advice:
        """Note a read; windows grow by at most `room` bytes."""
        stream = self._match(off, max(size, self._first))
        end = off + size
        if stream is None:
            self._streams.insert(0, _Stream(end, self._first if off == 0 else 0))
            del self._streams[_MAX_STREAMS:]
            stream = self._streams[0]
            if off:
                return Advice(False, 0, 0)
        else:
            stream.since += size
            if stream.since >= stream.window:
                wider = min(self._max, max(self._first, stream.window * 2))
                if wider - stream.window <= room:
                    stream.window = wider
                stream.since = 0
        stream.next = max(stream.next, end)
        start = max(stream.ahead, stream.next)
        stop = stream.next + stream.window
        if stop - start < self._first and stream.ahead > stream.next:
            return Advice(True, 0, 0)
        stream.ahead = max(stop, stream.ahead)
        return Advice(True, start, stop)

    def _match(self, off: int, slack: int) -> _Stream | None:
        """Return the stream that goes on at `off`; requests may overtake by `slack`."""
        for at, stream in enumerate(self._streams):
            if stream.next - slack <= off <= stream.next + slack:
                if at:
                    self._streams.insert(0, self._streams.pop(at))
                return stream
        return None
