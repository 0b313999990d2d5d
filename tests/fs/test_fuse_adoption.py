"""A mount goes on with another process: killed, stopped, asked again, never an error."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import time

import pytest
from support.fuse_served import Program, Served

from jfsd.fuse import abi

MIB = 1 << 20

READER = """if 1:
    import mmap, os, sys, time
    path, seconds, number = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 65536)
    end = time.monotonic() + seconds
    count, longest, at = 0, 0.0, number * 65536
    while time.monotonic() < end:
        began = time.monotonic()
        got = os.preadv(fd, [buffer], at)
        longest = max(longest, time.monotonic() - began)
        want = b"".join(b"%07d\\n" % i for i in range(at // 8, (at + 65536) // 8))
        if got != 65536 or buffer[:] != want:
            sys.exit("wrong bytes at %d" % at)
        count, at = count + 1, (at + 65536) % (1 << 20)
    print(count, longest)
"""


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def served(bed, request):
    state = bed.root / f"state{bed.directory('s').name}"
    with Served(bed, uvloop=request.param, state=str(state)) as served:
        yield served


def pattern():
    return b"".join(b"%07d\n" % i for i in range(MIB // 8))


@pytest.mark.promise(1)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "stop"])
def test_readers_see_no_error_when_servers_go_and_come(served, end):
    (served.path / "data").write_bytes(pattern())
    argv = [sys.executable, "-c", READER, served.path / "data", "4"]
    readers = [
        subprocess.Popen([*argv, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for n in range(6)
    ]
    for _ in range(5):
        time.sleep(0.4)
        served.signal(end)
        served.gone()
        assert served.start()["resent"]
    for reader in readers:
        out, error = reader.communicate(timeout=90)
        assert (reader.returncode, error) == (0, b"")
        count, longest = out.split()
        assert int(count) > 20
        assert float(longest) < 15


@pytest.mark.promise(2)
def test_a_request_in_flight_is_carried_out_once_and_answered(served):
    for i in range(8):
        (served.path / f"p{i}").mkdir()
    served.kill()
    served.start(delay_s=60)
    parents = [served.path / f"p{i}" for i in range(8)]  # the kernel locks a parent
    makers = [subprocess.Popen(["mkdir", parent / "d"]) for parent in parents]
    time.sleep(0.4)
    assert all(maker.poll() is None for maker in makers)  # done, and not answered
    served.kill()
    assert served.start()["resent"]
    for maker in makers:
        assert maker.wait(30) == 0
    assert [os.listdir(parent) for parent in parents] == [["d"]] * 8
    repeats = [c["op"] for c in served.calls("repeat")]
    assert len(repeats) == 8
    assert all(op < 1 << 63 for op in repeats)


@pytest.mark.promise(1)
def test_requests_that_come_while_nobody_serves_wait(served):
    served.kill()
    maker = subprocess.Popen(["mkdir", served.path / "later"])
    time.sleep(0.2)
    assert maker.poll() is None
    served.start()
    assert maker.wait(30) == 0


@pytest.mark.promise(4)
def test_handles_and_mappings_go_on(served):
    with Program() as program:
        path = str(served.path / "f")
        program.do(f"fd = os.open({path!r}, os.O_CREAT | os.O_RDWR | os.O_APPEND)")
        assert program.do("os.write(fd, b'before')") == 6
        program.do("mapped = mmap.mmap(fd, 6)")
        served.kill()
        served.start()
        assert program.do("os.write(fd, b' after')") == 6
        assert program.do("os.pread(fd, 100, 0)") == b"before after"
        program.do("mapped[:6] = b'BEFORE'")
        program.do("mapped.flush()")
        assert program.do("os.pread(fd, 100, 0)") == b"BEFORE after"


@pytest.mark.promise(5)
@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_a_waiter_stays_one_and_can_be_interrupted(served, when):
    """A signal counts whether the old server, nobody, or the new one could hear of it."""
    path = str(served.path / "f")
    with Program() as holder, Program() as waiter, Program() as interrupted:
        programs = (holder, waiter, interrupted)
        for program in programs:
            program.do(f"fd = os.open({path!r}, os.O_CREAT | os.O_RDWR)")
        assert holder.do("fcntl.flock(fd, fcntl.LOCK_EX)") is None
        waiter.ask("fcntl.flock(fd, fcntl.LOCK_EX)")
        interrupted.ask("fcntl.flock(fd, fcntl.LOCK_EX)")
        time.sleep(0.2)
        if when == "before":
            served.signal(signal.SIGSTOP)
            interrupted.signal()
            time.sleep(0.1)
        served.kill()
        if when == "between":
            interrupted.signal()
            time.sleep(0.1)
        served.start()
        if when == "after":
            time.sleep(0.1)
            interrupted.signal()
        assert interrupted.answer() == "interrupted"
        assert holder.do("os.close(fd)") is None
        assert waiter.answer() is None


def test_parked_requests_wait_and_go_on(served):
    served.signal(signal.SIGUSR1)
    time.sleep(0.1)
    maker = subprocess.Popen(["mkdir", served.path / "d"])
    time.sleep(0.3)
    assert maker.poll() is None
    served.signal(signal.SIGUSR2)
    assert maker.wait(30) == 0


@pytest.mark.promise(11)
def test_what_was_agreed_upon_holds_whatever_the_next_version_would_like(served):
    """A mount of an earlier version, which asked the kernel for less, or for more."""
    served.kill()
    assert served.start(acls=True, init_out=served.init_out)["init_out"] == served.init_out
    served.kill()
    less = changed(served.init_out, abi.INIT_READDIRPLUS_AUTO | abi.INIT_CACHE_SYMLINKS)
    assert served.start(init_out=less)["init_out"] == less
    assert os.listdir(served.path) == []


def changed(init_out, flags):
    """Return an answer to INIT (in hexadecimal) with some of its flags turned over."""
    answer = bytearray.fromhex(init_out)
    at = 16 + 12  # behind the header, major, minor and max_readahead
    (now,) = struct.unpack_from("=I", answer, at)
    struct.pack_into("=I", answer, at, now ^ flags)
    return answer.hex()


def test_an_agreement_that_cannot_be_kept_is_refused(served):
    """Such as one of a later version, with a flag that nobody here has heard of."""
    served.kill()
    with pytest.raises(AssertionError, match="InitDriftError"):
        served.start(init_out=changed(served.init_out, abi.INIT_HANDLE_KILLPRIV))
    served.gone()
    assert served.start(init_out=served.init_out)["init_out"] == served.init_out
    assert os.listdir(served.path) == []


def test_the_mount_ends_with_its_last_descriptor(served):
    served.kill()
    os.close(served.mounted.fd)
    with pytest.raises(OSError, match="Transport endpoint") as caught:
        os.listdir(served.path)
    assert caught.value.errno == errno.ENOTCONN
