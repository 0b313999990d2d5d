"""What commands ask of a server that serves: drain, state, status."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.clients import Jfsd
from support.held import mount_held
from support.session import wait_until
from support.weed import WeedServer

from jfsd.config.runtime import CONTROL, escape
from jfsd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.clients import Mounted
    from support.session import Session
    from support.volume import Volume

KEEPER = Path(__file__).parents[1] / "support" / "keeper.py"

pytestmark = pytest.mark.jfsd_only


@pytest.fixture
def kept(new_volume: Callable[..., Volume], bed: Session) -> Mounted:
    """A mount whose descriptors are kept by a keeper."""
    client = Jfsd(bed)
    client.extra_env["JFSD_KEPT"] = str(client.binary)
    client.binary = str(KEEPER)
    volume = new_volume("file")
    mounted = volume.mount(client=client)
    client.binary = client.extra_env["JFSD_KEPT"]
    mounted.volume = volume
    return mounted


def shown(mounted: Mounted, verb: str) -> dict:
    return json.loads(mounted.client.run(verb, mounted.path).stdout)


@contextmanager
def written(path: Path, length: int) -> Iterator[None]:
    """Have a file open in another process, which wrote to it.

    Not in this one: commands that it starts would close, and so flush, the descriptor.
    """
    program = (
        f"f = open({str(path)!r}, 'wb', 0); f.write(bytes({length})); print(flush=True); input()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"\n"
    yield
    writer.communicate(b"\n", timeout=60)
    assert writer.returncode == 0


def socket_of(mounted: Mounted) -> Path:
    (runtime,) = [p.parent for p in Path("/run/jfsd").glob(escape(str(mounted.path)) + CONTROL)]
    return runtime / (escape(str(mounted.path)) + CONTROL)


@pytest.mark.promise(17)
def test_drain_stores_everything_while_programs_go_on(new_volume: Callable[..., Volume]) -> None:
    volume = new_volume("file")
    mounted = volume.mount()
    with written(mounted.path / "f", 5 << 20):
        done = mounted.client.run("drain", mounted.path)
        assert "stored" in done.stderr
        assert sum(path.stat().st_size for path in volume.kept_objects()) == 5 << 20
        assert shown(mounted, "status")["Mount"]["DirtyBytes"] == 0
    mounted.unmount()


@pytest.mark.promise(3)
@pytest.mark.promise(17)
def test_a_drain_that_is_not_done_in_time_says_so_and_loses_nothing(
    new_volume: Callable[..., Volume], bed: Session
) -> None:
    store = WeedServer(bed)
    mounted = new_volume("s3", store=store).mount()
    store.pause()
    with written(mounted.path / "f", 1 << 20):
        done = mounted.client.run("drain", "--timeout", "500ms", mounted.path, check=False)
        assert done.returncode == ExitCode.NOT_STORED
        (line,) = [each for each in done.stderr.splitlines() if "nothing is lost" in each]
        assert "1048576 bytes of 1 files" in line
        assert shown(mounted, "status")["Mount"]["DirtyFiles"] == 1
        state = shown(mounted, "state")
        assert [each["length"] for each in state["slices"]] == [1 << 20]
        assert state["arena"]["waiting_bytes"] == 1 << 20
        store.resume()
        mounted.client.run("drain", mounted.path)
        assert shown(mounted, "status")["Mount"]["DirtyFiles"] == 0
    assert (mounted.path / "f").read_bytes() == bytes(1 << 20)
    mounted.unmount()
    store.service.kill()


@pytest.mark.promise(17)
def test_status_shows_how_the_mount_is(new_volume: Callable[..., Volume]) -> None:
    volume = new_volume("file")
    mounted = volume.mount()
    with (mounted.path / "f").open("wb") as file:
        mount = shown(mounted, "status")["Mount"]
        file.write(b"x")
    assert mount["Pid"] == mounted.serving_pid()
    assert (mount["Generation"], mount["Phase"], mount["Keeper"]) == (1, "serving", "")
    assert mount["MountPoint"] == str(mounted.path)
    assert mount["Store"] == f"file {volume.storage.directory}/"
    assert mount["OpenFiles"] == 1
    assert mount["UptimeSeconds"] > 0
    assert mount["BufferUsedBytes"] <= mount["BufferBytes"] == 300 << 20
    mounted.unmount()


@pytest.mark.promise(18)
def test_the_socket_is_private_and_gone_with_the_mount(new_volume: Callable[..., Volume]) -> None:
    mounted = new_volume("file").mount()
    shown(mounted, "status")
    path = socket_of(mounted)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    mounted.unmount()
    assert not path.exists()


def test_commands_of_what_is_not_mounted_are_refused(jfsd: Jfsd, tmp_path: Path) -> None:
    for verb in ("drain", "state", "status"):
        done = jfsd.run(verb, tmp_path, check=False)
        assert done.returncode == ExitCode.NOT_MOUNTED
        (line,) = done.stderr.splitlines()
        assert str(tmp_path) in line


@pytest.mark.promise(2)
def test_the_state_shows_what_a_next_server_goes_on_with(kept: Mounted) -> None:
    with written(kept.path / "f", 100):
        shown_state = shown(kept, "state")
        assert shown_state["mountpoint"] == str(kept.path)
        (opened,) = shown_state["files"]
        assert opened["ino"] == (kept.path / "f").stat().st_ino
    assert shown(kept, "status")["Mount"]["Keeper"] == "another"
    kept.unmount()


@pytest.mark.promise(10)
def test_the_state_is_there_without_a_server(new_volume: Callable[..., Volume]) -> None:
    """The holder has it; a socket without anybody behind it does not matter."""
    held = mount_held(new_volume("file"))
    assert shown(held, "status")["Mount"]["Keeper"] == "holder"
    (held.client.runtime / (escape(str(held.path)) + CONTROL)).unlink()
    with written(held.path / "f", 10):
        state = shown(held, "state")
        assert [each["ino"] for each in state["files"]] == [(held.path / "f").stat().st_ino]
    assert state["arena"]["memory_bytes"] >= 0
    held.unmount()


@pytest.mark.promise(7)
@pytest.mark.parametrize("by", [signal.SIGUSR2, signal.SIGKILL], ids=["handover", "kill"])
def test_commands_follow_the_mount_from_server_to_server(kept: Mounted, by: int) -> None:
    former = shown(kept, "status")["Mount"]["Pid"]
    os.kill(former, by)
    wait_until(lambda: shown(kept, "status")["Mount"]["Generation"] == 2, 30, "generation 2")
    mount = shown(kept, "status")["Mount"]
    assert mount["Pid"] not in {0, former}
    assert shown(kept, "state")["generation"] == 2
    assert len(list(socket_of(kept).parent.glob(".*"))) == 0
    kept.unmount()


@pytest.mark.promise(8)
def test_a_drain_outlives_the_kill_of_its_server(
    new_volume: Callable[..., Volume], bed: Session, kept: Mounted
) -> None:
    """The command asks the next server, which goes on with the bytes of the arena."""
    with written(kept.path / "f", 3 << 20):
        argv = [kept.client.binary, "drain", str(kept.path)]
        pid = shown(kept, "status")["Mount"]["Pid"]
        command = subprocess.Popen(argv, stderr=subprocess.PIPE, env=kept.client.env())
        os.kill(pid, signal.SIGKILL)
        _, said = command.communicate(timeout=60)
        assert command.returncode == 0, said
        assert sum(p.stat().st_size for p in kept.volume.kept_objects()) == 3 << 20
    assert (kept.path / "f").read_bytes() == bytes(3 << 20)
    kept.unmount()


def test_a_server_that_does_not_answer_is_told_apart_from_none(
    new_volume: Callable[..., Volume],
) -> None:
    mounted = new_volume("file").mount()
    path = socket_of(mounted)
    path.unlink()
    mount = shown(mounted, "status")["Mount"]
    assert (mount["Pid"], mount["Phase"]) == (0, "no server")
    mounted.unmount()
