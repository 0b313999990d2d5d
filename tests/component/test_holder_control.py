"""Who may ask a holder, what it hands out, and what it does with nonsense."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from support.holding import MOUNTPOINT, alive, held
from support.session import wait_until

from jfsd.daemon.holder_link import HolderClient
from jfsd.daemon.holder_place import HolderError, Place
from jfsd.daemon.holder_store import MAX_KEPT
from jfsd.errors import RefusedError
from jfsd.systemd.notify import Notifier

pytestmark = pytest.mark.timeout(60)

ALL = {"arena": 1, "state": 1, "fuse": 1}
NOBODY = 65534


@pytest.fixture
def bench(monkeypatch):
    yield from held(monkeypatch)


def as_nobody(code, *arguments):
    """Run Python as another user; return what it printed."""
    python = ["/usr/bin/python3", "-I", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *python],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


CONNECT = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
try:
    s.send(sys.argv[2].encode())
    message, fds, _, _ = socket.recv_fds(s, 65536, 16)
    print("got", message, fds)
except (ConnectionResetError, BrokenPipeError):
    print("got", b"", [])
"""

NOTIFY = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
fd = os.memfd_create("planted")
s.connect(sys.argv[1])
socket.send_fds(s, [sys.argv[2].encode()], [fd])
print("sent")
"""


def open_up(bench):
    """Take away what keeps others from even reaching the sockets."""
    for path in (bench.root, bench.runtime, bench.place.directory):
        path.chmod(0o755)
    for path in (bench.place.control, bench.place.notify):
        path.chmod(0o777)


def close_down(bench):
    for path in (bench.runtime, bench.place.directory):
        path.chmod(0o700)


def settled(bench):
    """Return how many descriptors the holder has open, its server's guard among them."""
    wait_until(lambda: [e[0] for e in bench.journal()].count("pushed") == 2, 5, "the guard")
    (holder,) = bench.holders
    counts = [-1]
    while len(set(counts[-8:])) != 1 or len(counts) < 8:  # until hang-ups have been seen
        counts.append(open_fds(holder))
        time.sleep(0.01)
    return counts[-1]


def open_fds(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.promise(18)
def test_nobody_else_reaches_the_sockets(bench):
    bench.start()
    assert bench.place.directory.stat().st_mode & 0o777 == 0o700
    assert bench.place.control.stat().st_mode & 0o777 == 0o600
    assert bench.place.notify.stat().st_mode & 0o777 == 0o600
    assert bench.place.log.stat().st_mode & 0o777 == 0o600
    bench.root.chmod(0o755)
    assert "PermissionError" in as_nobody(CONNECT, bench.place.control, "{}")


@pytest.mark.promise(18)
@pytest.mark.parametrize("request_", ["descriptors", "stop", "status", "guard"])
def test_another_user_at_the_control_socket_gets_nothing(bench, request_):
    started = bench.start()
    open_up(bench)
    said = as_nobody(CONNECT, bench.place.control, json.dumps({"do": request_}))
    close_down(bench)
    assert said == "got b'' []"  # hung up
    assert bench.status()["descriptors"] == ALL
    assert alive(started.server)


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    "message", ["FDSTOREREMOVE=1\nFDNAME=fuse", "FDSTORE=1\nFDNAME=state", "MAINPID=1", "BARRIER=1"]
)
def test_another_user_at_the_notify_socket_is_not_heard(bench, message):
    started = bench.start()
    before = settled(bench)
    open_up(bench)
    assert as_nobody(NOTIFY, bench.place.notify, message) == "sent"
    close_down(bench)
    status = bench.status()
    assert status["descriptors"] == ALL
    assert status["server"]["pid"] == started.server
    wait_until(lambda: open_fds(started.holder) == before, 3, "what came along is closed")


@pytest.mark.promise(18)
def test_another_user_is_not_heard_as_a_child_of_the_server_either(bench):
    code = """
import os, socket, sys
path = os.environ["NOTIFY_SOCKET"]
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.connect(path)
if os.fork() == 0:
    os.setuid(65534)
    socket.send_fds(sender, [b"FDSTORE=1\\nFDNAME=planted"], [os.memfd_create("planted")])
    os._exit(0)
os.wait()
os.execv(sys.argv[1], sys.argv[1:])
"""
    started = bench.start(argv=[sys.executable, "-c", code, *bench.argv])
    assert bench.status()["descriptors"] == ALL
    assert f"of user {NOBODY} is ignored" in bench.place.log.read_text()
    assert alive(started.server)


@pytest.mark.promise(18)
def test_our_own_user_is_not_heard_from_outside_the_server(bench):
    """A stray process with NOTIFY_SOCKET in its environment must not end the mount."""
    started = bench.start()
    outsider = Notifier(str(bench.place.notify))
    assert outsider.remove("fuse")
    assert outsider.main_pid(os.getpid())
    assert outsider.stopping()
    outsider.close()
    status = bench.status()
    assert status["descriptors"] == ALL
    assert status["server"]["pid"] == started.server


@pytest.mark.promise(18)
def test_only_the_server_may_stand_guard(bench):
    bench.start()
    with bench.ask() as holder, pytest.raises(HolderError, match="is not the server"):
        holder.ask({"do": "guard"})


def test_descriptors_handed_out_are_duplicates(bench):
    started = bench.start()
    for _ in range(3):
        with bench.ask() as holder:
            kept = dict(holder.descriptors())
        assert sorted(kept) == ["arena", "fuse", "state"]
        assert not any(os.get_inheritable(fd) for fd in kept.values())
        os.eventfd_write(kept["fuse"], 1)
        for fd in kept.values():
            os.close(fd)
    with bench.ask() as holder:
        assert holder.status()["descriptors"] == ALL
        kept = dict(holder.descriptors())
    assert os.eventfd_read(kept["fuse"]) == 3  # one and the same open file
    for fd in kept.values():
        os.close(fd)
    assert alive(started.server)


def test_what_is_kept_already_is_not_kept_twice(bench):
    bench.start()
    with bench.ask() as holder:
        kept = dict(holder.descriptors())
        for name, fd in kept.items():
            holder.hold(name, [fd, os.dup(fd)])
            holder.hold("other", [fd])
        assert holder.status()["descriptors"] == ALL
    for fd in kept.values():
        os.close(fd)


def test_a_leaking_server_fills_the_store_and_not_the_holder(bench):
    started = bench.start()
    fds = [os.memfd_create("leak") for _ in range(MAX_KEPT + 20)]
    with bench.ask() as holder:
        holder.hold("leak", fds)
        assert sum(holder.status()["descriptors"].values()) == MAX_KEPT
    assert open_fds(started.holder) < MAX_KEPT + 20
    for fd in fds:
        os.close(fd)


def test_a_holder_filled_by_hand_starts_a_server(bench):
    """So that one holder can be replaced by another without the server's help."""
    bench.start()
    with bench.ask() as holder:
        kept = holder.descriptors()
        former = holder.status()["server"]["pid"]
        holder_pid = holder.pid
    os.kill(holder_pid, 9)
    os.kill(former, 9)
    started = bench.start(1.0, adopt=True, listening=True)
    with bench.ask() as holder:
        for name, fd in kept:
            holder.hold(name, [fd])
            os.close(fd)
    assert started.server == 0
    now = bench.server()
    assert now != former
    assert len([e for e in bench.journal() if e[0] == "mounted"]) == 1


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"do": "dance"}',
        b'{"do": ["status"]}',
        b'{"do": "upgrade"}',
        b'{"do": "upgrade", "argv": [], "env": {}}',
        b'{"do": "upgrade", "argv": ["a\\u0000b"], "env": {}}',
        b'{"do": "upgrade", "argv": [1], "env": {}}',
        b'{"do": "upgrade", "argv": ["x"], "env": {"a": 1}}',
        b'{"do": "restart", "drain_s": "soon"}',
        b'{"do": "restart", "drain_s": NaN}',
        b'{"do": "restart", "drain_s": -1}',
        b'{"do": "hold"}',
        b'{"do": "hold", "name": "a:b"}',
        b"\xff" * 10,
        b"x" * 200_000,
    ],
)
def test_nonsense_is_answered_and_changes_nothing(bench, message):
    started = bench.start()
    before = settled(bench)
    planted = os.memfd_create("planted")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(5)
        connection.connect(str(bench.place.control))
        socket.send_fds(connection, [message], [planted])
        answer = json.loads(connection.recv(65536))
        assert answer["ok"] is False
        assert answer["error"]
    os.close(planted)
    assert bench.server() == started.server
    wait_until(lambda: open_fds(started.holder) == before, 3, "nothing leaks")


@pytest.mark.parametrize(
    "message",
    ["", "=", "\n\n", "MAINPID=x", "MAINPID=-1", "MAINPID=999999999", "EXTEND_TIMEOUT_USEC=x",
     "WATCHDOG_USEC=x", "FDSTOREREMOVE=1", "FDSTORE=1", "\udcff=\udcff"],
)  # fmt: skip
def test_nonsense_of_the_server_changes_nothing(bench, message):
    """Said by a child of the holder's: the fake server's shell."""
    code = (
        "import os, sys; from jfsd.systemd.notify import Notifier;"
        "n = Notifier.from_environ(); n.send(os.fsdecode(bytes.fromhex(sys.argv[1])));"
        "assert n.barrier(5); os.execv(sys.argv[2], sys.argv[2:])"
    )
    raw = os.fsencode(message).hex()
    started = bench.start(argv=[sys.executable, "-c", code, raw, *bench.argv])
    assert bench.status()["descriptors"] == ALL
    assert alive(started.server)
    assert "unforeseen" not in bench.place.log.read_text()


def test_clients_that_never_read_or_never_speak_disturb_nobody(bench):
    started = bench.start()
    idle = []
    for _ in range(80):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        idle.append(connection)
        try:
            connection.connect(str(bench.place.control))
            for _ in range(200):
                connection.send(b'{"do": "status"}')
        except OSError:
            continue
    began = time.monotonic()
    os.kill(started.server, 9)
    wait_until(
        lambda: len([e for e in bench.journal() if e[0] == "ready"]) == 2, 5, "the next server"
    )
    assert time.monotonic() - began < 4
    for connection in idle:
        connection.close()
    wait_until(lambda: open_fds(started.holder) < 30, 5, "they are let go")


def test_a_mount_point_with_a_long_name_has_a_holder_too(bench):
    names = {Place.of("/mnt/" + "long/" * 60 + last).directory for last in ("a", "b")}
    assert len(names) == 2
    for directory in names:
        assert len(str(directory / "control")) <= 107


def test_a_runtime_directory_with_a_long_name_is_refused(monkeypatch):
    monkeypatch.setenv("JFSD_RUNTIME_DIR", "/tmp/" + "x" * 100)
    with pytest.raises(RefusedError, match="too long a path"):
        Place.of(MOUNTPOINT)


@pytest.mark.promise(18)
def test_a_runtime_directory_of_others_is_refused(bench):
    bench.runtime.mkdir(mode=0o755)
    with pytest.raises(RefusedError, match="must belong to"):
        bench.start()
    bench.runtime.chmod(0o700)


@pytest.mark.promise(18)
def test_a_planted_log_is_not_followed(bench):
    bench.runtime.mkdir(mode=0o700)
    bench.place.log.symlink_to(bench.root / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        bench.start()
    assert not (bench.root / "victim").exists()
    bench.place.log.unlink()


def test_there_is_no_holder(bench):
    assert HolderClient.find(MOUNTPOINT) is None
