"""Programs that people run, on a mount of each kind of store."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.session import program, run
from support.tree import assert_same, make_every_type, set_acl, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.clients import Mounted
    from support.volume import Volume

pytestmark = [pytest.mark.promise(13), pytest.mark.timeout(300)]
GIT = [
    "git",
    "-c",
    "user.name=t",
    "-c",
    "user.email=t@example.org",
    "-c",
    "init.defaultBranch=main",
]


BOTH = pytest.mark.parametrize("place", ["file", "s3"], indirect=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of its own on a mount; of a directory, or of the kind of store asked for."""
    kind = getattr(request, "param", "file")
    name = "shared_mount" if kind == "file" else "shared_s3_mount"
    mounted: Mounted = request.getfixturevalue(name)
    path = mounted.path / f"place-{kind}"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def git(where: Path, *arguments: str, check: bool = True) -> str:
    return run([*GIT, "-C", where, *arguments], limit_s=200, check=check).stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with some history, made on the machine's own file system."""
    top = tmp_path_factory.mktemp("sources")
    rng = random.Random(3)
    git(top, "init", "-q", ".")
    for commit in range(8):
        for index in range(25):
            path = top / f"dir{index % 5}" / f"file{index}.txt"
            path.parent.mkdir(exist_ok=True)
            lines = [f"line {rng.random()} of {commit}" for _ in range(rng.randrange(1, 300))]
            path.write_text("\n".join(lines))
        os.symlink("file1.txt", top / "dir1" / f"link{commit}")
        (top / "binary").write_bytes(rng.randbytes(300_000))
        git(top, "add", "-A")
        git(top, "commit", "-q", "-m", f"commit {commit}")
    return top


@BOTH
def test_git(place: Path, sources: Path) -> None:
    """clone, commit, branch, merge, repack, gc, fsck, checkout; the same tree at the end."""
    clone = place / "clone"
    run([*GIT, "clone", "-q", "--no-hardlinks", sources, clone], limit_s=200)
    assert git(clone, "status", "--porcelain") == ""
    git(clone, "checkout", "-q", "-b", "side", "HEAD~5")
    (clone / "side.txt").write_text("side")
    git(clone, "add", ".")
    git(clone, "commit", "-q", "-m", "side")
    git(clone, "checkout", "-q", "main")
    git(clone, "merge", "-q", "--no-edit", "side")
    git(clone, "repack", "-q", "-a", "-d", "-f")
    git(clone, "gc", "-q", "--aggressive", "--prune=now")
    assert "error" not in git(clone, "fsck", "--full", "--strict")
    run([*GIT, "clone", "-q", clone, place / "again"], limit_s=200)
    git(place / "again", "reset", "-q", "--hard", sources_head(sources))
    shutil.rmtree(place / "again/.git")
    ours = snapshot(place / "again", xattrs=False)
    theirs = {n: v for n, v in snapshot(sources, xattrs=False).items() if not n.startswith(b".git")}
    assert_same(
        {n: v._replace(mode=0) for n, v in ours.items()},
        {n: v._replace(mode=0) for n, v in theirs.items()},
    )


def sources_head(sources: Path) -> str:
    return git(sources, "rev-parse", "HEAD").strip()


def test_a_compile(place: Path) -> None:
    """make -j4 of forty C files, an archive and a program; again it does nothing."""
    for index in range(40):
        (place / f"m{index}.c").write_text(
            f'#include "all.h"\n#include <stdio.h>\nint f{index}(int x) '
            f"{{ return x + {index} + (int)sizeof(struct big); }}\n"
        )
    (place / "all.h").write_text(
        "struct big { char x[100]; };\n" + "".join(f"int f{i}(int);\n" for i in range(40))
    )
    calls = "+".join(f"f{i}(1)" for i in range(40))
    (place / "main.c").write_text(
        f'#include "all.h"\n#include <stdio.h>\n'
        f'int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    objects = " ".join(f"m{i}.o" for i in range(40))
    (place / "Makefile").write_text(
        f"prog: main.o lib.a\n\tgcc -o $@ main.o lib.a\nlib.a: {objects}\n\tar rcs $@ $^\n"
        "%.o: %.c all.h\n\tgcc -O1 -c -o $@ $<\n"
    )
    run(["make", "-C", place, "-j4"], limit_s=200)
    assert run([place / "prog"]).stdout.strip() == str(sum(1 + i + 100 for i in range(40)))
    assert "up to date" in run(["make", "-C", place, "-j4"], limit_s=60).stdout
    (place / "all.h").touch()
    assert run(["make", "-C", place, "-q"], check=False).returncode == 1


SQLITE_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
who = int(sys.argv[2])
for n in range(60):
    with db:
        db.execute("begin immediate")
        [(total,)] = db.execute("select coalesce(sum(amount), 0) from t").fetchall()
        db.execute("insert into t values (?, ?, ?)", (who, n, bytes(2000)))
        db.execute("update sums set n = n + 1")
    if n % 20 == 19:
        try:
            with db:
                db.execute("begin immediate")
                db.execute("delete from t")
                raise ValueError
        except ValueError:
            pass
db.close()
"""


@pytest.mark.parametrize(
    ("journal", "place"),
    [("wal", "file"), ("wal", "s3"), ("delete", "file"), ("truncate", "file")],
    indirect=["place"],
)
def test_sqlite(journal: str, place: Path) -> None:
    """Three processes write transactions, some roll back; the numbers agree at the end."""
    path = place / "db"
    db = sqlite3.connect(path)
    assert db.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
    db.execute("pragma synchronous=normal")
    db.execute("create table t (who integer, amount integer, data blob)")
    db.execute("create table sums (n integer)")
    db.execute("insert into sums values (0)")
    db.commit()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", SQLITE_WRITER, path, str(who)], stderr=subprocess.PIPE
        )
        for who in range(3)
    ]
    errors = [w.communicate(timeout=200)[1] for w in writers]
    assert [w.returncode for w in writers] == [0] * 3, errors
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("select n from sums").fetchone() == (180,)
    assert db.execute("select count(*), sum(length(data)) from t").fetchone() == (180, 360_000)
    db.execute("vacuum")
    db.close()
    assert run(["sqlite3", path, "pragma integrity_check"]).stdout.strip() == "ok"


FIO = {
    "buffered": ["--size=16m", "--ioengine=psync", "--rw=randrw", "--bsrange=1k-128k"],
    "sequential": ["--size=24m", "--ioengine=psync", "--rw=write", "--bs=1m", "--end_fsync=1"],
    "direct": ["--size=16m", "--ioengine=psync", "--rw=randwrite", "--bs=64k", "--direct=1"],
    "async": ["--size=8m", "--ioengine=libaio", "--iodepth=8", "--rw=randwrite", "--bs=16k"],
    "mmap": ["--size=4m", "--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--fsync=200"],
    "sync": ["--size=1m", "--ioengine=psync", "--rw=randwrite", "--bs=4k", "--sync=1"],
}


@pytest.mark.parametrize(
    ("kind", "place"),
    [(kind, "file") for kind in FIO] + [("sequential", "s3"), ("async", "s3"), ("buffered", "s3")],
    indirect=["place"],
)
def test_fio_verifies(kind: str, place: Path) -> None:
    argv = [program("fio"), "--name=t", f"--directory={place}", "--numjobs=2", *FIO[kind]]
    argv += ["--direct=1"] if kind == "async" else []
    argv += [
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--fallocate=none",
        "--verify_state_save=0",
    ]
    report = run(argv, limit_s=200)
    assert report.stdout.count("err= 0") == 2


def test_dbench(place: Path) -> None:
    run(["dbench", "-D", place, "-t", "6", "2"], limit_s=120)


NAMES = (
    "access", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "dirmany", "fcntl",
    "file-ioctl", "filename", "flock", "fstat", "getdent", "locka", "lockf", "lockofd", "mknod",
    "open", "rename", "touch", "utime", "xattr",
)  # fmt: skip
DATA = (
    "aio", "copy-file", "fallocate", "fpunch", "fsize", "hdd", "io", "iomix", "readahead", "revio",
    "seek", "sendfile", "splice", "sync-file",
)  # fmt: skip


@pytest.mark.parametrize(
    ("stressors", "place"),
    [(NAMES, "file"), (DATA, "file"), (DATA, "s3")],
    ids=["names", "data", "data-s3"],
    indirect=["place"],
)
def test_stress_ng(stressors: tuple[str, ...], place: Path) -> None:
    """All stressors at once for some seconds; none may fail a check of its own."""
    argv = [
        program("stress-ng"),
        "--timeout",
        "5",
        "--verify",
        "--temp-path",
        place,
        "--hdd-bytes",
        "8m",
    ]
    argv += ["--dentries", "200", "--iomix-bytes", "16m"]
    for stressor in stressors:
        argv += [f"--{stressor}", "1"]
    done = run(argv, limit_s=150)
    assert "fail" not in done.stdout + done.stderr.replace("failed: 0", "")


@BOTH
def test_tar_keeps_everything(place: Path, tmp_path: Path) -> None:
    """Hard links, sparse files, xattrs, ACLs, special files and times through tar."""
    made = place / "made"
    made.mkdir()
    acl = "s3" not in place.name
    make_every_type(made, acl=acl)
    flags = ["--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner"]
    run(["tar", "-C", made, "-cf", tmp_path / "t.tar", *flags, "."], limit_s=120)
    (place / "again").mkdir()
    run(["tar", "-C", place / "again", "-xpf", tmp_path / "t.tar", *flags], limit_s=120)
    expected = without_sockets(snapshot(made, times=True))
    assert_same(snapshot(place / "again", times=True), expected)


def without_sockets(tree: dict) -> dict:
    """Tar stores no sockets."""
    return {n: v for n, v in tree.items() if v.kind != "socket"}


def test_rsync_keeps_everything(place: Path, tmp_path: Path) -> None:
    """From the machine's file system to the mount and back; a second run changes nothing."""
    local = tmp_path / "local"
    local.mkdir()
    make_every_type(local)
    set_acl(os.fsencode(local / "file0"), b"user:1000:rwx")
    flags = ["-aHAXS", "--numeric-ids", "--specials", "--devices"]
    run(["rsync", *flags, f"{local}/", f"{place}/there/"], limit_s=120)
    theirs = snapshot(local, times=True)
    assert_same(snapshot(place / "there", times=True), theirs)
    again = run(["rsync", *flags, "-i", f"{local}/", f"{place}/there/"], limit_s=120).stdout
    assert again == ""
    run(["rsync", *flags, "--checksum", f"{place}/there/", f"{tmp_path}/back/"], limit_s=120)
    assert_same(snapshot(tmp_path / "back", times=True), theirs)


def test_a_tree_copied_and_verified_after_a_cold_mount(
    new_volume: Callable[..., Volume], tmp_path: Path
) -> None:
    volume = new_volume("s3", "--compress", "lz4")
    mounted = volume.mount()
    library = Path(os.__file__).parent / "asyncio"
    run(["cp", "-a", library, mounted.path / "copy"], limit_s=120)
    mounted = volume.remount(mounted)
    assert_same(
        snapshot(mounted.path / "copy", times=True, xattrs=False),
        snapshot(library, times=True, xattrs=False),
    )
    mounted.unmount()
    volume.check()
