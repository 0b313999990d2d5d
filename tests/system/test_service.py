"""jfs@.service on a real systemd: what it survives, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.machine import Loading, every

if TYPE_CHECKING:
    from tests.system.conftest import Served

KEPT = {"NFileDescriptorStore": "3", "ActiveState": "active", "SubState": "running"}


@pytest.mark.promise(17)
def test_three_lines_start_a_mount_for_every_user(service: Served) -> None:
    found = service.await_state(**KEPT)
    assert found["StatusText"].startswith("serving vol")
    (line,) = service.mounts()
    assert " fuse.jfsd " in line
    assert "allow_other" in line and "default_permissions" in line
    say = service.machine.shell
    say(
        f"umask 022; install -d -m 755 {service.point}/own; echo hello >{service.point}/a;"
        f"install -d -m 1777 {service.point}/tmp"
    )
    as_nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups --"
    assert say(f"{as_nobody} cat {service.point}/a") == "hello\n"
    assert (
        say(f"{as_nobody} sh -c 'echo x >{service.point}/own/b' 2>&1 || true").count("denied") == 1
    )
    assert say(
        f"{as_nobody} touch {service.point}/tmp/mine; stat -c %u {service.point}/tmp/mine"
    ) == ("65534\n")
    pid = service.main_pid()
    assert say(f"stat -c %U /proc/{pid}") == "jfs\n"
    assert "CapEff:\t0000000000000000" in say(f"cat /proc/{pid}/status")


@pytest.mark.promise(1)
@pytest.mark.promise(7)
@pytest.mark.promise(8)
def test_restarts_reexecution_and_kills_are_not_seen(service: Served, load: Loading) -> None:
    machine = service.machine
    for _ in every(0.2, 10):
        machine.systemctl("restart", service.unit)
        service.await_state(**KEPT)
    for _ in every(0.5, 3):
        service.kill("KILL")
        service.await_state(**KEPT)
    service.kill("TERM")
    service.await_state(**KEPT)
    machine.systemctl("daemon-reload")
    machine.systemctl("daemon-reexec")
    service.await_state(**KEPT)
    machine.systemctl("restart", service.unit)
    found = service.await_state(**KEPT)
    load.stop()
    assert found["Result"] == "success"
    assert len(service.mounts()) == 1


@pytest.mark.promise(12)
def test_stop_unmounts_stores_everything_and_leaves_nothing(service: Served) -> None:
    say = service.machine.shell
    say(f"head -c 9000000 /dev/urandom >{service.point}/big; cp {service.point}/big /root/big")
    service.machine.systemctl("stop", service.unit)
    found = service.show("ActiveState", "Result", "NFileDescriptorStore", "MainPID")
    assert found == {
        "ActiveState": "inactive",
        "Result": "success",
        "NFileDescriptorStore": "0",
        "MainPID": "0",
    }
    assert service.mounts() == []
    assert say(f"ls -A {service.point}") == ""
    assert say(f"redis-cli -n {service.url.rpartition('/')[2]} keys 'jfsd*'").strip() == ""
    service.start()
    say(f"cmp {service.point}/big /root/big")


@pytest.mark.promise(12)
def test_stop_waits_for_open_files_then_serves_them_detached(service: Served) -> None:
    service.configure(stop_wait="2s")
    machine = service.machine
    machine.shell(
        f"cd {service.point}; echo one >log; systemd-run -q --unit=writer --collect sh -c "
        f"'exec 9>>{service.point}/log; echo two >&9; sleep 3; echo three >&9'"
    )
    machine.shell(f"while ! grep -q two {service.point}/log; do sleep 0.1; done")
    machine.systemctl("stop", service.unit)
    assert service.show("Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    assert "detached" in service.log()
    service.start()
    assert machine.shell(f"cat {service.point}/log") == "one\ntwo\nthree\n"


@pytest.mark.promise(12)
def test_files_that_stay_open_are_cut_off_and_the_exit_status_tells(service: Served) -> None:
    service.configure(stop_wait="1s")
    machine = service.machine
    machine.shell(
        f"echo one >{service.point}/log; systemd-run -q --unit=holder --collect sh -c "
        f"'exec 9>>{service.point}/log; echo two >&9; sleep 600'"
    )
    machine.shell(f"while ! grep -q two {service.point}/log; do sleep 0.1; done")
    machine.systemctl("stop", service.unit)
    found = service.show("Result", "ActiveState", "ExecMainStatus")
    assert found == {"Result": "exit-code", "ActiveState": "failed", "ExecMainStatus": "12"}
    assert service.mounts() == []
    machine.systemctl("stop", "holder")
    service.start()
    assert machine.shell(f"cat {service.point}/log") == "one\ntwo\n"
