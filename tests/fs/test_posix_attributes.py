"""Extended attributes, POSIX ACLs, immutable files, statfs."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.compare import Lab, compare
from support.posix import as_user, attempt

if TYPE_CHECKING:
    from pathlib import Path

    from support.clients import Mounted

pytestmark = pytest.mark.promise(13)


def everything(lab: Lab) -> None:
    lab.make("file", b"x")
    os.mkdir(lab.path("dir"))
    os.symlink(b"file", lab.path("link"))
    os.mkfifo(lab.path("fifo"))


def sorted_names(path: bytes, *, follow_symlinks: bool) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=follow_symlinks))


@pytest.mark.parametrize("name", ["file", "dir", "link", "fifo"])
@pytest.mark.parametrize("namespace", ["user", "trusted"])
def test_xattr_life(name: str, namespace: str, work: Path, ref: Path) -> None:
    key = f"{namespace}.key".encode()

    def case(lab: Lab) -> None:
        everything(lab)
        for follow in (False, True):
            kind = {"follow_symlinks": follow}
            lab.do(os.getxattr, name, key, note="missing", **kind)
            lab.do(os.removexattr, name, key, note="remove missing", **kind)
            lab.do(os.setxattr, name, key, b"1", os.XATTR_REPLACE, note="replace", **kind)
            lab.do(os.setxattr, name, key, b"2", os.XATTR_CREATE, note="create", **kind)
            lab.do(os.setxattr, name, key, b"3", os.XATTR_CREATE, note="create again", **kind)
            lab.do(os.setxattr, name, key, b"", note="empty", **kind)
            lab.do(os.getxattr, name, key, note="get", **kind)
            lab.do(os.setxattr, name, key + b"2", bytes(range(256)), note="bytes", **kind)
            lab.do(sorted_names, name, note="list", **kind)
            lab.do(os.removexattr, name, key, note="remove", **kind)
            lab.do(sorted_names, name, note="list", **kind)

    compare(case, work, ref)


def test_xattr_names_and_sizes(work: Path) -> None:
    path = work / "f"
    path.touch()
    assert attempt(os.setxattr, path, b"user." + b"n" * 250, b"x").error is None
    assert attempt(os.setxattr, path, b"user." + b"n" * 251, b"x").error == "ERANGE"
    assert attempt(os.setxattr, path, b"user.\xff\xfe", b"x").error is None
    assert attempt(os.setxattr, path, b"user.max", b"v" * 65536).error is None
    assert attempt(os.setxattr, path, b"user.more", b"v" * 65537).error == "E2BIG"
    assert os.getxattr(path, b"user.max") == b"v" * 65536
    assert len(os.listxattr(path)) == 3
    for index in range(100):
        os.setxattr(path, f"user.{index}", str(index).encode() * index)
    assert len(os.listxattr(path)) == 103
    assert os.getxattr(path, "user.99") == b"99" * 99


def test_trusted_attributes_are_for_root(work: Path) -> None:
    path = work / "f"
    path.touch()
    path.chmod(0o666)
    os.setxattr(path, b"trusted.secret", b"1")
    assert as_user(999, 999, lambda: os.getxattr(path, b"trusted.secret")).error is not None
    assert as_user(999, 999, lambda: os.setxattr(path, b"trusted.x", b"1")).error == "EPERM"
    assert as_user(999, 999, lambda: os.setxattr(path, b"user.x", b"1")).error is None


def setfacl(lab: Lab, *arguments: str) -> None:
    done = subprocess.run(
        ["setfacl", *arguments], cwd=lab.root, capture_output=True, timeout=30, check=False
    )
    lab.note(f"setfacl {arguments}", (done.returncode, done.stderr))


def getfacl(lab: Lab, *names: str) -> None:
    done = subprocess.run(
        ["getfacl", "-n", *names], cwd=lab.root, capture_output=True, timeout=30, check=False
    )
    lab.note(f"getfacl {names}", (done.returncode, done.stdout, done.stderr))


def test_acl_entries_and_modes(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        everything(lab)
        setfacl(lab, "-m", "u:1000:rwx,g:2000:r-x", "file")
        getfacl(lab, "file")
        lab.do(os.stat, "file")
        os.chmod(lab.path("file"), 0o640)
        getfacl(lab, "file")
        setfacl(lab, "-m", "m::rwx", "file")
        setfacl(lab, "-x", "u:1000", "file")
        getfacl(lab, "file")
        setfacl(lab, "-b", "file")
        getfacl(lab, "file")
        lab.do(os.stat, "file")
        setfacl(lab, "-m", "u::rwx,g::r,o::-", "file")
        lab.do(os.stat, "file")
        setfacl(lab, "-d", "-m", "u:1000:rwx", "file")

    compare(case, work, ref)


def test_default_acls_are_inherited(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        os.mkdir(lab.path("d"))
        setfacl(lab, "-d", "-m", "u:1000:rwx,g::r-x,o::-,m::rwx", "d")
        os.umask(0o077)
        os.mkdir(lab.path("d/sub"), 0o770)
        os.mkdir(lab.path("d/sub/sub"), 0o777)
        lab.make("d/sub/made", b"x", 0o664)
        os.close(os.open(lab.path("d/f"), os.O_CREAT | os.O_WRONLY, 0o666))
        os.close(os.open(lab.path("d/g"), os.O_CREAT | os.O_WRONLY, 0o640))
        os.mkfifo(lab.path("d/p"), 0o666)
        os.symlink(b"x", lab.path("d/l"))
        os.umask(0o022)
        getfacl(lab, "d", "d/sub", "d/sub/sub", "d/f", "d/g", "d/p", "d/sub/made")
        setfacl(lab, "-k", "d")
        getfacl(lab, "d")

    compare(case, work, ref)


def test_acls_decide(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("f", b"secret", 0o600)
        os.mkdir(lab.path("d"), 0o700)
        lab.make("d/g", b"x")
        read = lambda p: os.close(os.open(p, os.O_RDONLY))  # noqa: E731
        write = lambda p: os.close(os.open(p, os.O_WRONLY))  # noqa: E731
        setfacl(lab, "-m", "u:1000:r,u:1001:rw,g:1002:r,g:1003:-,m::r", "f")
        setfacl(lab, "-m", "u:1000:x,g:1002:rx", "d")
        for uid in (1000, 1001, 1002, 1003, 1004):
            lab.do_as(uid, read, "f")
            lab.do_as(uid, write, "f")
            lab.do_as(uid, os.stat, "d/g")
            lab.do_as(uid, lambda p: sorted(os.listdir(p)), "d")
            lab.do_as(uid, lambda p: os.access(p, os.R_OK), "f")

    compare(case, work, ref)


def test_only_owners_change_acls(work: Path, ref: Path) -> None:
    def case(lab: Lab) -> None:
        lab.make("f")
        setfacl(lab, "-m", "u:1000:rwx", "f")
        rule = os.getxattr(lab.path("f"), "system.posix_acl_access")
        lab.do_as(1000, lambda p: os.setxattr(p, "system.posix_acl_access", rule), "f")
        lab.do_as(1000, lambda p: os.removexattr(p, "system.posix_acl_access"), "f")
        os.chown(lab.path("f"), 1000, 1000)
        lab.do_as(1000, lambda p: os.removexattr(p, "system.posix_acl_access"), "f")
        getfacl(lab, "f")

    compare(case, work, ref)


@pytest.mark.jfsd_only
def test_a_rule_that_is_no_rule_is_refused(work: Path) -> None:
    """The reference answers success and keeps nothing."""
    path = work / "f"
    path.touch()
    for garbage in (b"garbage", bytes(4), b"\x02\0\0\0\x01"):
        outcome = attempt(os.setxattr, path, "system.posix_acl_access", garbage)
        assert outcome.error in ("EINVAL", "ENOTSUP")
    assert os.listxattr(path) == []


def test_statfs_follows_use(work: Path, shared_mount: Mounted) -> None:
    import time

    before = os.statvfs(work)
    (work / "f").write_bytes(os.urandom(20 << 20))
    for index in range(50):
        (work / f"n{index}").touch()
    time.sleep(1.5)
    after = os.statvfs(work)
    used = (before.f_bfree - after.f_bfree) * before.f_frsize
    assert (20 << 20) <= used < (24 << 20)
    assert (after.f_files - after.f_ffree) - (before.f_files - before.f_ffree) == 51
    assert after.f_namemax == 255
