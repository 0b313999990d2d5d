"""What goes wrong around a service: hangs, hunger, Redis, wrong settings, strangers' mounts."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import mounts
from support.machine import Loading
from support.session import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.conftest import Served

KEPT = {"NFileDescriptorStore": "3", "ActiveState": "active", "SubState": "running"}


def outside_pid(service: Served) -> int:
    """Return the server as it is numbered on this machine."""
    inside = str(service.main_pid())
    for pid in mounts.descendants(service.machine.init()):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:") and line.split()[-1] == inside:
                return pid
    raise AssertionError(f"{service.unit} has no process {inside}")


@pytest.mark.promise(1)
def test_a_server_that_hangs_is_replaced_by_the_watchdog(
    new_service: Callable[[], Served],
) -> None:
    service = new_service()
    service.drop_in("WatchdogSec=3\nTimeoutAbortSec=3")
    service.start()
    load = Loading(service.machine, service.point)
    try:
        service.kill("STOP")
        service.await_state(NRestarts="1", **KEPT)
        load.stop()
    finally:
        load.kill()
    assert "watchdog" in service.log().lower()


@pytest.mark.promise(1)
@pytest.mark.promise(3)
def test_a_server_that_the_kernel_kills_for_memory_is_replaced(service: Served) -> None:
    say = service.machine.shell
    group = Path("/sys/fs/cgroup/memory", service.machine.name + "-oom")
    if not group.parent.is_dir():
        pytest.fail("this machine has no memory controller of cgroup v1: use MemoryMax=")
    load = Loading(service.machine, service.point, ("names", "appender"))
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(outside_pid(service)))
        (group / "memory.limit_in_bytes").write_text("24M")
        say(f"head -c 100M /dev/urandom >/root/oom; cp /root/oom {service.point}/oom", limit_s=100)
        service.await_state(**KEPT)
        killed = (group / "memory.oom_control").read_text()
        load.stop()
        say(f"cmp /root/oom {service.point}/oom; rm /root/oom")
    finally:
        load.kill()
        service.machine.systemctl("stop", service.unit, check=False)
        wait_until(lambda: not (group / "cgroup.procs").read_text(), 20, "empty group")
        group.rmdir()
    assert "oom_kill 0" not in killed, killed
    assert "NRestarts=0" not in service.log()


@pytest.mark.promise(10)
@pytest.mark.promise(17)
def test_redis_is_restarted_under_load_and_takes_no_mount_along(
    service: Served, load: Loading
) -> None:
    pid = service.main_pid()
    for _ in range(2):
        service.machine.systemctl("restart", "redis-server")
        time.sleep(0.5)
    service.machine.systemctl("stop", "redis-server")
    service.machine.systemctl("restart", "--no-block", service.unit)
    time.sleep(1)
    service.machine.systemctl("start", "redis-server")
    service.await_state(**KEPT)
    load.stop()
    assert service.main_pid() != pid
    assert len(service.mounts()) == 1


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    ("break_it", "says", "status"),
    [
        ("echo 'cache-sise = \"1G\"' >>{config}", "cache-sise", "2"),
        ("sed -i 's,/[0-9]*\"$,/999\",' {config}", "there is no volume", "4"),
        ("touch {point}/something", "is not empty", "9"),
        ("mount -t tmpfs none {point}", "is a mount already", "10"),
        ("chown -R root: {bucket}; chmod 700 {bucket}", "chown", "8"),
    ],
    ids=["option", "volume", "nonempty", "mounted", "bucket"],
)
def test_what_somebody_must_mend_is_refused_once(
    new_service: Callable[[], Served], break_it: str, says: str, status: str
) -> None:
    service = new_service()
    config = f"/etc/jfs/{service.instance}.toml"
    service.machine.shell(
        break_it.format(config=config, point=service.point, bucket=service.bucket)
    )
    done = service.machine.systemctl("start", service.unit, check=False)
    assert done.returncode != 0
    found = service.show("ActiveState", "Result", "ExecMainStatus", "NRestarts")
    assert found == {
        "ActiveState": "failed",
        "Result": "exit-code",
        "ExecMainStatus": status,
        "NRestarts": "0",
    }, service.log()
    assert says in service.log()
    wait_until(lambda: "fuse" not in str(service.mounts()), 20, "no mount is left")
    service.machine.shell(f"umount {service.point} 2>/dev/null || rm -f {service.point}/something")


@pytest.mark.promise(11)
def test_a_live_mount_outlives_its_configuration(service: Served) -> None:
    say = service.machine.shell
    say(f"echo kept >{service.point}/a")
    service.configure(cache_sise="1G")
    done = service.machine.run("jfsd", "check", service.instance, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    service.machine.systemctl("restart", service.unit)
    told = service.await_state(**KEPT)["StatusText"]
    assert "the former options are used: " in told
    assert say(f"cat {service.point}/a") == "kept\n"
    service.configure(subdir="elsewhere", prefetch="3")
    service.machine.systemctl("restart", service.unit)
    assert "fixed while mounted: --subdir" in service.await_state(**KEPT)["StatusText"]
    service.configure(prefetch="3")
    done = service.machine.run("jfsd", "check", service.instance)
    assert done.stdout == "nothing differs\n"

    # Where nothing is known of the last server, it waits for the configuration to be mended.
    say(f"rm /run/jfs/{service.instance}.json")
    service.configure(attr_cash="1s")
    service.machine.systemctl("restart", "--no-block", service.unit)
    wait_until(lambda: "attr-cash" in service.log(), 30, "refusal")
    waiting = service.await_state(SubState="start")
    assert waiting["StatusText"].startswith("the live mount cannot be served")
    assert len(service.mounts()) == 1
    service.configure()
    service.await_state(**KEPT)
    assert say(f"cat {service.point}/a") == "kept\n"


def test_a_dead_mount_of_a_machine_accident_is_replaced(new_service: Callable[[], Served]) -> None:
    service = new_service()
    say = service.machine.shell
    say(f"systemd-run -q --unit=former jfsd mount {service.url} {service.point}")
    wait_until(service.mounts, 30, "mount in the foreground")
    say(f"stat {service.point} >/dev/null; systemctl kill -s KILL former")
    wait_until(
        lambda: "not connected" in say(f"stat -f {service.point} 2>&1 || true"), 20, "its death"
    )
    service.start()
    assert say(f"ls -A {service.point}; echo ok") == "ok\n"
    assert len(service.mounts()) == 1


@pytest.mark.promise(8)
def test_a_mount_of_somebody_else_is_left_alone(new_service: Callable[[], Served]) -> None:
    service = new_service()
    say = service.machine.shell
    say(f"jfsd mount -d {service.url} {service.point}")
    say(f"echo theirs >{service.point}/a")
    done = service.machine.systemctl("start", service.unit, check=False)
    assert done.returncode != 0
    assert service.show("ExecMainStatus")["ExecMainStatus"] == "10"
    assert "jfsd umount" in service.log()
    assert say(f"cat {service.point}/a") == "theirs\n"
    assert len(service.mounts()) == 1
    say(f"jfsd umount {service.point}")
    service.start()
    assert say(f"cat {service.point}/a") == "theirs\n"
    refused = say(f"jfsd mount -d {service.url} {service.point} 2>&1 || echo exit $?")
    assert "exit 10" in refused
    assert len(service.mounts()) == 1


def test_an_unmount_by_hand_ends_the_service(service: Served) -> None:
    say = service.machine.shell
    say(f"echo one >{service.point}/a; jfsd umount {service.point}")
    found = service.await_state(ActiveState="inactive", NFileDescriptorStore="0")
    assert found["Result"] == "success"
    service.start()
    assert say(f"cat {service.point}/a; umount {service.point}") == "one\n"
    service.await_state(ActiveState="inactive", NFileDescriptorStore="0")


def test_an_aborted_mount_is_made_anew(service: Served) -> None:
    say = service.machine.shell
    say(f"echo one >{service.point}/a")
    (line,) = service.mounts()
    mounts.mount_fusectl()
    (mounts.FUSECTL / line.split()[2].split(":")[1] / "abort").write_text("1")
    service.await_state(NRestarts="1", **KEPT)
    assert say(f"cat {service.point}/a") == "one\n"
    assert len(service.mounts()) == 1


def test_a_unit_that_fails_for_good_leaves_no_dead_mount(service: Served) -> None:
    service.drop_in("Restart=no")
    service.kill("KILL")
    service.await_state(ActiveState="failed")
    wait_until(lambda: not service.mounts(), 30, "dead mount detached")
    told = service.machine.messages(f"jfs-failed@{service.instance}.service")
    assert f"systemctl restart {service.unit}" in told


def test_another_instance_is_not_affected(new_service: Callable[[], Served]) -> None:
    one, other = new_service(), new_service()
    one.start()
    other.start()
    pid = other.main_pid()
    load = Loading(other.machine, other.point, ("names", "writer"))
    try:
        one.kill("KILL")
        one.await_state(**KEPT)
        one.machine.systemctl("restart", one.unit)
        one.machine.systemctl("stop", one.unit)
        load.stop()
    finally:
        load.kill()
    assert other.main_pid() == pid
    other.await_state(**KEPT)


def test_boot_and_shutdown(service: Served) -> None:
    machine, say = service.machine, service.machine.shell
    say(f"systemctl enable -q {service.unit} redis-server; head -c 3M /dev/urandom >/root/b")
    writer = f"exec 9>{service.point}/b; cat /root/b >&9; sleep 600"
    say(f"systemd-run -q --unit=shutdown-writer sh -c '{writer}'; sleep 1")
    machine.reboot()
    service.await_state(**KEPT)
    say(f"cmp /root/b {service.point}/b; systemctl disable -q {service.unit} redis-server")
    last = machine.messages(service.unit, "-b", "-1")
    assert "Deactivated successfully" in last, last
    assert "cut off" not in last, last  # the writer had ended
    assert "metadata server" not in last, last  # Redis had not
    assert "redis-server.service" in service.show("After")["After"].split()


@pytest.mark.promise(18)
def test_the_unit_is_safe_and_says_nothing_to_verify(service: Served) -> None:
    machine = service.machine
    assert (
        machine.shell(
            "systemd-analyze --no-pager verify /usr/lib/systemd/system/jfs*@.service 2>&1"
        )
        == ""
    )
    last = machine.shell(f"systemd-analyze --no-pager security {service.unit}").splitlines()[-1]
    assert float(last.split(": ")[1].split()[0]) < 2.5, last
    for path in ("/run/jfs", "/var/cache/jfsd", "/var/lib/jfs"):
        assert machine.shell(f"stat -c '%a %U' {path}") == "700 jfs\n"
    assert os.geteuid() == 0
