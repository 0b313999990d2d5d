"""Every kind of request, from a program through the kernel to the file system and back."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.fuse_served import Served

from jfsd.fuse import abi
from jfsd.fuse import mount as mounting

_libc = ctypes.CDLL(None, use_errno=True)
MIB = 1 << 20


@pytest.fixture(params=["asyncio", "uvloop"])
def served(bed, request):
    with Served(bed, uvloop=request.param == "uvloop") as served:
        yield served


@pytest.fixture
def path(served):
    return served.path


def fails(code, call, *args, **kwargs):
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call(*args, **kwargs)
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


def test_names(path):
    (path / "d").mkdir(mode=0o700)
    assert stat.filemode((path / "d").stat().st_mode) == "drwx------"
    (path / "d" / "f").write_bytes(b"x")
    os.link(path / "d" / "f", path / "d" / "g")
    assert (path / "d" / "g").stat().st_nlink == 2
    (path / "s").symlink_to("d/f")
    assert os.readlink(path / "s") == "d/f"
    assert (path / "s").lstat().st_size == 3
    fails(errno.ENOTEMPTY, os.rmdir, path / "d")
    os.rename(path / "d" / "f", path / "moved")
    assert (path / "moved").read_bytes() == b"x"
    os.unlink(path / "d" / "g")
    os.rmdir(path / "d")
    assert sorted(os.listdir(path)) == ["moved", "s"]
    fails(errno.ENOENT, os.stat, path / "d")


def test_a_name_that_is_not_utf8(path):
    name = os.fsencode(path) + b"/\xff\xfe\n"
    os.mkdir(name)
    assert os.listdir(os.fsencode(path)) == [b"\xff\xfe\n"]


@pytest.mark.parametrize("length", [255, 256, 1023])
def test_a_long_name(path, length):
    if length == 255:
        (path / ("n" * length)).mkdir()
        assert os.listdir(path) == ["n" * length]
        return
    for call in (os.mkdir, os.stat, os.unlink, os.rmdir):
        fails(errno.ENAMETOOLONG, call, path / ("n" * length))
    fails(errno.ENAMETOOLONG, os.open, path / ("n" * length), os.O_CREAT | os.O_WRONLY)


def test_special_files(path):
    os.mkfifo(path / "fifo", 0o640)
    assert stat.filemode((path / "fifo").stat().st_mode) == "prw-r-----"
    os.mknod(path / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    assert (path / "device").stat().st_rdev == os.makedev(1, 3)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "socket"))
        assert stat.S_ISSOCK((path / "socket").stat().st_mode)


def renameat2(old, new, flags):
    at_cwd = -100
    if _libc.renameat2(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_rename_flags_arrive(path):
    (path / "a").write_bytes(b"a")
    (path / "b").write_bytes(b"b")
    fails(errno.EEXIST, renameat2, path / "a", path / "b", 1)
    renameat2(path / "a", path / "b", 2)
    assert ((path / "a").read_bytes(), (path / "b").read_bytes()) == (b"b", b"a")


def test_attributes(path, served):
    file = path / "f"
    file.write_bytes(b"x" * 1000)
    os.chmod(file, 0o4751)
    os.chown(file, 7, 8)
    os.utime(file, ns=(1_234_567_890_123_456_789, 987_654_321))
    status = file.stat()
    assert stat.S_IMODE(status.st_mode) & 0o777 == 0o751
    assert (status.st_uid, status.st_gid) == (7, 8)
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321)
    assert (status.st_size, status.st_blocks, status.st_blksize) == (1000, 2, 65536)
    os.utime(file, ns=(-1, -1_500_000_000))
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (-1, -1_500_000_000)
    os.truncate(file, 10)
    assert file.read_bytes() == b"x" * 10
    with file.open("r+b") as handle:
        handle.truncate(3)
    calls = served.calls("setattr")
    assert [c["changes"]["size"] for c in calls if c["changes"]["size"] is not None] == [10, 3]
    assert calls[-1]["fh"] == file.stat().st_ino  # ftruncate comes with its handle
    assert len({c["op"] for c in calls}) == len(calls)
    assert all(c["op"] for c in calls)


def test_truncation_at_open_is_a_request_of_its_own(path, served):
    (path / "f").write_bytes(b"old")
    (path / "f").write_bytes(b"")
    assert [c["changes"]["size"] for c in served.calls("setattr")] == [0]
    assert not any(c["flags"] & os.O_TRUNC for c in served.calls("open"))


def test_statfs(path):
    now = os.statvfs(path)
    assert (now.f_bsize, now.f_frsize, now.f_namemax) == (4096, 4096, 255)
    assert (now.f_blocks * 4096, now.f_bavail * 4096) == (1 << 40, 1 << 39)
    assert (now.f_files, now.f_ffree) == (1000, 900)


def test_listing_of_many_entries_is_complete(path):
    names = {f"entry-{i:05}-{'x' * (i % 60)}" for i in range(1500)}
    for name in names:
        (path / name).touch()
    shown = os.listdir(path)
    assert len(shown) == 1500
    assert set(shown) == names
    with os.scandir(path) as entries:
        assert all(entry.is_file() and entry.stat().st_nlink == 1 for entry in entries)


def test_fsync_of_file_and_directory(path, served):
    with (path / "f").open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file)
        os.fdatasync(file)
    directory = os.open(path, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    assert [c["datasync"] for c in served.calls("fsync")] == [False, True]
    assert len(served.calls("fsyncdir")) == 1


# -- contents ---------------------------------------------------------------------------------


def aligned(size, fill=None):
    buffer = mmap.mmap(-1, size)
    if fill is not None:
        buffer[:] = fill
    return buffer


def pattern(size):
    return b"".join(b"%07d\n" % i for i in range(size // 8))


def test_requests_of_1_mib_arrive_whole(path, served):
    data = pattern(4 * MIB)
    fd = os.open(path / "big", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    buffer = aligned(4 * MIB, data)
    assert os.writev(fd, [buffer]) == 4 * MIB
    writes = served.calls("write")
    assert {w["size"] for w in writes} == {MIB}
    assert {w["kind"] for w in writes} == {"memoryview"}
    back = aligned(4 * MIB)
    assert os.preadv(fd, [back], 0) == 4 * MIB
    assert back[:] == data
    assert {r["size"] for r in served.calls("read")} == {MIB}
    os.close(fd)


def test_buffered_writes_and_reads(path, served):
    data = pattern(3 * MIB + 8)
    (path / "f").write_bytes(data)
    assert max(w["size"] for w in served.calls("write")) == MIB
    assert (path / "f").read_bytes() == data
    assert max(r["size"] for r in served.calls("read")) == MIB  # the device's read-ahead
    with (path / "f").open("r+b") as file:
        file.seek(12345)
        file.write(b"in the middle")
    assert (path / "f").read_bytes()[12340:12362] == data[12340:12345] + b"in the middle" + (
        data[12358:12362]
    )


def test_payload_is_not_overwritten_while_the_file_system_holds_it(bed):
    with Served(bed, write_delay_s=0.3) as served, ThreadPoolExecutor(12) as pool:
        fds = [os.open(served.path / f"f{i}", os.O_CREAT | os.O_RDWR) for i in range(12)]
        sizes = [MIB, 200_000, 5000]
        wanted = {fd: bytes([65 + index]) * sizes[index % 3] for index, fd in enumerate(fds)}
        done = [pool.submit(os.pwrite, fd, data, 0) for fd, data in wanted.items()]
        time.sleep(0.1)
        for _ in range(50):
            os.stat(served.path)  # other requests use the receive buffers meanwhile
        assert [d.result() for d in done] == [len(w) for w in wanted.values()]
        for fd, data in wanted.items():
            assert os.pread(fd, len(data) + 1, 0) == data
            os.close(fd)


def test_append_and_shared_mapping(path):
    with (
        (path / "log").open("ab", buffering=0) as one,
        (path / "log").open("ab", buffering=0) as two,
    ):
        for i in range(20):
            (one, two)[i % 2].write(b"%02d" % i)
    assert (path / "log").read_bytes() == b"".join(b"%02d" % i for i in range(20))
    with (path / "log").open("r+b") as file, mmap.mmap(file.fileno(), 40) as mapped:
        mapped[0:4] = b"MMAP"
        mapped.flush()
    assert (path / "log").read_bytes()[:6] == b"MMAP02"


def test_fallocate(path, served):
    with (path / "f").open("w+b") as file:
        file.write(b"x" * 20000)
        file.flush()
        call_fallocate(file.fileno(), 0, 0, 30000)
        assert os.fstat(file.fileno()).st_size == 30000
        call_fallocate(file.fileno(), 1, 0, 50000)  # KEEP_SIZE
        assert os.fstat(file.fileno()).st_size == 30000
        call_fallocate(file.fileno(), 3, 4096, 8192)  # PUNCH_HOLE
        file.seek(0)
        assert file.read(20000) == b"x" * 4096 + bytes(8192) + b"x" * (20000 - 12288)
        fails(errno.EOPNOTSUPP, call_fallocate, file.fileno(), 8, 0, 4096)  # COLLAPSE_RANGE
    calls = [(c["mode"], c["off"], c["length"]) for c in served.calls("fallocate")]
    assert calls == [(0, 0, 30000), (1, 0, 50000), (3, 4096, 8192)]
    assert all(c["op"] for c in served.calls("fallocate"))


def call_fallocate(fd, mode, offset, length):
    _libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    if _libc.fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def test_seek_data_and_hole(path):
    fd = os.open(path / "sparse", os.O_CREAT | os.O_RDWR)
    os.pwrite(fd, b"x" * 4096, 8192)
    os.ftruncate(fd, 40960)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 8192
    assert os.lseek(fd, 8192, os.SEEK_HOLE) == 12288
    assert os.lseek(fd, 100, os.SEEK_HOLE) == 100
    fails(errno.ENXIO, os.lseek, fd, 12288, os.SEEK_DATA)
    fails(errno.ENXIO, os.lseek, fd, 50000, os.SEEK_HOLE)
    os.close(fd)


def test_copy_file_range(path, served):
    data = pattern(300_000)
    (path / "a").write_bytes(data)
    source, target = os.open(path / "a", os.O_RDONLY), os.open(path / "b", os.O_CREAT | os.O_RDWR)
    assert os.copy_file_range(source, target, 200_000, 1000, 5) == 200_000
    assert (path / "b").read_bytes() == bytes(5) + data[1000:201_000]
    assert os.copy_file_range(source, target, MIB, len(data) - 10, 0) == 10
    assert len(served.calls("copy_file_range")) == 2
    assert {c["flags"] for c in served.calls("copy_file_range")} == {0}
    os.close(source)
    os.close(target)


def test_a_file_without_a_name(path):
    fd = os.open(path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"nameless")
    assert os.fstat(fd).st_nlink == 0
    assert os.listdir(path) == []
    assert os.pread(fd, 100, 0) == b"nameless"
    os.link(f"/proc/self/fd/{fd}", path / "named", src_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    assert (path / "named").read_bytes() == b"nameless"


class FileHandle(ctypes.Structure):
    _fields_ = (("size", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128))


def handle_of(path):
    handle, mount_id = FileHandle(size=128), ctypes.c_int()
    args = (-100, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0)
    assert _libc.name_to_handle_at(*args) == 0
    return handle


def open_by_handle(mount_fd, handle):
    fd = _libc.open_by_handle_at(mount_fd, ctypes.byref(handle), os.O_RDONLY)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def test_handles_of_the_file_system_outlive_a_mount(bed):
    state = str(bed.root / "handles")
    with Served(bed, state=state) as served:
        (served.path / "d" / "e").mkdir(parents=True)
        (served.path / "d" / "e" / "f").write_bytes(b"found")
        file, directory = handle_of(served.path / "d/e/f"), handle_of(served.path / "d/e")
    with Served(bed, state=state) as served:
        root = os.open(served.path, os.O_RDONLY)
        try:
            fd = open_by_handle(root, file)
            assert os.read(fd, 100) == b"found"
            os.close(fd)
            fd = open_by_handle(root, directory)
            assert os.readlink(f"/proc/self/fd/{fd}") == str(served.path / "d/e")
            os.close(fd)
        finally:
            os.close(root)


# -- extended attributes ------------------------------------------------------------------------


def test_xattr_flags_arrive_in_one_request(path, served):
    file = path / "f"
    file.touch()
    os.setxattr(file, "user.a", b"1")
    fails(errno.EEXIST, os.setxattr, file, "user.a", b"2", os.XATTR_CREATE)
    fails(errno.ENODATA, os.setxattr, file, "user.b", b"2", os.XATTR_REPLACE)
    os.setxattr(file, "user.b", b"\0" * 60000, os.XATTR_CREATE)
    os.setxattr(file, "user.a", b"", os.XATTR_REPLACE)
    assert [c["flags"] for c in served.calls("setxattr")] == [0, 1, 2, 1, 2]
    assert os.getxattr(file, "user.b") == b"\0" * 60000
    assert os.getxattr(file, "user.a") == b""
    assert sorted(os.listxattr(file)) == ["user.a", "user.b"]
    os.removexattr(file, "user.a")
    fails(errno.ENODATA, os.getxattr, file, "user.a")
    fails(errno.ENODATA, os.removexattr, file, "user.a")
    assert os.listxattr(path) == []


# -- the loop -------------------------------------------------------------------------------------


def test_a_bug_of_ours_is_eio_and_nothing_else(bed):
    with Served(bed, bug=True) as served:
        fails(errno.EIO, os.statvfs, served.path)
        assert os.listdir(served.path) == []
    assert "RuntimeError: a bug" in served.errors.read_text()


def test_the_server_ends_when_the_mount_does(bed):
    with Served(bed) as served:
        mounting.umount(str(served.path))
        assert served.said() == {"ended": True, "in_flight": 0, "answered": 0}
        assert served.gone() == 0


def test_what_was_agreed_with_the_kernel(bed):
    with Served(bed) as served:
        agreed = abi.init_reply(bytes.fromhex(served.init_out))
    posix_locks, flock_locks = 1 << 1, 1 << 10
    assert agreed.max_write == MIB
    assert agreed.max_pages == 256
    assert agreed.max_readahead == MIB
    assert agreed.flags & posix_locks
    assert agreed.flags & flock_locks
    assert agreed.flags & abi.INIT_PARALLEL_DIROPS
    assert not agreed.flags & (abi.INIT_ATOMIC_O_TRUNC | abi.INIT_HANDLE_KILLPRIV)


SLOW_READERS = """if 1:
    import mmap, os, sys, threading
    def read():
        fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
        os.preadv(fd, [mmap.mmap(-1, 4096)], 0)
    threads = [threading.Thread(target=read) for _ in range(400)]
    for t in threads: t.start()
    print("started", flush=True)
    for t in threads: t.join()
"""


def test_hundreds_of_slow_requests_do_not_hold_up_a_quick_one(bed):
    with Served(bed, read_delay_s=1.0) as served:
        (served.path / "f").write_bytes(b"x" * 4096)
        argv = [sys.executable, "-c", SLOW_READERS, served.path / "f"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as readers:
            readers.stdout.readline()
            began = time.monotonic()
            for _ in range(20):
                os.stat(served.path / "f")
            took = time.monotonic() - began
            assert readers.wait(20) == 0
        assert took < 0.5
        assert len(served.calls("read")) == 400


def test_a_server_that_stops_answers_what_it_has_read(bed):
    with Served(bed, delay_s=0.5) as served:
        with subprocess.Popen(["mkdir", served.path / "d"]) as maker:
            time.sleep(0.2)
            served.signal(signal.SIGTERM)
            assert maker.wait(5) == 0
        assert served.said() == {"ended": False, "in_flight": 0, "answered": 1}
        assert served.gone() == 0


@pytest.mark.slow
def test_answers_that_nobody_asks_for_are_bounded(bed):
    program = """if 1:
        import os, sys
        for _ in range(50000):
            os.close(os.open(sys.argv[1], os.O_RDONLY))  # OPEN, FLUSH, RELEASE
    """
    with Served(bed, uvloop=True, timeout_s=60.0, log="") as served:
        (served.path / "f").touch()
        subprocess.run([sys.executable, "-c", program, served.path / "f"], check=True)
        mounting.umount(str(served.path))
        assert 65536 <= served.said()["answered"] <= 131072


def test_answered_requests_are_told(bed):
    with Served(bed) as served:
        (served.path / "d").mkdir()
        with pytest.raises(FileExistsError):
            os.mkdir(served.path / "d")  # the kernel knows: no request
        os.rmdir(served.path / "d")
        mounting.umount(str(served.path))
        assert served.said()["answered"] == 2
