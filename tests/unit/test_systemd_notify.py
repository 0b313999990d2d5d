"""The notifier: its words, its descriptors, and that it never hangs with its listener."""

import array
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from systemd import daemon as reference

from jfsd.systemd.notify import Notifier


@pytest.fixture(params=["path", "abstract", "long"])
def address(request, tmp_path):
    if request.param == "abstract":
        return f"@jfsd-test-{os.getpid()}-{time.monotonic_ns()}"
    if request.param == "long":
        deep = tmp_path / ("d" * 120)
        deep.mkdir()
        return str(deep / "notify")
    return str(tmp_path / "n")


@pytest.fixture
def speak():
    """Notifiers that are closed at the end."""
    made = []

    def make(address=None, environ=None):
        made.append(Notifier(address) if environ is None else Notifier.from_environ(environ))
        return made[-1]

    yield make
    for notifier in made:
        notifier.close()


def cpu_ticks(pid):
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().split()[13:15]))


def listen(address):
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(5)
    if address.startswith("@"):
        listener.bind("\0" + address[1:])
    else:
        directory, name = os.path.split(address)
        fd = os.open(directory, os.O_PATH)
        listener.bind(f"/proc/self/fd/{fd}/{name}")
        os.close(fd)
    return listener


def receive(listener):
    message, ancillary, _, _ = listener.recvmsg(65536, socket.CMSG_SPACE(1024))
    fds = array.array("i")
    for _level, _kind, raw in ancillary:
        fds.frombytes(raw)
    return message.decode(), list(fds)


@pytest.mark.parametrize(
    ("say", "heard"),
    [
        (lambda n: n.ready(), "READY=1"),
        (lambda n: n.ready("up\nand well"), "READY=1\nSTATUS=up and well"),
        (lambda n: n.status("x\ny"), "STATUS=x y"),
        (lambda n: n.stopping(), "STOPPING=1"),
        (lambda n: n.watchdog(), "WATCHDOG=1"),
        (lambda n: n.extend_timeout(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
        (lambda n: n.main_pid(17), "MAINPID=17"),
        (lambda n: n.remove("arena"), "FDSTOREREMOVE=1\nFDNAME=arena"),
    ],
)
def test_each_word_as_sd_notify_has_it(tmp_path, say, heard, speak):
    with listen(str(tmp_path / "n")) as listener:
        assert say(speak(str(tmp_path / "n"))) is True
        assert receive(listener) == (heard, [])


def test_every_kind_of_address(address, speak):
    with listen(address) as listener:
        assert speak(environ={"NOTIFY_SOCKET": address}).ready()
        assert receive(listener)[0] == "READY=1"


def test_a_reload_says_when_it_began(tmp_path, speak):
    with listen(str(tmp_path / "n")) as listener:
        before = time.monotonic_ns() // 1000
        speak(str(tmp_path / "n")).reloading()
        first, second = receive(listener)[0].split("\n")
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_descriptors_travel_with_their_name_as_systemd_python_sends_them(tmp_path, speak):
    path = str(tmp_path / "n")
    memory = os.memfd_create("m")
    os.write(memory, b"kept")
    with listen(path) as listener:
        assert speak(path).store("state", memory, memory)
        text, fds = receive(listener)
        env = {**os.environ, "NOTIFY_SOCKET": path}
        code = (
            "import sys; from systemd import daemon;"
            f"daemon.notify('FDSTORE=1\\nFDNAME=state\\nFDPOLL=0', fds=[{memory}, {memory}])"
        )
        subprocess.run([sys.executable, "-c", code], env=env, pass_fds=[memory], check=True)
        assert receive(listener)[0] == text
    assert len(fds) == 2
    assert [os.pread(fd, 4, 0) for fd in fds] == [b"kept"] * 2
    for fd in [memory, *fds]:
        os.close(fd)


@pytest.mark.parametrize("name", ["", "a:b", "x" * 256, "a\nb", "é"])
def test_a_name_that_cannot_be_kept_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        Notifier("/nowhere").store(name, 0)


def test_nobody_to_tell():
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier.from_environ(environ)
        assert not notifier.enabled
        assert notifier.ready() is False
        assert notifier.store("x", 0) is False
        assert notifier.barrier(5) is False


def test_a_listener_that_is_gone_is_no_error(tmp_path, speak):
    path = str(tmp_path / "n")
    assert speak(path).ready() is False
    listen(path).close()
    assert speak(path).ready() is False


def test_the_notifier_finds_a_listener_that_came_back(tmp_path, speak):
    path = str(tmp_path / "n")
    notifier = speak(path)
    with listen(path):
        assert notifier.ready()
    assert not notifier.ready()
    os.unlink(path)
    with listen(path) as listener:
        assert notifier.ready()
        assert receive(listener)[0] == "READY=1"
    notifier.close()


@pytest.mark.timeout(20)
def test_a_listener_that_does_not_read_delays_but_never_hangs(tmp_path, speak):
    path = str(tmp_path / "n")
    notifier = speak(path)
    with listen(path):
        began = time.monotonic()
        while notifier.watchdog():  # until its queue is full
            assert time.monotonic() - began < 5
        began = time.monotonic()
        assert notifier.watchdog() is False
        assert notifier.status("x") is False
        assert time.monotonic() - began < 0.5
        began, cpu = time.monotonic(), time.process_time()
        assert notifier.stopping() is False
        assert 1 < time.monotonic() - began < 4
        assert time.process_time() - cpu < 0.5  # it slept


def test_what_must_arrive_waits_for_room(tmp_path, speak):
    path = str(tmp_path / "n")
    notifier = speak(path)
    with listen(path) as listener:
        while notifier.watchdog():
            pass
        reader = threading.Timer(0.2, lambda: receive(listener))
        reader.start()
        assert notifier.stopping() is True
        reader.join()


def test_a_barrier_ends_when_its_descriptor_is_closed(tmp_path, speak):
    path = str(tmp_path / "n")
    with listen(path) as listener:

        def dismiss():
            text, fds = receive(listener)
            assert text == "BARRIER=1"
            time.sleep(0.1)
            for fd in fds:
                os.close(fd)

        thread = threading.Thread(target=dismiss)
        thread.start()
        began = time.monotonic()
        assert speak(path).barrier(5) is True
        assert 0.05 < time.monotonic() - began < 2
        thread.join()


def test_a_barrier_that_nobody_lifts(tmp_path, speak):
    path = str(tmp_path / "n")
    before = set(os.listdir("/proc/self/fd"))
    notifier = speak(path)
    with listen(path):
        assert notifier.barrier(0.1) is False
    notifier.close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_patience(environ, interval_s):
    assert Notifier.from_environ(environ).watchdog_interval_s == interval_s


def test_systemds_own_sender_waits_without_limit(tmp_path):
    """Why there is a notifier of our own; if this fails, systemd-python could serve."""
    path = str(tmp_path / "n")
    with listen(path):
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from systemd import daemon\nwhile True: daemon.notify('WATCHDOG=1')",
            ],
            env={**os.environ, "NOTIFY_SOCKET": path},
        )
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(1)
            cpu = cpu_ticks(child.pid)
            time.sleep(0.3)
            assert cpu_ticks(child.pid) == cpu
        finally:
            child.kill()
            child.wait()
    assert reference.notify("READY=1") is False
