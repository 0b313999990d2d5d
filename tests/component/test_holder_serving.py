"""A holder and its server: kills, hangs, handovers, ends. Real processes and sockets."""

import os
import signal
import threading
import time

import pytest
from support.holding import alive, held, kill, rss_bytes
from support.session import wait_until

from jfsd.daemon.holder_place import HeldError, HolderError
from jfsd.errors import ExitCode

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def bench(monkeypatch):
    yield from held(monkeypatch)


def generations(bench):
    """Return the servers that wrote into the kept memory, in order."""
    with bench.ask() as holder:
        kept = dict(holder.descriptors())
    try:
        return [int(line) for line in os.pread(kept["state"], 65536, 0).split()]
    finally:
        for fd in kept.values():
            os.close(fd)


def test_a_start_returns_when_the_server_is_ready(bench):
    started = bench.start(server={"FAKE_START_S": 0.3})
    assert bench.happened("ready", started.server)
    status = bench.status()
    assert status["holder"] == started.holder
    assert status["server"]["pid"] == started.server
    assert status["server"]["status"] == "serving nothing"
    assert status["descriptors"] == {"arena": 1, "state": 1, "fuse": 1}


def test_the_holder_is_small_and_nobodys_child(bench):
    started = bench.start()
    assert rss_bytes(started.holder) < 20 << 20
    for pid in started:
        assert os.getsid(pid) != os.getsid(0)
    assert os.getsid(started.holder) != os.getsid(started.server)
    maps = open_text(f"/proc/{started.holder}/maps")
    assert not any(name in maps for name in ("pyfuse3", "uvloop", "hiredis", "_ssl"))


@pytest.mark.promise(8)
def test_a_killed_server_is_replaced_with_the_same_descriptors(bench):
    first = bench.start().server
    kill(first)
    second = bench.next_server(first)
    assert generations(bench) == [first, second]
    assert bench.status()["descriptors"] == {"arena": 1, "state": 1, "fuse": 1}
    assert [e for e in bench.journal() if e[0] == "mounted"] == [["mounted", str(first)]]


@pytest.mark.promise(8)
def test_ten_kills_in_ten_seconds(bench):
    first = bench.start()
    pid, servers = first.server, [first.server]
    for _ in range(10):
        kill(pid)
        pid = bench.next_server(pid)
        servers.append(pid)
        time.sleep(0.1)
    assert generations(bench) == servers
    assert bench.pids() == {first.holder, pid}
    assert not bench.happened("TWO-SERVERS")


@pytest.mark.promise(8)
def test_a_kill_every_moment_of_the_start(bench):
    first = bench.start(server={"FAKE_START_S": 0.05})
    last = first.server
    for pause_s in (0.0, 0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2):
        kill(last)
        last = wait_until(lambda last=last: newest(bench, last), 5, "the next start")
        time.sleep(pause_s)
    assert bench.server() == newest(bench, 0)
    assert bench.pids() == {first.holder, bench.server()}
    assert len([e for e in bench.journal() if e[0] == "mounted"]) == 1


@pytest.mark.promise(8)
def test_a_first_server_that_is_killed_at_its_start_comes_again(bench):
    found = []
    thread = threading.Thread(
        target=lambda: found.append(bench.start(server={"FAKE_START_S": 0.3}))
    )
    thread.start()
    victim = wait_until(lambda: newest(bench, 0), 5, "the first start")
    kill(victim)
    thread.join()
    assert found[0].server != victim
    assert alive(found[0].server)


@pytest.mark.promise(7)
def test_a_server_that_was_up_is_replaced_without_delay(bench):
    first = bench.start().server
    kill(first)
    bench.next_server(first)
    event = bench.status()["events"][-1]
    assert event["event"] == "crash"
    assert event["gap_ms"] - event["start_ms"] < 90  # the rest is the server's own start


def test_a_hung_server_is_replaced(bench):
    first = bench.start(watchdog_s=0.6).server
    time.sleep(1.0)
    assert bench.server() == first  # it beats
    kill(first, signal.SIGSTOP)
    second = bench.next_server(first)
    assert not alive(first)
    assert [e["event"] for e in bench.status()["events"]] == ["start", "watchdog"]
    assert generations(bench) == [first, second]


def test_a_holder_that_was_stopped_itself_blames_nobody(bench):
    started = bench.start(watchdog_s=0.6)
    kill(started.holder, signal.SIGSTOP)
    time.sleep(1.5)
    kill(started.holder, signal.SIGCONT)
    time.sleep(1.0)
    assert bench.server() == started.server


@pytest.mark.promise(11)
def test_an_upgrade_drains_the_old_server_before_the_new_one_starts(bench):
    first = bench.start(server={"FAKE_DRAIN_S": 0.2}).server
    with bench.ask() as holder:
        answer = holder.upgrade(bench.argv, bench.env(FAKE_NAME="new"))
    order = [(e[0], int(e[-1])) for e in bench.journal()]
    second = answer["pid"]
    assert order.index(("usr2", first)) < order.index(("end", first))
    assert order.index(("end", first)) < order.index(("start", second))
    assert ["ready", "new", str(second)] in bench.journal()
    assert 200 <= answer["phases"]["drain_ms"] < 2000
    assert answer["phases"]["gap_ms"] < 2000
    assert generations(bench) == [first, second]
    kill(second)
    third = bench.next_server(second)
    assert ["ready", "new", str(third)] in bench.journal()  # the new command is the one


@pytest.mark.promise(7)
def test_a_warm_upgrade_starts_the_new_server_before_the_old_one_stops(bench):
    first = bench.start().server
    with bench.ask() as holder:
        answer = holder.upgrade(bench.argv, bench.env(FAKE_START_S=0.5), warm=True)
    order = [(e[0], int(e[-1])) for e in bench.journal()]
    second = answer["pid"]
    assert order.index(("warm", second)) < order.index(("usr2", first))
    assert order.index(("end", first)) < order.index(("ready", second))
    assert answer["phases"]["warm_ms"] >= 500
    assert answer["phases"]["gap_ms"] < 200
    assert generations(bench) == [first, second]
    assert not bench.happened("TWO-SERVERS")


@pytest.mark.promise(11)
@pytest.mark.parametrize("warm", [False, True])
def test_a_new_version_that_refuses_leaves_the_mount_with_the_former(bench, warm):
    started = bench.start(server={"FAKE_NAME": "old"})
    with bench.ask() as holder, pytest.raises(HolderError, match=r"^another volume; mend it$"):
        holder.upgrade(bench.argv, bench.env(FAKE_FAIL="another volume; mend it:5"), warm=warm)
    now = bench.server()
    assert ["ready", "old", str(now)] in bench.journal()
    assert bench.pids() == {started.holder, now}
    if warm:
        assert now == started.server  # it has not even been asked to go
    kill(now)
    assert ["ready", "old", str(bench.next_server(now))] in bench.journal()


@pytest.mark.parametrize("warm", [False, True])
def test_a_program_that_is_not_there_leaves_the_mount_with_the_former(bench, warm):
    bench.start()
    with bench.ask() as holder, pytest.raises(HolderError, match="No such file"):
        holder.upgrade(["/nowhere/jfsd"], bench.env(), warm=warm)
    assert alive(bench.server())


@pytest.mark.promise(8)
@pytest.mark.parametrize("warm", [False, True])
def test_an_upgrade_survives_the_death_of_the_old_server(bench, warm):
    first = bench.start(server={"FAKE_DRAIN_S": 30}).server
    answers = []
    with bench.ask() as holder:
        env = bench.env(FAKE_NAME="new", FAKE_START_S=0.5)
        thread = threading.Thread(
            target=lambda: answers.append(holder.upgrade(bench.argv, env, warm=warm))
        )
        thread.start()
        if warm:
            wait_until(lambda: newest(bench, first), 5, "the standby starts")
        else:
            wait_until(lambda: bench.happened("usr2", first), 5, "it drains")
        kill(first)
        thread.join()
    assert ["ready", "new", str(answers[0]["pid"])] in bench.journal()
    assert generations(bench) == [first, answers[0]["pid"]]


@pytest.mark.promise(8)
@pytest.mark.parametrize("warm", [False, True])
def test_an_upgrade_survives_the_death_of_the_new_server(bench, warm):
    started = bench.start()
    first = started.server
    answers = []

    def upgrade():
        try:
            with bench.ask() as holder:
                env = bench.env(FAKE_NAME="new", FAKE_START_S=0.5)
                answers.append(holder.upgrade(bench.argv, env, warm=warm))
        except HolderError as error:
            answers.append(error)

    thread = threading.Thread(target=upgrade)
    thread.start()
    kill(wait_until(lambda: newest(bench, first), 5, "the new server starts"))
    thread.join()
    now = bench.server()
    if warm:  # nothing was handed over yet
        assert isinstance(answers[0], HolderError)
        assert now == first
    else:
        assert answers[0]["pid"] == now
        assert ["ready", "new", str(now)] in bench.journal()
    assert bench.pids() == {started.holder, now}


def test_a_server_that_does_not_hand_over_in_time_is_killed(bench):
    first = bench.start(server={"FAKE_DRAIN_S": 30}).server
    with bench.ask() as holder:
        answer = holder.upgrade(bench.argv, bench.env(), drain_s=0.3)
    assert not alive(first)
    assert 300 <= answer["phases"]["drain_ms"] < 3000
    assert generations(bench) == [first, answer["pid"]]


def test_orders_are_carried_out_one_after_the_other(bench):
    first = bench.start().server
    pids = []

    def restart():
        with bench.ask() as holder:
            pids.append(holder.restart()["pid"])

    threads = [threading.Thread(target=restart) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 4
    assert generations(bench) == [first, *pids]
    assert not bench.happened("TWO-SERVERS")


def test_a_server_that_hands_over_unasked_is_replaced(bench):
    first = bench.start().server
    kill(first, signal.SIGUSR2)
    second = bench.next_server(first)
    assert generations(bench) == [first, second]


def test_a_hangup_of_the_holder_is_the_servers_reload(bench):
    started = bench.start()
    kill(started.holder, signal.SIGHUP)
    wait_until(lambda: bench.happened("hup", started.server), 5, "the reload")


@pytest.mark.promise(12)
def test_a_stop_leaves_nothing(bench):
    bench.start(server={"FAKE_EXIT": 3})
    with bench.ask() as holder:
        assert holder.stop()["exit_code"] == 3
    wait_until(bench.gone, 5, "everything is gone")
    assert os.listdir(bench.runtime) == [bench.place.log.name]


@pytest.mark.promise(12)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_holder_stops_the_mount(bench, number):
    started = bench.start()
    kill(started.holder, number)
    kill(started.holder, number)
    wait_until(bench.gone, 5, "everything is gone")
    assert [e[0] for e in bench.journal()].count("term") == 1  # twice would cut off open files


@pytest.mark.promise(12)
def test_a_server_that_unmounts_ends_its_holder(bench):
    kill(bench.start().server, signal.SIGTERM)
    wait_until(bench.gone, 5, "everything is gone")


@pytest.mark.promise(12)
def test_a_stop_that_is_killed_half_way_is_completed(bench):
    unstuck = bench.root / "unstuck"
    first = bench.start(server={"FAKE_STUCK": unstuck}).server
    stopped = []
    with bench.ask() as holder:
        thread = threading.Thread(target=lambda: stopped.append(holder.stop()))
        thread.start()
        wait_until(lambda: bench.happened("term", first), 5, "it stops")
        unstuck.touch()
        kill(first)
        thread.join()
    assert stopped[0]["exit_code"] == 0
    wait_until(bench.gone, 5, "everything is gone")
    assert [e[0] for e in bench.journal()].count("term") == 2


@pytest.mark.promise(12)
def test_a_stop_that_nobody_told_the_holder_of_is_completed_too(bench):
    unstuck = bench.root / "unstuck"
    first = bench.start(server={"FAKE_STUCK": unstuck}).server
    kill(first, signal.SIGTERM)
    wait_until(lambda: bench.happened("term", first), 5, "it stops")
    unstuck.touch()
    kill(first)
    wait_until(bench.gone, 10, "everything is gone")


def test_a_stop_of_a_dead_servers_mount_waits_for_the_next_server(bench):
    """What it has in memory is to be stored before the mount goes."""
    first = bench.start(server={"FAKE_START_S": 0.3}).server
    kill(first)
    with bench.ask() as holder:
        holder.stop()
    wait_until(bench.gone, 5, "everything is gone")
    last = [e for e in bench.journal() if e[0] == "term"]
    assert len(last) == 1
    assert last[0][-1] != str(first)


@pytest.mark.promise(16)
@pytest.mark.parametrize("when", ["start", "mounted"])
def test_a_start_that_fails_says_why_and_leaves_nothing(bench, when):
    with pytest.raises(HolderError, match=r"^/mnt: is not empty; empty it$") as failed:
        bench.start(server={"FAKE_FAIL": "/mnt: is not empty; empty it:9", "FAKE_FAIL_AT": when})
    assert failed.value.exit_code is ExitCode.MOUNTPOINT_UNUSABLE
    wait_until(bench.gone, 5, "everything is gone")


def test_a_start_that_takes_too_long_fails_and_leaves_nothing(bench):
    began = time.monotonic()
    with pytest.raises(HolderError, match=r"^not ready within 0\.5 s$"):
        bench.start(0.5, server={"FAKE_START_S": 30})
    assert time.monotonic() - began < 5
    wait_until(bench.gone, 5, "everything is gone")


def test_a_program_that_cannot_be_run_is_named(bench):
    with pytest.raises(HolderError, match="/nowhere/jfsd"):
        bench.start(argv=["/nowhere/jfsd"])
    wait_until(bench.gone, 5, "everything is gone")


@pytest.mark.promise(11)
def test_a_second_holder_is_refused_and_changes_nothing(bench):
    started = bench.start()
    with pytest.raises(HeldError):
        bench.start()
    assert bench.pids() == set(started)
    assert bench.server() == started.server


def newest(bench, former):
    """Return the server started last, unless that is `former`."""
    started = [int(e[-1]) for e in bench.journal() if e[0] == "start"]
    return started[-1] if started and started[-1] != former else 0


def open_text(path):
    with open(path) as file:
        return file.read()
