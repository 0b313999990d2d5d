"""Whole directory trees as values: made, compared, counted."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path
from typing import NamedTuple


class Node(NamedTuple):
    """Everything of one file that must be the same on another file system."""

    kind: str
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    content: object
    xattrs: tuple[tuple[str, bytes], ...]
    mtime_ns: int | None
    links: tuple[bytes, ...] = ()


_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def digest(path: bytes | str | Path) -> str:
    """Return a checksum of a file's bytes."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _content(path: bytes, status: os.stat_result) -> object:
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFREG:
        return digest(path)
    if kind == stat.S_IFLNK:
        return os.readlink(path)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        return status.st_rdev
    return None


def snapshot(
    root: Path | bytes, *, times: bool = False, xattrs: bool = True, roots_too: bool = False
) -> dict[bytes, Node]:
    """Return every node below `root` by its relative path.

    Sizes of directories differ between file systems and read 0 here. Names that are
    links of one file list each other.
    """
    top = os.fsencode(root)
    nodes: dict[bytes, Node] = {}
    by_inode: dict[int, list[bytes]] = {}
    todo = [b""]
    while todo:
        relative = todo.pop()
        path = os.path.join(top, relative) if relative else top
        status = os.lstat(path)
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind == "directory":
            todo += [os.path.join(relative, name) for name in os.listdir(path)]
        elif status.st_nlink > 1:
            by_inode.setdefault(status.st_ino, []).append(relative)
        if not relative and not roots_too:
            continue
        names = os.listxattr(path, follow_symlinks=False) if xattrs else ()
        nodes[relative] = Node(
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            0 if kind == "directory" else status.st_size,
            _content(path, status),
            tuple(sorted((n, os.getxattr(path, n, follow_symlinks=False)) for n in names)),
            status.st_mtime_ns if times else None,
        )
    for names in by_inode.values():
        for name in names if len(names) > 1 else ():
            nodes[name] = nodes[name]._replace(links=tuple(sorted(names)))
    return nodes


def assert_same(
    one: dict[bytes, Node], other: dict[bytes, Node], what: str = "the copy differs"
) -> None:
    """Fail with the differing names, not with a wall of text."""
    missing = sorted(other.keys() - one.keys())[:10]
    extra = sorted(one.keys() - other.keys())[:10]
    differing = [
        (k, one[k], other[k]) for k in sorted(one.keys() & other.keys()) if one[k] != other[k]
    ]
    assert not (missing or extra or differing), (
        f"{what}: missing {missing}, extra {extra}, differing {differing[:5]}"
    )


def make_every_type(
    root: Path, seed: int = 1, *, acl: bool = False, largest: int = 1 << 30
) -> None:
    """Fill `root` with every kind of node, size and attribute that a volume can hold."""
    rng = random.Random(seed)
    top = os.fsencode(root)
    sizes = (0, 1, 4095, 4096, 100_000, 4 << 20, (4 << 20) + 1, 9_000_001)
    for size in (s for s in sizes if s <= largest):
        path = os.path.join(top, b"file%d" % size)
        with open(path, "wb") as file:
            file.write(rng.randbytes(size) if size % 2 else b"text %d " % size * (size // 12 + 1))
            file.truncate(size)
        os.utime(path, ns=(1_000_000_007 * size + 1, 1_500_000_000_123_456_789 + size))
    with open(os.path.join(top, b"sparse"), "wb") as file:
        file.write(b"begin")
        file.seek((64 << 20) + 5)
        file.write(b"behind the first chunk")
        file.truncate(70 << 20)
    os.makedirs(os.path.join(top, b"dir/sub/deeper"))
    for index in range(30):
        Path(os.fsdecode(top), "dir", f"small{index}").write_bytes(b"%d" % index * index)
    for name in (b"\xff\xfe not utf-8 \x80", b"n" * 255, "ünï → ☃".encode(), b"-x", b" ", b"a\nb"):
        Path(os.fsdecode(os.path.join(top, b"dir/sub", name))).write_bytes(name)
    os.symlink(b"../file1", os.path.join(top, b"dir/symlink"))
    os.symlink(b"x" * 4000, os.path.join(top, b"dir/long symlink"))
    os.symlink(b"\xff/nowhere", os.path.join(top, b"dangling"))
    os.link(os.path.join(top, b"file4096"), os.path.join(top, b"dir/hard"))
    os.link(os.path.join(top, b"file4096"), os.path.join(top, b"dir/sub/hard"))
    os.mkfifo(os.path.join(top, b"fifo"), 0o640)
    os.mknod(os.path.join(top, b"socket"), stat.S_IFSOCK | 0o755)
    os.mknod(os.path.join(top, b"null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(os.path.join(top, b"block"), stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.chown(os.path.join(top, b"file1"), 1000, 100)
    os.chmod(os.path.join(top, b"file1"), 0o4751)
    os.chmod(os.path.join(top, b"dir/sub"), 0o3775)
    os.chown(os.path.join(top, b"dangling"), 4_000_000_000, 7, follow_symlinks=False)
    os.setxattr(os.path.join(top, b"file1"), b"user.a", b"")
    os.setxattr(os.path.join(top, b"file1"), "user.ü".encode(), bytes(range(256)))
    os.setxattr(os.path.join(top, b"dir"), b"trusted.b", b"v" * 4000)
    if acl:
        set_acl(os.path.join(top, b"file0"), b"user:1000:rwx,group:100:r-x,mask::rwx")
        set_acl(os.path.join(top, b"dir/sub"), b"default:user:1001:rw-,default:mask::rwx")
    for index, name in enumerate(
        (b"dir/symlink", b"dangling", b"fifo", b"socket", b"null", b"block")
    ):
        stamp = 1_400_000_000_987_654_321 + index * 10**9
        os.utime(os.path.join(top, name), ns=(stamp, stamp), follow_symlinks=False)
    stamp = 1_300_000_000_000_000_001
    os.utime(os.path.join(top, b"dir/long symlink"), ns=(stamp, stamp), follow_symlinks=False)
    for name in (b"dir/sub/deeper", b"dir/sub", b"dir"):
        os.utime(os.path.join(top, name), ns=(5, 1_600_000_000_000_000_009 + len(name)))


def set_acl(path: bytes, entries: bytes) -> None:
    """Change a POSIX ACL with setfacl."""
    import subprocess

    subprocess.run([b"setfacl", b"-m", entries, path], check=True, timeout=30)
