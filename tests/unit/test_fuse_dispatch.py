"""The native dispatcher, with a socket in place of the kernel and handlers of our own."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
from collections import defaultdict
from types import SimpleNamespace

import pytest
import uvloop

from jfsd.fuse import _native, abi, native
from jfsd.meta.codec import encode_attr
from jfsd.metrics import DURATION_BOUNDS_S, Histogram
from jfsd.types import Attr, Caller, NodeType
from jfsd.vfs.ports import Opened

_HEADER = struct.Struct("=IIQQIIII")
_ANSWER = struct.Struct("=IiQ")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
SO_SNDBUFFORCE = 32
RESENT = 1 << 63
UNHEARD = 99
FILE = Attr(NodeType.FILE, 0o4640, 7, 8, -1, 1_500_000_000, 2_000_000_003, nlink=3, length=1025)


class Bench:
    """Sends requests as the kernel does, and has the answers."""

    def __init__(self, handlers, poisoned=()):
        self.kernel, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.ours.setblocking(False)
        self.relieved = 0
        self.bugs, self.told, self.refused = [], [], []
        self.errors = defaultdict(int)
        self.histograms = {opcode: Histogram() for opcode in handlers}
        self.access = SimpleNamespace(listeners=())
        native.prepare(fd=self.ours.fileno(), init_in=bytes(104), adopted=True)
        self._take_init()
        native.dispatch(
            methods={
                opcode: (handler, form, changes, self.histograms[opcode])
                for opcode, (handler, form, changes) in handlers.items()
            },
            bounds=DURATION_BOUNDS_S,
            caller=Caller,
            loop=asyncio.get_running_loop(),
            enter=asyncio._enter_task,
            leave=asyncio._leave_task,
            cancelled=asyncio.CancelledError,
            relieved=self._relieved,
            bug=lambda *bug: self.bugs.append(bug),
            access=self.access,
            tell=lambda *told: self.told.append(told),
            errors=self.errors,
            poisoned=frozenset(poisoned),
            refuse=lambda *refused: self.refused.append(refused),
            unheard=UNHEARD,
        )

    def _take_init(self):
        """Read INIT in pyfuse3's place."""
        assert native.take() is True
        assert native.take() is True
        buffer = ctypes.create_string_buffer(64)
        assert ctypes.PyDLL(_native.__file__).fuse_session_receive_buf(None, buffer) == 104

    def _relieved(self):
        self.relieved += 1

    async def send(self, opcode, body=b"", unique=2, node=1):
        """Send a request and return what became of it, taken as by the loop: outside of a task."""
        header = _HEADER.pack(40 + len(body), opcode, unique, node, 5, 6, 7, 0)
        self.kernel.send(header + body)
        loop = asyncio.get_running_loop()
        taken = loop.create_future()
        loop.call_soon(lambda: taken.set_result(native.take()))
        return await taken

    def answer(self):
        """Return (number, errno, rest) of the next answer, None if there is none."""
        try:
            data = self.kernel.recv(1 << 20)
        except BlockingIOError:
            return None
        length, error, unique = _ANSWER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[16:]

    def close(self):
        native.cancel_waiting()
        self.kernel.close()
        self.ours.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def on(request):
    """Run a test with a bench for its handlers; the first answer passes for that to INIT."""

    def run(test, handlers, **options):
        async def prepared():
            first = next(each for each in (abi.UNLINK, abi.RMDIR) if each not in handlers)
            bench = Bench({first: (nothing, native.NOTHING, False), **handlers}, **options)
            try:
                await bench.send(first, b"x\0")
                await test(bench)
            finally:
                bench.close()
                await settle()
                assert native.waiting() == 0

        loop = request.param()
        try:
            loop.run_until_complete(asyncio.wait_for(prepared(), 20))
        finally:
            loop.close()

    return run


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def nothing(_caller, *_):
    return None


def flush(handler):
    """Return the table of one handler that answers nothing but an errno."""
    return {abi.FLUSH: (handler, native.NOTHING, True)}


FLUSH = struct.pack("=QIIQ", 3, 0, 0, 4)


# -- what handlers are told, and what becomes of what they say ----------------------------------

REQUESTS = {
    "lookup": (abi.LOOKUP, b"name\0", (1, b"name")),
    "getattr": (abi.GETATTR, bytes(16), (1,)),
    "mkdir": (abi.MKDIR, struct.pack("=II", 0o755, 0o22) + b"d\0", (1, b"d", 0o755)),
    "unlink": (abi.UNLINK, b"\xff\0", (1, b"\xff")),
    "rmdir": (abi.RMDIR, b"d\0", (1, b"d")),
    "rename": (abi.RENAME, struct.pack("=Q", 9) + b"a\0b\0", (1, b"a", 9, b"b", 0)),
    "rename2": (abi.RENAME2, struct.pack("=QII", 9, 2, 0) + b"a\0b\0", (1, b"a", 9, b"b", 2)),
    "open": (abi.OPEN, struct.pack("=II", 0x8002, 0), (1, 0x8002)),
    "create": (
        abi.CREATE,
        struct.pack("=IIII", 0xC2, 0o100644, 0o27, 0) + b"f\0",
        (1, b"f", 0o100644, 0xC2),
    ),
    "tmpfile": (
        abi.TMPFILE,
        struct.pack("=IIII", 0xC2, 0o100644, 0o27, 0) + b"/\0",
        (1, b"/", 0o100644, 0xC2),
    ),
    "read": (abi.READ, struct.pack("=QQIIQII", 3, 1 << 40, 4096, 0, 0, 0, 0), (3, 1 << 40, 4096)),
    "write": (
        abi.WRITE,
        struct.pack("=QQIIQII", 3, 1 << 40, 4, 0, 0, 0, 0) + b"data",
        (3, 1 << 40, b"data", False),
    ),
    "write that drops setuid": (
        abi.WRITE,
        struct.pack("=QQIIQII", 3, 0, 4, 4, 0, 0, 0) + b"data",
        (3, 0, b"data", True),
    ),
    "getxattr": (abi.GETXATTR, struct.pack("=II", 64, 0) + b"user.a\0", (1, b"user.a", 64)),
    "flush": (abi.FLUSH, FLUSH, (3, 4)),
    "release": (abi.RELEASE, struct.pack("=QIIQ", 3, 0, 1, 4), (3, None)),
    "release of a lock": (abi.RELEASE, struct.pack("=QIIQ", 3, 0, 2, 4), (3, 4)),
}
UMASKS = {abi.MKDIR: 0o22, abi.CREATE: 0o27, abi.TMPFILE: 0o27}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("changes", [False, True])
def test_what_a_handler_is_told(on, name, changes):
    opcode, body, arguments = REQUESTS[name]
    calls = []

    async def test(bench):
        assert await bench.send(opcode, body, RESENT | 8) is False
        op = 8 if changes else 0
        assert calls == [(Caller(5, 6, 7, UMASKS.get(opcode, 0), op), *arguments)]
        assert type(calls[0][0]) is Caller
        assert bench.answer() == (RESENT | 8, 0, b"")
        assert native.take_answered() == [8] * changes
        assert native.take() is None

    on(test, {opcode: (lambda *call: calls.append(call), native.NOTHING, changes)})


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "getattr"])
def test_a_request_that_is_cut_short_is_a_bug(on, name):
    opcode, body, _ = REQUESTS[name]

    async def test(bench):
        await bench.send(opcode, body[:-1])
        assert bench.answer() == (2, errno.EIO, b"")
        assert bench.bugs[0][0] == opcode

    on(test, {opcode: (nothing, native.NOTHING, False)})


def attributes(data):
    return _ATTR.unpack_from(data)


FILE_SHOWN = (
    *(12, 1025, 3),
    *((1 << 64) - 1, 1, 2, 999_999_999, 500_000_000, 3),
    *(0o104640, 3, 7, 8, 0, 65536, 0),
)
SAID = {
    "entry": (native.ENTRY, (12, FILE, 1.5, 0.25)),
    "attr": (native.ATTR, (12, FILE, 1.5)),
    "record": (native.ATTR, (12, encode_attr(FILE), 1.5)),
    "opened": (native.OPENED, Opened(77, keep_cache=True)),
    "created": (native.CREATED, (Opened(77, direct_io=True), (12, FILE, 1.5, 0.25))),
    "count": (native.COUNT, 4096),
    "data": (native.DATA, memoryview(b"bytes")),
    "no data": (native.DATA, b""),
}
ENTRY_HEAD = struct.pack("=QQQQII", 12, 1, 0, 1, 250_000_000, 500_000_000)
ANSWERS = {
    "entry": ENTRY_HEAD + _ATTR.pack(*FILE_SHOWN),
    "attr": struct.pack("=QII", 1, 500_000_000, 0) + _ATTR.pack(*FILE_SHOWN),
    "record": struct.pack("=QII", 1, 500_000_000, 0) + _ATTR.pack(*FILE_SHOWN),
    "opened": struct.pack("=QII", 77, 2, 0),
    "created": ENTRY_HEAD + _ATTR.pack(*FILE_SHOWN) + struct.pack("=QII", 77, 1, 0),
    "count": struct.pack("=II", 4096, 0),
    "data": b"bytes",
    "no data": b"",
}


@pytest.mark.parametrize("what", SAID)
def test_what_the_kernel_is_answered(on, what):
    form, said = SAID[what]

    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH)
        assert bench.answer() == (2, 0, ANSWERS[what])

    on(test, {abi.FLUSH: (lambda *_: said, form, False)})


@pytest.mark.parametrize("what", [what for what in SAID if what != "count"])
def test_an_answer_of_the_wrong_form_is_a_bug(on, what):
    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH)
        assert bench.answer() == (2, errno.EIO, b"")
        assert len(bench.bugs) == 1

    on(test, {abi.FLUSH: (lambda *_: 5, SAID[what][0], False)})


def test_what_nodes_of_other_types_look_like(on):
    attrs = [
        Attr(NodeType.DIRECTORY, 0o755, nlink=2, length=4096),
        Attr(NodeType.CHARDEV, 0o600, rdev=259),
        Attr(NodeType.FIFO, 0o600, length=5),
    ]

    async def test(bench):
        shown = []
        for _ in range(3):
            await bench.send(abi.FLUSH, FLUSH)
            shown.append(attributes(bench.answer()[2][16:]))
        assert [(each[1], each[9], each[13]) for each in shown] == [
            (4096, 0o40755, 0),
            (0, 0o20600, 259),
            (0, 0o10600, 0),
        ]

    on(test, {abi.FLUSH: (lambda *_: (1, attrs.pop(0), 0.0), native.ATTR, False)})


def test_a_long_name_is_refused(on):
    async def test(bench):
        await bench.send(abi.UNLINK, b"n" * 255 + b"\0")
        assert bench.answer() == (2, 0, b"")
        await bench.send(abi.UNLINK, b"n" * 256 + b"\0")
        assert bench.answer() == (2, errno.ENAMETOOLONG, b"")

    on(test, {})


def test_long_data_is_lent_and_short_data_copied(on):
    held = []

    async def test(bench):
        bench.kernel.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        for size in (256 << 10, 300 << 10):
            for fill in b"ab":
                data = bytes([fill]) * size
                await bench.send(abi.WRITE, struct.pack("=QQIIQII", 3, 0, size, 0, 0, 0, 0) + data)
        assert [type(each) for each in held] == [bytes, bytes, memoryview, memoryview]
        assert [bytes(each[:2]) for each in held] == [b"aa", b"bb", b"aa", b"bb"]

    on(test, {abi.WRITE: (lambda *call: held.append(call[3]), native.NOTHING, False)})


# -- failing and waiting ------------------------------------------------------------------------


def test_errors_are_answered_and_bugs_are_told(on):
    failures = [OSError(errno.ENOTEMPTY, "full"), OSError("no number"), ValueError("bug")]

    async def fail(*_):
        raise failures[0]

    async def test(bench):
        for expected in (errno.ENOTEMPTY, errno.EIO, errno.EIO):
            await bench.send(abi.FLUSH, FLUSH)
            assert bench.answer() == (2, expected, b"")
            failed = failures.pop(0)
        [(opcode, arguments, error)] = bench.bugs
        assert (opcode, arguments[1:], error) == (abi.FLUSH, (3, 4), failed)
        assert error.__traceback__ is not None
        assert dict(bench.errors) == {errno.ENOTEMPTY: 1, errno.EIO: 2}
        assert bench.histograms[abi.FLUSH].count == 3

    on(test, flush(fail))


def test_one_that_waits_is_answered_later(on):
    gates = []

    async def wait(*_):
        gates.append(asyncio.get_running_loop().create_future())
        return await gates[-1]

    async def test(bench):
        for unique in (2, 4, 6):
            await bench.send(abi.FLUSH, FLUSH, unique)
        assert (bench.answer(), native.waiting()) == (None, 3)
        gates[1].set_result(None)
        gates[0].set_exception(OSError(errno.EDQUOT, "full"))
        await settle()
        assert {bench.answer(), bench.answer()} == {(4, 0, b""), (2, errno.EDQUOT, b"")}
        assert (native.waiting(), bench.relieved) == (1, 2)
        gates[2].set_result(None)
        await settle()
        assert bench.answer() == (6, 0, b"")

    on(test, flush(wait))


def test_to_asyncio_a_request_is_a_task(on):
    steps = []

    async def work(*_):
        request = asyncio.current_task()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        await asyncio.sleep(0)
        assert asyncio.current_task() is request
        assert (request.get_name(), request.done()) == ("<Request 2 of opcode 25>", False)
        assert request.cancelling() == 0
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(60), 0.01)
        with pytest.raises(ExceptionGroup):
            await group()
        assert request.cancelling() == 0
        steps.extend(await asyncio.gather(one(), one()))

    async def one():
        await asyncio.sleep(0)
        return asyncio.current_task().get_name()[:4]

    async def group():
        async with asyncio.TaskGroup() as members:
            members.create_task(fails())
            await asyncio.sleep(60)

    async def fails():
        raise ValueError

    async def test(bench):
        mine = asyncio.current_task()
        await bench.send(abi.FLUSH, FLUSH)
        while native.waiting():
            await asyncio.sleep(0.001)
        assert (bench.bugs, steps) == ([], ["Task", "Task"])
        assert bench.answer() == (2, 0, b"")
        assert asyncio.current_task() is mine

    on(test, flush(work))


def test_what_is_no_future_is_thrown_back(on):
    class Odd:
        def __await__(self):
            yield 5

    async def wait(*_):
        await Odd()

    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH)
        assert bench.answer() == (2, errno.EIO, b"")
        assert len(bench.bugs) == 1

    on(test, flush(wait))


@pytest.mark.parametrize("pause_s", [0, 60])
def test_a_cancelled_request_is_not_answered(on, pause_s):
    ended = []

    async def wait(*_):
        try:
            while True:
                await asyncio.sleep(pause_s)
        finally:
            ended.append(True)

    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH)
        native.cancel_waiting()
        await settle()
        assert (native.waiting(), ended, bench.answer()) == (0, [True], None)
        assert native.unanswered() == {2}
        assert bench.bugs == []

    on(test, flush(wait))


# -- around it ------------------------------------------------------------------------------------


def test_requests_that_nobody_has_a_handler_for_are_left(on):
    async def test(bench):
        assert await bench.send(abi.FORGET, bytes(8)) is False
        assert await bench.send(abi.BATCH_FORGET, bytes(8)) is False
        assert await bench.send(17) is True
        assert await bench.send(abi.FORGET, bytes(8)) is True  # still the one before
        assert bench.answer() is None

    on(test, {})


def test_what_nobody_waits_for_is_taken_together_with_what_follows(on):
    async def test(bench):
        body = struct.pack("=QIIQ", 3, 0, 0, 4)
        for unique in (4, 6, 8):
            bench.kernel.send(_HEADER.pack(64, abi.RELEASE, unique, 1, 0, 0, 0, 0) + body)
        bench.kernel.send(_HEADER.pack(64, abi.FLUSH, 10, 1, 0, 0, 0, 0) + body)
        assert await bench.send(abi.FLUSH, FLUSH, 12) is False
        assert [bench.answer()[0] for _ in range(4)] == [4, 6, 8, 10]
        assert bench.answer() is None
        assert native.take() is False
        assert bench.answer()[0] == 12

    on(test, {abi.RELEASE: (nothing, native.NOTHING, True), **flush(nothing)})


def test_an_interrupt_of_ours_is_not_for_pyfuse3(on):
    async def wait(*_):
        await asyncio.sleep(60)

    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH, 12)
        assert await bench.send(abi.INTERRUPT, struct.pack("=Q", RESENT | 12), 14) is False
        assert await bench.send(abi.INTERRUPT, struct.pack("=Q", 16), 18) is True

    on(test, flush(wait))


def test_poison_is_refused(on):
    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH, RESENT | 12)
        assert bench.answer() == (RESENT | 12, errno.EIO, b"")
        assert [(op, args[1:]) for op, args in bench.refused] == [(12, (3, 4))]
        await bench.send(abi.FLUSH, FLUSH, 14)
        assert bench.answer() == (14, 0, b"")

    on(test, flush(nothing), poisoned=[12])


def test_listeners_are_told_and_the_log_itself_is_not(on):
    async def test(bench):
        await bench.send(abi.FLUSH, FLUSH)
        assert bench.told == []
        bench.access.listeners = (print,)
        await bench.send(abi.FLUSH, FLUSH, RESENT | 12)
        await bench.send(abi.FLUSH, FLUSH, 14, UNHEARD)
        [(header, arguments, result, failure, took_s)] = bench.told
        assert header == (12, abi.FLUSH, 1, 5, 6, 7)
        assert (arguments[1:], result, failure) == ((3, 4), 9, 0)
        assert 0 <= took_s < 20
        histogram = bench.histograms[abi.FLUSH]
        assert histogram.count == 2
        assert took_s <= histogram.sum < 40

    on(test, {abi.FLUSH: (lambda *_: 9, native.NOTHING, True)})


def test_a_running_handler_is_noted_step_by_step(on):
    memory, seen = bytearray(64), []

    def running():
        return struct.unpack_from("=Qd", memory, 16)

    async def work(*_):
        seen.append(running()[0])
        await asyncio.sleep(0)
        seen.append(running()[0])

    async def test(bench):
        native.note_running(memory, 16)
        await bench.send(abi.FLUSH, FLUSH, RESENT | 12)
        assert running()[0] == 0
        await settle()
        assert (seen, running()[0]) == ([12, 12], 0)
        native.running(5)
        op, since_s = running()
        assert (op, 0 < since_s < 1e12) == (5, True)

    on(test, flush(work))
    native.note_running(bytearray(16), 0)


def test_a_place_for_the_running_request_must_exist():
    for at in (-8, 4, 8):
        with pytest.raises(ValueError, match="no such word"):
            native.note_running(bytearray(16), at)
    native.note_running(bytearray(16), 0)


def test_the_end_of_the_kernel_is_left_to_pyfuse3(on):
    async def test(bench):
        bench.kernel.close()
        assert native.take() is True
        assert os.fstat(bench.ours.fileno())

    on(test, {})
