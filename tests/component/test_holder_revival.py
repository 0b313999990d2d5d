"""A holder is killed: the mount goes on, and a new holder is filled again."""

import contextlib
import os
import signal
import threading
import time

import pytest
from support.holding import alive, held, kill
from support.session import wait_until

from jfsd.daemon.holder_place import HeldError, HolderError

pytestmark = [pytest.mark.timeout(60), pytest.mark.promise(8)]

ALL = {"arena": 1, "state": 1, "fuse": 1}


@pytest.fixture
def bench(monkeypatch):
    yield from held(monkeypatch)


def filled(bench, former=0):
    """Return the status of the next holder, once it has everything."""

    def look():
        try:
            status = bench.status()
        except HolderError:
            return None
        complete = status["stage"] == "serving" and status["descriptors"] == ALL
        return status if complete and status["holder"] != former else None

    return wait_until(look, 10, "a holder that has everything")


def test_the_server_lives_on_and_has_a_new_holder_started(bench):
    started = bench.start(server={"FAKE_REVIVE": 1})
    kill(started.holder)
    status = filled(bench, started.holder)
    assert status["server"]["pid"] == started.server
    assert bench.pids() == {status["holder"], started.server}
    kill(started.server)
    after = bench.next_server(started.server)
    assert bench.status()["descriptors"] == ALL
    assert len([e for e in bench.journal() if e[0] == "mounted"]) == 1
    assert bench.pids() == {status["holder"], after}


def test_the_server_waits_for_a_holder_that_somebody_else_starts(bench):
    started = bench.start()
    kill(started.holder)
    time.sleep(0.3)
    again = bench.start(adopt=True)
    assert again.server == started.server
    assert filled(bench, started.holder)["server"]["pid"] == started.server
    kill(started.server)
    bench.next_server(started.server)
    assert len([e for e in bench.journal() if e[0] == "mounted"]) == 1


def test_holder_and_server_are_killed_in_turns(bench):
    bench.start(server={"FAKE_REVIVE": 1})
    for _ in range(5):
        status = filled(bench)
        kill(status["holder"])
        status = filled(bench, status["holder"])
        kill(status["server"]["pid"])
        bench.next_server(status["server"]["pid"])
    status = filled(bench)
    assert bench.pids() == {status["holder"], status["server"]["pid"]}
    assert len([e for e in bench.journal() if e[0] == "mounted"]) == 1
    assert not bench.happened("TWO-SERVERS")


def test_a_holder_killed_while_its_server_starts(bench):
    started = bench.start(server={"FAKE_REVIVE": 1})
    with bench.ask() as holder:
        env = bench.env(FAKE_REVIVE=1, FAKE_START_S=0.5)
        thread = threading.Thread(target=lambda: failing(holder.upgrade, bench.argv, env))
        thread.start()
        wait_until(lambda: len([e for e in bench.journal() if e[0] == "start"]) == 2, 5, "start")
        kill(started.holder)
        thread.join()
    status = filled(bench, started.holder)
    assert bench.pids() == {status["holder"], status["server"]["pid"]}
    assert len([e for e in bench.journal() if e[0] == "mounted"]) == 1


def test_a_holder_killed_while_its_server_drains_keeps_the_server_from_leaving(bench):
    started = bench.start(server={"FAKE_DRAIN_S": 0.5})
    kill(started.server, signal.SIGUSR2)
    wait_until(lambda: bench.happened("usr2"), 5, "it drains")
    kill(started.holder)
    wait_until(lambda: bench.happened("stays"), 5, "it stays")
    assert bench.start(adopt=True).server == started.server
    filled(bench, started.holder)


def test_a_holder_killed_while_a_server_warms_up_takes_only_that_with_it(bench):
    started = bench.start(server={"FAKE_REVIVE": 1})
    with bench.ask() as holder:
        env = bench.env(FAKE_START_S=0.7)
        thread = threading.Thread(
            target=lambda: failing(holder.upgrade, bench.argv, env, warm=True)
        )
        thread.start()
        wait_until(lambda: len([e for e in bench.journal() if e[0] == "start"]) == 2, 5, "start")
        kill(started.holder)
        thread.join()
    status = filled(bench, started.holder)
    wait_until(lambda: bench.happened("unneeded"), 5, "the standby ends")
    assert status["server"]["pid"] == started.server
    assert not bench.happened("TWO-SERVERS")


def test_the_new_holder_goes_with_the_mount(bench):
    started = bench.start(server={"FAKE_REVIVE": 1, "FAKE_EXIT": 0})
    kill(started.holder)
    filled(bench, started.holder)
    bench.stop()
    assert os.listdir(bench.runtime) == [bench.place.log.name]


def test_nobody_comes_to_a_new_holder(bench):
    with pytest.raises(HolderError, match="no running server"):
        bench.start(0.5, adopt=True)
    wait_until(bench.gone, 5, "everything is gone")


def test_two_who_revive_at_once_end_with_one_holder(bench):
    started = bench.start(server={"FAKE_REVIVE": 1})
    kill(started.holder)
    with contextlib.suppress(HeldError):
        bench.start(adopt=True)
    status = filled(bench, started.holder)
    wait_until(lambda: bench.pids() == {status["holder"], started.server}, 5, "one holder")


def test_a_stopped_holder_does_not_stop_the_server(bench):
    started = bench.start(watchdog_s=0.4)
    kill(started.holder, signal.SIGSTOP)
    beats = 25
    time.sleep(beats * 0.1)  # its queue is full of beats by now
    assert alive(started.server)
    kill(started.server, signal.SIGHUP)
    wait_until(lambda: bench.happened("hup"), 2, "the server answers")
    kill(started.holder, signal.SIGCONT)
    assert bench.server() == started.server


def test_a_server_hands_over_to_a_process_that_it_prepared(bench):
    """`MAINPID=`: the warm reload, with or without systemd."""
    started = bench.start()
    kill(started.server, signal.SIGUSR1)
    now = bench.next_server(started.server)
    wait_until(lambda: bench.happened("ready", now), 5, "it serves")
    wait_until(lambda: bench.pids() == {started.holder, now}, 5, "the former ends")
    assert [e["event"] for e in bench.status()["events"]] == ["start", "handover"]
    assert not bench.happened("TWO-SERVERS")
    kill(now)
    bench.next_server(now)
    assert bench.status()["descriptors"] == ALL


def failing(call, *arguments, **named):
    with pytest.raises(HolderError):
        call(*arguments, **named)
