"""Names: what creates, removes, links and moves them, compared with the machine's own fs."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from support.compare import Lab, compare
from support.posix import RENAME_EXCHANGE, RENAME_NOREPLACE, attempt, renameat2

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.promise(13)
USER = 12345


def make_tree(lab: Lab) -> None:
    """One of every kind of node, with content that tells them apart."""
    lab.make("file", b"file")
    lab.make("other", b"other")
    os.mkdir(lab.path("empty"))
    os.mkdir(lab.path("empty2"))
    os.mkdir(lab.path("full"))
    lab.make("full/inner", b"inner")
    os.symlink(b"file", lab.path("link"))
    os.symlink(b"nowhere", lab.path("dangling"))
    os.symlink(b"loop", lab.path("loop"))
    os.symlink(b"empty", lab.path("dirlink"))
    os.mkfifo(lab.path("fifo"))
    os.link(lab.path("file"), lab.path("hard"))


NAMES = (
    "file", "hard", "empty", "full", "link", "dangling", "loop", "dirlink", "fifo",
    "missing", "file/below", "missing/below", "empty/.", "full/..", "full/inner", "dangling/x",
)  # fmt: skip


def unlink_everything(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.unlink, name)


def rmdir_everything(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.rmdir, name)


def mkdir_everywhere(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.mkdir, name, 0o1751)


def mknod_everywhere(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.mknod, name, stat.S_IFIFO | 0o620)


def symlink_everywhere(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.symlink, b"target", name)


def create_everywhere(lab: Lab) -> None:
    for flags in (
        os.O_CREAT | os.O_EXCL | os.O_RDWR,
        os.O_CREAT | os.O_WRONLY,
        os.O_WRONLY,
        os.O_RDONLY,
        os.O_RDONLY | os.O_DIRECTORY,
        os.O_RDONLY | os.O_NOFOLLOW,
        os.O_PATH | os.O_NOFOLLOW,
        os.O_WRONLY | os.O_TRUNC,
        os.O_CREAT | os.O_DIRECTORY,
    ):
        for name in NAMES:
            lab.try_open(name, flags | os.O_NONBLOCK, 0o4751)


def stat_everything(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.lstat, name)
        lab.do(os.stat, name)
        lab.do(os.readlink, name)
        lab.do(os.access, name, os.W_OK)


def chmod_everything(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.chmod, name, 0o7531)
        lab.do(os.lstat, name)


def chown_everything(lab: Lab) -> None:
    for name in NAMES:
        lab.do(os.chown, name, 5, 6, follow_symlinks=False)
        lab.do(os.chown, name, -1, 7)
        lab.do(os.lstat, name)


def truncate_everything(lab: Lab) -> None:
    os.unlink(lab.path("fifo"))
    for name in NAMES:
        lab.do(os.truncate, name, 2)
        lab.do(os.truncate, name, -1)


WHOLE = [
    unlink_everything, rmdir_everything, mkdir_everywhere, mknod_everywhere, symlink_everywhere,
    create_everywhere, stat_everything, chmod_everything, chown_everything, truncate_everything,
]  # fmt: skip


@pytest.mark.parametrize("case", WHOLE, ids=lambda c: c.__name__)
def test_one_call_on_every_kind_of_name(case: object, work: Path, ref: Path) -> None:
    def both(lab: Lab) -> None:
        make_tree(lab)
        case(lab)

    compare(both, work, ref)


PLACES = ("file", "hard", "empty", "full", "link", "dangling", "fifo", "missing", "full/inner")


@pytest.mark.parametrize("new", [*PLACES, "empty/in", "full/in", "missing/in", "file/in", "empty2"])
def test_rename_of_every_kind_onto(new: str, work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for index, old in enumerate(PLACES):
            inner = Lab(lab.root / f"r{index}")
            inner.root.mkdir()
            make_tree(inner)
            inner.do(os.rename, old, new)
            lab.record += inner.record

    compare(case, work, ref)


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE, RENAME_EXCHANGE, 3, 8])
@pytest.mark.parametrize("new", ["file", "hard", "empty", "full", "link", "missing", "full/in"])
def test_rename_with_flags_of_every_kind_onto(new: str, flags: int, work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for index, old in enumerate(PLACES):
            inner = Lab(lab.root / f"r{index}")
            inner.root.mkdir()
            make_tree(inner)
            inner.do(renameat2, old, new, flags)
            lab.record += inner.record

    compare(case, work, ref)


@pytest.mark.parametrize("new", [*PLACES, "full/in", "missing/in", "file/in"])
def test_link_of_every_kind_to(new: str, work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for index, old in enumerate(PLACES):
            inner = Lab(lab.root / f"r{index}")
            inner.root.mkdir()
            make_tree(inner)
            inner.do(os.link, old, new, follow_symlinks=False)
            inner.do(os.lstat, new)
            lab.record += inner.record

    compare(case, work, ref)


def test_a_directory_does_not_move_into_itself(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        os.makedirs(lab.path("a/b/c"))
        lab.do(os.rename, "a", "a/b/c/d")
        lab.do(os.rename, "a", "a/b")
        lab.do(os.rename, "a/b", "a")
        lab.do(os.rename, "a", "a")
        lab.do(renameat2, "a", "a/b/c", RENAME_EXCHANGE)
        lab.do(renameat2, "a/b/c", "a", RENAME_EXCHANGE)

    compare(case, work, ref)


def test_moving_directories_moves_link_counts(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for name in ("a", "a/x", "a/y", "b", "b/z"):
            os.mkdir(lab.path(name))
        lab.make("a/f", b"1")
        for old, new in (("a/x", "b/x"), ("a/y", "b/x"), ("a/f", "b/f"), ("b", "a/b")):
            lab.do(os.rename, old, new)
            lab.do(os.stat, "a")
            lab.do(os.stat, "b")
        lab.do(renameat2, "a/b/f", "a/b/x", RENAME_EXCHANGE)
        lab.do(os.stat, "a/b")
        lab.do(renameat2, "a/b/f", "a/g", RENAME_EXCHANGE)
        lab.make("a/h")
        lab.do(renameat2, "a/b/f", "a/h", RENAME_EXCHANGE)
        lab.do(os.stat, "a")
        lab.do(os.stat, "a/b")

    compare(case, work, ref)


def test_hard_links_share_everything(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("a", b"1")
        os.mkdir(lab.path("d"))
        for name in ("b", "d/c", "d/e"):
            lab.do(os.link, "a", name)
        with open(lab.path("d/c"), "ab") as file:
            file.write(b"2")
        os.chmod(lab.path("b"), 0o600)
        os.setxattr(lab.path("d/e"), b"user.x", b"1")
        lab.do(os.rename, "a", "b")
        lab.do(os.rename, "d/c", "c")
        lab.do(os.stat, "c")
        for name in ("c", "d/e", "a"):
            lab.do(os.unlink, name)
            lab.do(os.stat, "b")
        lab.do(os.unlink, "b")

    compare(case, work, ref)


def test_times_of_parents_change(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("f")
        os.mkdir(lab.path("d"))
        os.mkdir(lab.path("e"))
        steps = [
            lambda: lab.make("d/a"),
            lambda: os.link(lab.path("f"), lab.path("d/b")),
            lambda: os.symlink(b"x", lab.path("d/c")),
            lambda: os.mkdir(lab.path("d/d")),
            lambda: os.rename(lab.path("d/a"), lab.path("d/z")),
            lambda: os.rename(lab.path("d/z"), lab.path("e/z")),
            lambda: os.rename(lab.path("d/d"), lab.path("e/d")),
            lambda: os.unlink(lab.path("d/b")),
            lambda: os.rmdir(lab.path("e/d")),
            lambda: os.chmod(lab.path("d"), 0o700),
        ]
        for index, step in enumerate(steps):
            for name in ("f", "d", "e"):
                os.utime(lab.path(name), ns=(1, 1))
            before = {n: os.stat(lab.path(n)) for n in ("f", "d", "e")}
            step()
            for name, old in before.items():
                new = os.stat(lab.path(name))
                changed = (new.st_mtime_ns != old.st_mtime_ns, new.st_ctime_ns != old.st_ctime_ns)
                lab.note(f"step {index} {name}", changed)

    import time

    def slow_case(lab: Lab) -> None:
        time.sleep(0.02)
        case(lab)

    compare(slow_case, work, ref)


def test_the_sticky_bit_protects_others_files(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        os.mkdir(lab.path("s"))
        os.chmod(lab.path("s"), 0o1777)
        for name in ("s/root", "s/mine", "s/target"):
            lab.make(name)
        os.mkdir(lab.path("s/dir"))
        os.chown(lab.path("s/mine"), USER, USER)
        lab.do_as(USER, os.unlink, "s/root")
        lab.do_as(USER, os.rmdir, "s/dir")
        lab.do_as(USER, os.rename, "s/root", "s/x")
        lab.do_as(USER, os.rename, "s/mine", "s/target")
        lab.do_as(USER, os.rename, "s/mine", "s/x")
        lab.do_as(USER, os.unlink, "s/x")

    compare(case, work, ref)


def test_permissions_of_parents(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for mode in (0o777, 0o755, 0o733, 0o744, 0o700):
            top = f"m{mode:o}"
            os.mkdir(lab.path(top))
            lab.make(f"{top}/f", b"x", 0o644)
            os.mkdir(lab.path(f"{top}/d"))
            os.chmod(lab.path(top), mode)
            lab.do_as(USER, os.stat, f"{top}/f")
            lab.do_as(USER, lambda p: sorted(os.listdir(p)), top)
            lab.do_as(USER, os.mkdir, f"{top}/new")
            lab.do_as(USER, os.symlink, b"x", f"{top}/newlink")
            lab.do_as(USER, os.rename, f"{top}/d", f"{top}/e")
            lab.do_as(USER, os.link, f"{top}/f", f"{top}/hard")
            lab.do_as(USER, os.unlink, f"{top}/f")
            lab.do_as(USER, os.rmdir, f"{top}/d")

    compare(case, work, ref)


def test_setgid_directories_pass_their_group_on(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        os.mkdir(lab.path("g"))
        os.chown(lab.path("g"), 0, 777)
        os.chmod(lab.path("g"), 0o2777)

        def make(path: bytes) -> None:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o2775))

        lab.do(make, "g/root")
        lab.do(os.mkdir, "g/dir", 0o755)
        lab.do_as(USER, make, "g/user")
        lab.do_as(USER, os.mkdir, "g/userdir")
        lab.do_as(USER, os.mkfifo, "g/fifo")
        lab.do(os.symlink, b"x", "g/link")
        for name in ("root", "dir", "user", "userdir", "fifo", "link"):
            lab.do(os.lstat, f"g/{name}")

    compare(case, work, ref)


def test_umask_is_applied(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for mask in (0, 0o077, 0o777, 0o027):
            old = os.umask(mask)
            os.mkdir(lab.path(f"d{mask}"), 0o777)
            os.mkfifo(lab.path(f"p{mask}"), 0o666)
            os.close(os.open(lab.path(f"f{mask}"), os.O_CREAT | os.O_WRONLY, 0o6777))
            os.umask(old)
            for kind in "dpf":
                lab.do(os.stat, f"{kind}{mask}")

    compare(case, work, ref)


def test_special_files(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        for name, kind, device in (
            ("null", stat.S_IFCHR, os.makedev(1, 3)),
            ("big", stat.S_IFBLK, os.makedev(4095, (1 << 20) - 1)),
            ("block", stat.S_IFBLK, os.makedev(8, 1)),
        ):
            lab.do(os.mknod, name, kind | 0o640, device)
            lab.do(os.lstat, name)
            lab.do_as(USER, os.mknod, f"{name}2", kind | 0o640, device)
        lab.do(os.mknod, "regular", stat.S_IFREG | 0o751)
        lab.do(os.mknod, "sock", stat.S_IFSOCK | 0o751)
        lab.do(os.lstat, "sock")

    compare(case, work, ref)


def test_a_unix_socket_and_a_fifo_work(work: Path) -> None:
    old = os.getcwd()
    os.chdir(work)
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("s")
            server.listen()
            client.connect("s")
            peer, _ = server.accept()
            client.sendall(b"x")
            assert peer.recv(1) == b"x"
            peer.close()
    finally:
        os.chdir(old)
    os.mkfifo(work / "fifo")
    reader = os.open(work / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(work / "fifo", os.O_WRONLY)
    os.write(writer, b"abc")
    assert os.read(reader, 10) == b"abc"
    os.close(reader)
    os.close(writer)


@pytest.mark.jfsd_only
def test_rename_is_atomic_for_readers(work: Path) -> None:
    """A name that is replaced again and again is never missing.

    The kernel may ask for the attributes of the replaced inode after it is gone; ENOENT
    there (the reference) reaches the program, ESTALE makes the kernel look again.
    """
    (work / "name").write_bytes(b"0")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        misses = 0
        os.set_blocking(reader, False)
        while True:
            misses += attempt(os.stat, work / "name").error is not None
            if attempt(os.read, reader, 1).error is None:
                os._exit(min(misses, 250))
    for index in range(300):
        (work / "new").write_bytes(b"%d" % index)
        os.rename(work / "new", work / "name")
    os.write(writer, b"x")
    _, status = os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert os.waitstatus_to_exitcode(status) == 0


def test_exclusive_create_has_one_winner(work: Path) -> None:
    reader, writer = os.pipe()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)
            won = sum(
                attempt(os.open, work / f"n{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY).error is None
                for i in range(60)
            )
            os._exit(won)
        children.append(child)
    os.close(writer)
    os.close(reader)
    won = sum(os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children)
    assert won == 60
    assert len(os.listdir(work)) == 60


def test_other_users_may_not_link_to_what_they_cannot_write(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("secret", b"x", 0o600)
        lab.do_as(USER, os.link, "secret", "mine")
        lab.do_as(USER, os.chmod, "secret", 0o777)
        lab.do_as(USER, os.truncate, "secret", 0)
        lab.do_as(USER, lambda p: os.close(os.open(p, os.O_RDONLY)), "secret")
        lab.do_as(USER, os.utime, "secret")

    compare(case, work, ref)


def test_loops_and_missing_parts_are_told_apart(work: Path) -> None:
    os.symlink("b", work / "a")
    os.symlink("a", work / "b")
    assert attempt(os.stat, work / "a").error == "ELOOP"
    assert attempt(os.stat, work / "missing").error == "ENOENT"
    (work / "f").touch()
    assert attempt(os.stat, work / "f/x").error == "ENOTDIR"
    with pytest.raises(OSError, match="Is a directory") as caught:
        os.open(work, os.O_WRONLY)
    assert caught.value.errno == errno.EISDIR
