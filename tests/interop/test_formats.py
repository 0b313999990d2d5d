"""A volume that one program formats and fills is the same volume to the other (promise 14)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.posix import KEEP_SIZE, PUNCH_HOLE, attempt, fallocate
from support.redis import RedisServer
from support.session import free_ports
from support.tree import Node, assert_same, make_every_type, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.clients import Client, Jfsd, JuiceFS
    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(14), pytest.mark.timeout(180)]

FORMATS = {
    "plain": ("file",),
    "lz4-small-blocks": ("file", "--compress", "lz4", "--block-size", "256K"),
    "zstd-hash": ("file", "--compress", "zstd", "--hash-prefix"),
    "acl": ("file", "--enable-acl"),
    "trash": ("file", "--trash-days", "1"),
    "encrypted": ("file", "--encrypt-rsa-key", "KEY"),
    "s3": ("s3",),
    "s3-everything": (
        *("s3", "--compress", "zstd", "--hash-prefix", "--encrypt-rsa-key", "KEY"),
        *("--enable-acl", "--trash-days", "2"),
    ),
}
ACL = ("acl", "s3-everything")
PASSPHRASE = "a test passphrase"


@pytest.fixture(scope="session")
def rsa_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A passphrase-protected RSA key, as the reference's manual makes it."""
    path = tmp_path_factory.mktemp("key") / "key.pem"
    subprocess.run(
        ["openssl", "genrsa", "-aes256", "-passout", f"pass:{PASSPHRASE}", "-out", path, "2048"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return path


@pytest.fixture(autouse=True)
def passphrase(jfsd: Jfsd, juicefs: JuiceFS) -> Iterator[None]:
    """Both programs know the passphrase of the key."""
    for client in (jfsd, juicefs):
        client.extra_env["JFS_RSA_PASSPHRASE"] = PASSPHRASE
    yield
    for client in (jfsd, juicefs):
        del client.extra_env["JFS_RSA_PASSPHRASE"]


def pair(direction: str, jfsd: Client, juicefs: Client) -> tuple[Client, Client]:
    return (jfsd, juicefs) if direction == "ours-first" else (juicefs, jfsd)


BOTH_WAYS = pytest.mark.parametrize("direction", ["ours-first", "theirs-first"])


@BOTH_WAYS
@pytest.mark.parametrize("variant", FORMATS)
def test_a_volume_of_the_other(
    variant: str,
    direction: str,
    new_volume: Callable[..., Volume],
    jfsd: Jfsd,
    juicefs: JuiceFS,
    rsa_key: Path,
) -> None:
    first, second = pair(direction, jfsd, juicefs)
    flags = [str(rsa_key) if f == "KEY" else f for f in FORMATS[variant]]
    volume = new_volume(*flags, by=first)
    one = volume.mount(client=first)
    (one.path / "top/tree").mkdir(parents=True)
    make_every_type(one.path / "top/tree", acl=variant in ACL)
    before = snapshot(one.path / "top", times=True, roots_too=True)
    one.unmount()

    two = volume.mount(client=second)
    assert_same(snapshot(two.path / "top", times=True, roots_too=True), before)
    change(two.path / "top/tree")
    (two.path / "top/more").mkdir()
    make_every_type(two.path / "top/more", seed=2, acl=variant in ACL, largest=100_000)
    after = names_counted(two.path / "top")
    two.unmount()
    volume.check()

    again = volume.mount(client=first)
    assert_same(names_counted(again.path / "top"), after)
    shutil.rmtree(again.path / "top/tree")
    again.unmount()
    volume.check()
    tree = juicefs.dump(volume.meta_url)["FSTree"]["entries"]
    assert set(tree) == {"top"}
    assert set(tree["top"]["entries"]) == {"more"}


def names_counted(top: Path) -> dict[bytes, Node]:
    """A snapshot in which a file has as many links as names.

    The reference counts links that lie in the trash, too; we do not.
    """
    tree = snapshot(top, times=True, roots_too=True)
    return {
        name: node if node.kind == "directory" else node._replace(nlink=max(1, len(node.links)))
        for name, node in tree.items()
    }


def change(top: Path) -> None:
    """Change what the other program made, in every way that leaves a trace in the format."""
    with open(top / "file100000", "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"overwritten", 50_000)
        os.pwrite(file.fileno(), b"appended", 100_000)
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 1000, 5000)
    os.truncate(top / "file9000001", 5 << 20)
    os.truncate(top / "file9000001", 6 << 20)
    with open(top / "file4194304", "r+b", buffering=0) as source, open(top / "copy", "wb") as copy:
        os.copy_file_range(source.fileno(), copy.fileno(), 3 << 20, 1 << 20, 0)
    os.rename(top / "dir/sub", top / "moved")
    os.rename(top / "file0", top / "dir/small1")
    os.unlink(top / "dir/hard")
    os.link(top / "file1", top / "hard1")
    os.unlink(top / "dangling")
    os.chmod(top / "moved", 0o700)
    os.chown(top / "file1", 77, 78)
    os.setxattr(top / "file1", b"user.new", b"value")
    os.removexattr(top / "file1", b"user.a")
    os.symlink("changed", top / "newlink")


@BOTH_WAYS
def test_trash_is_common(
    direction: str, new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    """What one removes, the other lists in the trash, under the same name, and restores."""
    first, second = pair(direction, jfsd, juicefs)
    volume = new_volume("file", "--trash-days", "1", by=first)
    one = volume.mount(client=first)
    (one.path / "d").mkdir()
    (one.path / "d/f").write_bytes(b"precious")
    os.link(one.path / "d/f", one.path / "hard")
    long = "n" * 255
    (one.path / "d" / long).write_bytes(b"long")
    inode = os.stat(one.path / "d/f").st_ino
    parent = os.stat(one.path / "d").st_ino
    os.unlink(one.path / "d/f")
    os.unlink(one.path / "hard")
    os.unlink(one.path / "d" / long)
    os.rmdir(one.path / "d")
    one.unmount()
    two = volume.mount(client=second)
    [hour] = os.listdir(two.path / ".trash")
    names = os.listdir(two.path / ".trash" / hour)
    assert f"{parent}-{inode}-f" in names
    assert f"1-{inode}-hard" in names
    assert f"1-{parent}-d" in names
    assert len([n for n in names if n.endswith("nnn") and len(n) == 255]) == 1
    os.rename(two.path / ".trash" / hour / f"{parent}-{inode}-f", two.path / "back")
    assert (two.path / "back").read_bytes() == b"precious"
    two.unmount()
    three = volume.mount(client=first)
    assert (three.path / "back").read_bytes() == b"precious"
    three.unmount()
    volume.check()


@BOTH_WAYS
def test_quotas_are_common(
    direction: str, new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    """A directory's quota: used by one, honoured by the other, right in `quota check`."""
    first, second = pair(direction, jfsd, juicefs)
    volume = new_volume("file", by=first)
    one = volume.mount(client=first)
    (one.path / "q/sub").mkdir(parents=True)
    (one.path / "q/sub/f").write_bytes(b"x" * 100_000)
    (one.path / "elsewhere").write_bytes(b"x" * 5000)
    one.unmount()
    juicefs.quota("set", volume.meta_url, "--path", "/q", "--capacity", "1", "--inodes", "10")
    two = volume.mount(client=second)
    for index in range(5):
        (two.path / f"q/sub/{index}").write_bytes(b"y" * 10_000)
    os.rename(two.path / "elsewhere", two.path / "q/elsewhere")
    os.unlink(two.path / "q/sub/f")
    failed = 0
    for index in range(10):
        outcome = attempt(os.mkdir, two.path / f"q/d{index}")
        assert outcome.error in (None, "EDQUOT")
        failed += outcome.error is not None
    assert failed >= 6
    two.unmount()
    report = juicefs.quota("check", volume.meta_url, "--path", "/q", "--strict")
    assert "<WARNING>: quota" not in report
    assert "inconsistent" not in report.lower()
    volume.check()


def test_the_reference_knows_our_sessions(
    new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    volume = new_volume("file", by=jfsd)
    one = volume.mount(client=jfsd)
    two = volume.mount(client=juicefs)
    for client in (jfsd, juicefs):
        sessions = client.status(volume.meta_url)["Sessions"]
        assert {s["MountPoint"] for s in sessions} == {str(one.path), str(two.path)}
    two.unmount()
    one.unmount()
    assert not jfsd.status(volume.meta_url)["Sessions"]
    assert not juicefs.status(volume.meta_url)["Sessions"]


@BOTH_WAYS
def test_many_small_writes_are_compacted_by_either(
    direction: str, new_volume: Callable[..., Volume], jfsd: Jfsd, juicefs: JuiceFS
) -> None:
    first, second = pair(direction, jfsd, juicefs)
    volume = new_volume("file", by=first)
    one = volume.mount(client=first)
    expected = bytearray(1 << 20)
    fd = os.open(one.path / "f", os.O_CREAT | os.O_RDWR)
    for index in range(150):
        at = index * 7919 % (1 << 20)
        data = os.urandom(min(3000, (1 << 20) - at))
        expected[at : at + len(data)] = data
        os.pwrite(fd, data, at)
        os.fsync(fd)
    os.ftruncate(fd, 1 << 20)
    os.close(fd)
    two = volume.mount(client=second)
    assert (two.path / "f").read_bytes() == expected
    with open(two.path / "f", "r+b", buffering=0) as file:
        for index in range(120):
            os.pwrite(file.fileno(), b"second", index * 5000)
            expected[index * 5000 : index * 5000 + 6] = b"second"
            os.fsync(file.fileno())
    assert (one.path / "f").read_bytes() == expected
    two.unmount()
    one.unmount()
    juicefs.gc(volume.meta_url, "--compact", "--delete")
    three = volume.mount(client=jfsd)
    assert (three.path / "f").read_bytes() == expected
    three.unmount()
    volume.check()


@pytest.fixture
def cluster(bed: Session) -> Iterator[RedisServer]:
    """A Redis cluster that has one node."""
    [port] = free_ports(1, also_plus=10000)
    server = RedisServer(bed, port=port)
    yield server
    server.service.kill()


@BOTH_WAYS
def test_a_cluster_of_one_node(
    direction: str,
    cluster: RedisServer,
    new_volume: Callable[..., Volume],
    jfsd: Jfsd,
    juicefs: JuiceFS,
) -> None:
    """Every key carries the prefix `{db}`; both programs find the same volume behind it."""
    first, second = pair(direction, jfsd, juicefs)
    volume = new_volume("file", by=first, redis=cluster)
    assert volume.meta_url.endswith("/0")
    one = volume.mount(client=first)
    (one.path / "tree").mkdir()
    make_every_type(one.path / "tree", largest=5000)
    before = snapshot(one.path / "tree", times=True)
    two = volume.mount(client=second)
    assert_same(snapshot(two.path / "tree", times=True), before)
    two.unmount()
    one.unmount()
    with cluster.client() as client:
        keys = client.keys()
    assert keys
    assert all(k.startswith(b"{0}") for k in keys), keys[:10]
    juicefs.fsck(volume.meta_url)
