"""What a mount says of itself: metrics, stats, profile, and its virtual files."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clients import Jfsd
from support.session import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.clients import JuiceFS, Mounted
    from support.session import Session
    from support.volume import Volume

KEEPER = Path(__file__).parents[1] / "support" / "keeper.py"
LOG_LINE = re.compile(
    r"\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d\.\d{6} \[uid:\d+,gid:\d+,pid:\d+\] (\w+) \((.*)\)"
    r" - (.+) <\d+\.\d{6}>"
)

pytestmark = [pytest.mark.jfsd_only, pytest.mark.promise(20)]


@pytest.fixture
def mount_kept(new_volume: Callable[..., Volume], bed: Session) -> Callable[..., Mounted]:
    """Mounts a volume so that a keeper has its descriptors."""

    def mount(*flags: str) -> Mounted:
        client = Jfsd(bed)
        client.extra_env["JFSD_KEPT"] = str(client.binary)
        client.binary = str(KEEPER)
        mounted = new_volume("file").mount(*flags, client=client)
        client.binary = client.extra_env["JFSD_KEPT"]
        return mounted

    return mount


def scraped(address: str) -> dict[str, float]:
    """Return the samples that Prometheus would get, by name and labels but the common ones."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    if address.startswith("unix:"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(address.removeprefix("unix:"))
    else:
        connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert 'vol_name="' in name, line
            assert 'mp="' in name, line
            name = re.sub(r',?(mp|vol_name)="[^"]*"', "", name).replace("{,", "{")
            samples[name.replace("{}", "")] = float(value)
    return samples


def status(mounted: Mounted) -> dict:
    return json.loads(mounted.client.run("status", mounted.path).stdout)["Mount"]


def metrics_of(mounted: Mounted) -> dict[str, float]:
    return scraped(wait_until(lambda: status(mounted)["Metrics"], 30, "an address"))


def test_metrics_count_what_was_done(new_volume: Callable[..., Volume]) -> None:
    mounted = new_volume("file").mount()
    before = metrics_of(mounted)
    for number in range(3):
        (mounted.path / f"f{number}").write_bytes(bytes(10_000))
    with pytest.raises(FileNotFoundError):
        (mounted.path / "missing").stat()
    after = metrics_of(mounted)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('juicefs_fuse_ops_total{method="create"}') == 3
    assert grown('jfsd_fuse_request_seconds_count{method="create"}') == 3
    assert grown("juicefs_fuse_written_size_bytes_sum") == 30_000
    assert grown('juicefs_object_request_data_bytes{method="PUT"}') == 30_000
    assert grown('juicefs_object_request_durations_histogram_seconds_count{method="PUT"}') == 3
    assert grown('jfsd_fuse_errors_total{errno="ENOENT"}') >= 1
    assert grown('juicefs_meta_ops_total{method="mknod"}') >= 3
    assert grown("juicefs_meta_ops_durations_histogram_seconds_count") >= 6
    assert after["juicefs_memory"] > 1 << 20
    assert after['jfsd_starts_total{kind="start"}'] == 1
    mounted.unmount()


def test_a_second_mount_takes_another_port(new_volume: Callable[..., Volume]) -> None:
    volume = new_volume("file")
    one, two = volume.mount(), volume.mount()
    metrics_of(one), metrics_of(two)
    addresses = [status(each)["Metrics"] for each in (one, two)]
    assert addresses[0] != addresses[1]
    assert all(address.startswith("127.0.0.1:") for address in addresses)
    one.unmount()
    two.unmount()
    off = volume.mount("--metrics", "off")
    assert status(off)["Metrics"] == ""
    off.unmount()


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("by", "kind", "flags"),
    [
        (signal.SIGUSR2, "restart", ()),
        (signal.SIGKILL, "crash", ("--metrics", "unix:/tmp/jfsd-metrics-{pid}")),
    ],
    ids=["handover", "kill"],
)
def test_metrics_and_open_virtual_files_go_on_in_the_next_server(
    mount_kept: Callable[..., Mounted], by: int, kind: str, flags: tuple[str, ...]
) -> None:
    kept = mount_kept(*(flag.format(pid=os.getpid()) for flag in flags))
    address = wait_until(lambda: status(kept)["Metrics"], 30, "an address")
    assert scraped(address)['jfsd_starts_total{kind="start"}'] == 1
    log = os.open(kept.path / ".accesslog", os.O_RDONLY)
    stats = os.open(kept.path / ".stats", os.O_RDONLY)
    begun = os.read(stats, 100)
    assert len(begun) == 100
    os.kill(status(kept)["Pid"], by)
    wait_until(lambda: status(kept)["Generation"] == 2, 30, "generation 2")
    wait_until(lambda: status(kept)["Metrics"] == address, 30, "the same address")
    samples = scraped(address)
    assert samples['jfsd_starts_total{kind="start"}'] == 1
    assert samples[f'jfsd_starts_total{{kind="{kind}"}}'] == 1
    assert samples["jfsd_generation"] == 2

    def logged() -> bool:
        (kept.path / "after").touch()
        return b"(1,after," in os.read(log, 1 << 16)

    wait_until(logged, 30, "a line of the next server")
    assert os.read(stats, 1 << 20) == b""
    assert os.pread(stats, 8, 0) == b"juicefs_"
    os.close(log)
    os.close(stats)
    assert status(kept)["OpenFiles"] == 0
    kept.unmount()


def test_virtual_files_are_as_in_the_reference(work: Path, shared_mount: Mounted) -> None:
    top = shared_mount.path
    for name, number, mode in (
        (".accesslog", 1, 0o400),
        (".stats", 3, 0o444),
        (".config", 4, 0o400),
    ):
        found = (top / name).stat()
        assert found.st_ino == 0x7FFFFFFF00000000 + number
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, 0)
    shown = json.loads((top / ".config").read_text())
    assert shown["Mountpoint"] == str(top)
    assert (
        shown["Format"]["UUID"] == shared_mount.volume.uuid
        if hasattr(shared_mount, "volume")
        else 1
    )
    numbers = dict(line.split() for line in (top / ".stats").read_text().splitlines())
    assert float(numbers["juicefs_fuse_ops_durations_histogram_seconds_total"]) > 0
    assert not (work / ".stats").exists()
    assert not any(name in os.listdir(top) for name in (".stats", ".config", ".accesslog"))


def test_virtual_files_cannot_be_changed(work: Path, shared_mount: Mounted) -> None:
    file = shared_mount.path / ".stats"
    for refused in (
        lambda: file.open("wb"),
        lambda: file.chmod(0o666),
        lambda: os.truncate(file, 0),
        file.unlink,
        lambda: file.rename(work / "x"),
        lambda: os.link(file, work / "x"),
        lambda: os.setxattr(file, "user.a", b"1"),
    ):
        with pytest.raises(PermissionError):
            refused()
    assert os.listxattr(file) == []
    with file.open("rb") as opened, pytest.raises(PermissionError):
        fcntl.lockf(opened, fcntl.LOCK_SH)
    with (work / "copy").open("wb") as copy, file.open("rb") as opened:
        copy.write(opened.read())
    assert (work / "copy").stat().st_size > 100


def test_the_access_log_tells_each_request(work: Path, shared_mount: Mounted) -> None:
    log = os.open(shared_mount.path / ".accesslog", os.O_RDONLY)
    assert os.read(log, 1 << 16) == b"#\n"
    odd = "a\nb c"
    (work / odd).write_bytes(b"12345")
    with pytest.raises(FileNotFoundError):
        (work / "none").stat()
    said = b""
    while b"none" not in said:
        said += os.read(log, 1 << 16)
    os.close(log)
    lines = [line for line in said.decode().splitlines() if line != "#"]
    parsed = [LOG_LINE.fullmatch(line) for line in lines]
    assert all(parsed), lines
    told = [(m[1], m[2], m[3]) for m in parsed]
    here = work.stat().st_ino
    ino = (work / odd).stat().st_ino
    assert any(m == "create" and a.startswith(f"{here},a\\nb c,") for m, a, _ in told)
    assert any(m == "write" and a.startswith(f"{ino},5,0,") and r == "OK" for m, a, r in told)
    assert ("lookup", f"{here},none", "No such file or directory") in told
    assert f"pid:{os.getpid()}]" in said.decode()


@contextmanager
def busy(work: Path) -> Iterator[None]:
    """Have a file written again and again while the block runs."""
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.001):
            (work / "f").write_bytes(bytes(5000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_stats_and_profile_show_what_programs_do(shared_mount: Mounted, work: Path) -> None:
    run = shared_mount.client.run
    with busy(work):
        said = run("stats", shared_mount.path, "--interval", "500ms", "--count", "2").stdout
        first, second, *rows = said.splitlines()
        assert first.startswith("-------usage")
        assert "ops" in second
        assert len(rows) == 2
        assert all(len(row.split("|")) == 5 for row in rows)
        assert all(int(row.split("|")[1].split()[0]) > 0 for row in rows)
        argv = ("profile", shared_mount.path, "--interval", "500ms", "--count", "1")
        table = run(*argv).stdout
        assert re.search(r"^write +\d+ +\d+ +\d+ +\d+\.\d$", table, re.MULTILINE), table
        others = run(*argv, "--uid", "12345").stdout
        assert "write" not in others


@pytest.mark.promise(14)
def test_the_reference_can_watch_our_mount(
    shared_mount: Mounted, work: Path, juicefs: JuiceFS
) -> None:
    """`juicefs stats` reads `.stats`; `juicefs profile` the lines of `.accesslog`."""
    with busy(work):
        said = juicefs.run("stats", shared_mount.path, "--interval", "1", "--count", "2").stdout
    row = said.splitlines()[-1].split("|")
    assert float(row[1].split()[0]) > 0, said  # requests of the kernel in a second


@pytest.mark.promise(16)
@pytest.mark.parametrize("address", ["0.0.0.0:9567", "192.0.2.1:80", "nonsense", "unix:relative"])
def test_other_addresses_are_refused_in_one_line(jfsd: Jfsd, tmp_path: Path, address: str) -> None:
    done = jfsd.run("mount", "--metrics", address, "redis://localhost:1", tmp_path, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert address in line
    assert "off" in line


def test_a_reader_that_does_not_read_stops_nobody(shared_mount: Mounted, work: Path) -> None:
    reader = subprocess.Popen(["cat", shared_mount.path / ".accesslog"], stdout=subprocess.PIPE)
    assert reader.stdout.readline()
    for _ in range(150):  # more than a pipe holds
        (work / "f").write_bytes(b"1")
    reader.kill()
    reader.wait()
    reader.stdout.close()
