"""The control socket: who is heard, what is answered, and servers that come and go."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jfsd.config.runtime import CONTROL, RECORD, place_of
from jfsd.daemon import control as control_module
from jfsd.daemon.control import Call, Control
from jfsd.daemon.control_client import NoServerError, ask
from jfsd.errors import ExitCode, JfsdError, RefusedError

PLACE = "/mnt/some place"


@pytest.fixture(autouse=True)
def runtime(monkeypatch, tmp_path):
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@asynccontextmanager
async def served(handlers, place=PLACE):
    control = Control(place)
    for verb, handler in handlers.items():
        control.on(verb, handler)
    control.start()
    try:
        yield control
    finally:
        await control.close()


async def asked(request, place=PLACE, **more):
    return await asyncio.to_thread(ask, place, request, **more)


async def echo(call: Call):
    return {"heard": call.request}


async def test_a_request_is_answered_after_its_progress():
    async def count(call):
        for number in range(3):
            await call.tell({"number": number})
        return {"sum": 3}

    told = []
    async with served({"count": count}):
        answer = await asked({"do": "count"}, on_progress=told.append)
    assert answer.result == {"sum": 3}
    assert [each["number"] for each in told] == [0, 1, 2]


async def test_the_socket_is_for_its_user_only_and_goes_with_the_server(runtime):
    async with served({}) as control:
        status = control.path.lstat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
        assert control.path == place_of(PLACE, CONTROL)
        assert control.path.with_suffix(RECORD) == place_of(PLACE, RECORD)
    assert list(runtime.iterdir()) == []


@pytest.mark.promise(18)
async def test_another_user_is_turned_away_before_anything_is_read(monkeypatch):
    """The mode of directory and socket keeps others out already; the peer is asked, too."""
    if os.geteuid():
        pytest.skip("needs root to become somebody else")
    directory = Path(tempfile.mkdtemp(dir="/tmp"))  # others cannot reach pytest's own, nor TMPDIR
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(directory))
    heard = []

    async def note(call):
        heard.append(call.request)
        return {}

    async with served({"note": note}) as control:
        directory.chmod(0o711)
        control.path.chmod(0o666)
        program = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
            "print(s.recv(1000).decode())"
        )
        done = await asyncio.to_thread(
            subprocess.run,
            ["/usr/bin/python3", "-c", program, str(control.path)],
            user=65534,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    directory.rmdir()
    assert json.loads(done.stdout)["code"] == ExitCode.NO_PRIVILEGE, done
    assert heard == []


@pytest.mark.parametrize("length", [10, 90, 107, 180, 250, 1000])
async def test_mount_points_of_any_length_have_a_socket(length):
    place = "/mnt/" + "x" * length
    async with served({"echo": echo}, place), served({"echo": echo}, place + "y") as other:
        assert (await asked({"do": "echo", "n": 1}, place)).result["heard"]["n"] == 1
        assert len(other.path.name) <= 255
        assert other.path != place_of(place, CONTROL)


async def test_a_long_runtime_directory_does_no_harm(monkeypatch, tmp_path):
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / ("d" * 200) / ("e" * 200)))
    async with served({"echo": echo}):
        assert (await asked({"do": "echo"})).result["heard"] == {"do": "echo"}


async def test_errors_arrive_as_they_were_raised():
    async def refuse(call):
        raise RefusedError(ExitCode.BUSY, "this", "cannot be", "wait")

    async def fail(call):
        error = JfsdError("broken")
        error.exit_code = ExitCode.STORE_UNREACHABLE
        raise error

    async with served({"refuse": refuse, "fail": fail}):
        with pytest.raises(RefusedError, match="this: cannot be; wait") as refused:
            await asked({"do": "refuse"})
        with pytest.raises(JfsdError, match="broken") as failed:
            await asked({"do": "fail"})
        with pytest.raises(RefusedError, match="'dance': is nothing") as unknown:
            await asked({"do": "dance"})
    assert (refused.value.exit_code, refused.value.mend) == (ExitCode.BUSY, "wait")
    assert failed.value.exit_code == ExitCode.STORE_UNREACHABLE
    assert unknown.value.exit_code == ExitCode.USAGE


async def test_a_bug_in_a_handler_is_told_and_logged_and_the_server_lives(caplog):
    async def bug(call):
        return {"x": 1 // 0}

    async with served({"bug": bug, "echo": echo}):
        with pytest.raises(JfsdError, match="ZeroDivisionError"):
            await asked({"do": "bug"})
        assert "Bug in the answer to 'bug'" in caplog.text
        assert (await asked({"do": "echo"})).result


@pytest.mark.parametrize("line", [b"\n", b"[]\n", b"{", b"\xff\xfe\n", b"x" * 70_000 + b"\n"])
async def test_nonsense_is_refused(line):
    async with served({"echo": echo}) as control:
        reader, writer = await asyncio.open_unix_connection(str(control.path))
        writer.write(line)
        writer.write_eof()
        answer = json.loads(await reader.readline())
        writer.close()
        assert answer["ok"] is False
        assert (await asked({"do": "echo"})).result


async def test_who_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(control_module, "_PATIENCE_S", 0.05)
    async with served({"echo": echo}) as control:
        reader, writer = await asyncio.open_unix_connection(str(control.path))
        assert await reader.read() == b""
        writer.close()


async def test_who_hangs_up_ends_what_it_asked_for():
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(call):
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    async with served({"wait": wait}) as control:
        _, writer = await asyncio.open_unix_connection(str(control.path))
        writer.write(b'{"do": "wait"}\n')
        await asyncio.wait_for(began.wait(), 20)
        writer.close()
        await asyncio.wait_for(ended.wait(), 20)


async def test_descriptors_come_with_the_answer(tmp_path):
    with (tmp_path / "f").open("w+") as file:
        file.write("content")
        file.flush()

        async def give(call):
            call.fds = (file.fileno(),)
            return {}

        async with served({"give": give}):
            (fd,) = (await asked({"do": "give"})).fds
        assert os.pread(fd, 100, 0) == b"content"
        assert not os.get_inheritable(fd)
        os.close(fd)
        assert file.fileno() >= 0


async def test_a_stale_socket_is_replaced():
    path = place_of(PLACE, CONTROL)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with served({"echo": echo}):
        assert (await asked({"do": "echo"})).result


@pytest.mark.promise(8)
async def test_the_next_server_replaces_the_socket_and_the_former_leaves_it_alone():
    async def number(call, n):
        return {"n": n}

    former = Control(PLACE)
    former.on("which", lambda call: number(call, 1))
    former.start()
    async with served({"which": lambda call: number(call, 2)}) as new:
        assert (await asked({"do": "which"})).result["n"] == 2
        await former.close()
        assert new.path.exists()
        assert (await asked({"do": "which"})).result["n"] == 2


@pytest.mark.promise(7)
async def test_a_command_outlives_its_server():
    """Its server goes in the middle of the answer; the next one is asked again."""
    began = asyncio.Event()

    async def forever(call):
        await call.tell({"from": 1})
        began.set()
        await asyncio.Event().wait()
        return {}

    async def quick(call):
        await call.tell({"from": 2})
        return {"done": True}

    told = []
    async with served({"work": forever}):
        command = asyncio.ensure_future(asked({"do": "work"}, on_progress=told.append))
        await asyncio.wait_for(began.wait(), 20)
    await asyncio.sleep(0.2)
    async with served({"work": quick}):
        assert (await command).result == {"done": True}
    assert [each["from"] for each in told] == [1, 2]


def test_without_a_server_the_command_says_so():
    with pytest.raises(NoServerError, match="no server of it answers") as refused:
        ask(PLACE, {"do": "echo"}, patience_s=0.1)
    assert refused.value.exit_code == ExitCode.NO_SERVER


async def test_a_server_that_is_silent_is_not_waited_for_for_ever():
    async def wait(call):
        await asyncio.Event().wait()
        return {}

    async with served({"wait": wait}):
        with pytest.raises(NoServerError, match="silent"):
            await asked({"do": "wait"}, silence_s=0.1)


async def test_too_many_at_once_are_turned_away(monkeypatch):
    monkeypatch.setattr(control_module, "MAX_CALLS", 1)

    async def wait(call):
        await call.tell({})
        await asyncio.Event().wait()
        return {}

    async with served({"wait": wait, "echo": echo}) as control:
        reader, writer = await asyncio.open_unix_connection(str(control.path))
        writer.write(b'{"do": "wait"}\n')
        await reader.readline()
        with pytest.raises(JfsdError, match="too many"):
            await asked({"do": "echo"})
        writer.close()


async def test_a_directory_of_somebody_elses_leaves_the_mount_without_commands(caplog, runtime):
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)
    async with served({"echo": echo}) as control:
        assert not control.path.exists()
    assert "commands cannot reach this server" in caplog.text


def test_the_client_is_quick_to_import():
    """`jfsd state` and the others must not load the server."""
    code = "import sys, jfsd.daemon.control_client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"asyncio", "uvloop", "pyfuse3", "redis"} & set(done.stdout.split())
    assert Path(control_module.__file__).exists()
