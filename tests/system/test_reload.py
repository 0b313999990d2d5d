"""Reloads of both strengths, and what the journal and the manager are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jfsd.systemd.journal import EVENT_ID

if TYPE_CHECKING:
    from tests.support.machine import Loading
    from tests.system.conftest import Served

KEPT = {"NFileDescriptorStore": "3", "ActiveState": "active", "SubState": "running"}


@pytest.mark.promise(7)
@pytest.mark.promise(17)
def test_reloads_apply_what_can_be_and_name_what_cannot(service: Served, load: Loading) -> None:
    machine, pid = service.machine, service.main_pid()
    machine.shell("mount -o remount,rw /sys/devices")  # read-only in a container
    service.configure(prefetch="3", entry_cache="2s", max_readahead="1M", buffer_size="200M")
    done = machine.systemctl("reload", service.unit, check=False)
    assert done.returncode == 0, service.log()
    assert "applied: --entry-cache 1s -> 2s" in service.log()
    device = service.mounts()[0].split()[2]
    assert machine.shell(f"cat /sys/class/bdi/{device}/read_ahead_kb") == "1024\n"

    service.configure(prefetch="4", entry_cache="2s", max_readahead="1M", subdir="x")
    assert machine.systemctl("reload", service.unit, check=False).returncode != 0
    found = service.await_state(**KEPT)
    assert found["Result"] == "success"
    assert "fixed while mounted: --subdir" in found["StatusText"]
    log = service.log()
    assert "applied: --prefetch 3 -> 4" in log
    assert "refused, fixed while mounted: --subdir" in log

    service.configure(prefech="4")
    assert machine.systemctl("reload", service.unit, check=False).returncode != 0
    assert "prefech" in service.await_state(**KEPT)["StatusText"]
    service.configure()
    machine.systemctl("reload", service.unit)
    assert service.await_state(**KEPT)["StatusText"].startswith("serving vol")
    load.stop()
    assert service.main_pid() == pid


@pytest.mark.promise(1)
@pytest.mark.promise(7)
def test_the_next_server_takes_over_warm_and_the_journal_knows(
    service: Served, load: Loading
) -> None:
    machine, pids = service.machine, [service.main_pid()]
    said = machine.run("jfsd", "upgrade", service.point).stdout
    pids.append(service.main_pid())
    assert f"server {pids[1]} has taken {service.point} over from {pids[0]}" in said
    service.await_state(NRestarts="0", **KEPT)
    service.kill("USR1")
    service.await_other(pids[1])
    service.await_state(NRestarts="0", **KEPT)
    machine.systemctl("restart", service.unit)
    service.await_state(**KEPT)
    load.stop()
    events = service.await_events(4)
    kinds = [event["JFSD_EVENT_KIND"] for event in events]
    assert kinds == ["start", "upgrade", "upgrade", "restart"]
    for event in events:
        assert event["MESSAGE_ID"] == EVENT_ID
        assert event["PRIORITY"] == "6"
        assert event["SYSLOG_IDENTIFIER"] == "jfsd"
        assert event["JFSD_MOUNTPOINT"] == service.point
        assert event["JFSD_VOLUME"].startswith("vol")
    assert all(float(event["JFSD_GAP_MS"]) > 0 for event in events[1:])
