"""`make run` does what it prints, and leaves nothing behind, however it ends."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from support.session import Service, clean_env, wait_until

RUN = Path(__file__).parents[1] / "demo" / "run.py"
SMALL = ["--files", "60", "--large-mib", "8", "--rounds", "1"]

pytestmark = pytest.mark.jfsd_only


@pytest.fixture
def scratch(bed):
    """A directory with a short path, in which the run makes its own; it must be empty again."""
    path = bed.directory("d")
    yield path
    assert list(path.iterdir()) == []


@pytest.fixture
def start(bed, scratch):
    """A function that starts a run; what it leaves running, the test bed reports."""

    def run(*arguments, **environment):
        env = clean_env(TMPDIR=str(scratch), **environment)
        log = bed.root / f"{scratch.name}.run"
        return Service(bed, [sys.executable, RUN, *arguments], log, env=env)

    return run


def announced(service, what):
    """Wait until the run says that it is doing something."""
    wait_until(lambda: what in service.log.read_text(), 60, what)
    time.sleep(0.3)


def test_a_run_verifies_twice_and_leaves_nothing(start):
    service = start(*SMALL)
    assert service.wait(100) == 0, service.tail()
    shown = service.log.read_text()
    assert "copy 63 files and links" in shown
    # Announced once and reported once, warm and cold.
    assert shown.count("verify checksums") == 4
    assert "OK: every file was read back as it was written, warm and cold" in shown
    for event in ("restart", "reload", "upgrade", "kill"):
        assert f"jfsd, {event} " in shown
    assert "juicefs, upgrade " in shown
    assert "0 errors, 0 files lost or changed, 0 operations done twice" in shown
    assert shown.rstrip().endswith("OK: no program noticed that its server was replaced")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(start, number):
    service = start("--files", "20000", "--large-mib", "64")
    announced(service, "copy ")
    service.signal(number)
    assert service.wait(60) == 128 + number, service.tail()
    assert "cleaning up" in service.tail()


def test_a_run_whose_daemon_dies_says_so_and_leaves_nothing(start, bed):
    service = start("--files", "20000", "--large-mib", "64")
    announced(service, "copy ")
    for pid in bed.request("descendants", pid=service.pid):
        if Path(f"/proc/{pid}/comm").read_text().strip() == "jfsd":
            bed.request("kill", pid=pid, sig=int(signal.SIGKILL), group=False)
    assert service.wait(60) == 1, service.tail()
    assert "FAILED: copy failed" in service.tail()


def test_a_run_without_redis_says_so_and_leaves_nothing(start, bed, scratch):
    programs = bed.directory("p")
    (programs / "redis-server").write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    (programs / "redis-server").chmod(0o755)
    service = start(*SMALL, PATH=f"{programs}:{os.environ['PATH']}")
    assert service.wait(60) == 1
    assert "FAILED: redis-server ended with 3: no such luck" in service.tail()
