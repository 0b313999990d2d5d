"""The package's life while programs work on a mount: install, upgrade, downgrade, remove."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from support.machine import Loading, Machine

from tests.system.conftest import VERSION, Served, install

if TYPE_CHECKING:
    from collections.abc import Iterator

NEXT = "0.1.1"
KEPT = {"NFileDescriptorStore": "3", "ActiveState": "active", "SubState": "running"}


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of this test's own, with Redis."""
    machine = Machine(request.getfixturevalue("bed"), "pkg")
    try:
        machine.systemctl("start", "redis-server")
        yield machine
    finally:
        machine.close()


def versions_loaded(service: Served) -> set[str]:
    """Return of which versions the server has files open or mapped."""
    pid = service.main_pid()
    files = service.machine.shell(f"cat /proc/{pid}/maps; ls -l /proc/{pid}/fd")
    return set(re.findall(r"/usr/lib/jfsd/(\d[^/]*)/", files))


def installed(machine: Machine) -> list[str]:
    """Return the directories of versions."""
    return machine.shell("cd /usr/lib/jfsd; ls -d *+* 2>/dev/null || true").split()


@pytest.mark.promise(1)
@pytest.mark.promise(7)
@pytest.mark.parametrize("kind", ["deb", pytest.param("rpm", marks=pytest.mark.slow)])
def test_a_package_is_replaced_under_load_and_removed_without_a_trace(
    kind: str, fresh: Machine, request: pytest.FixtureRequest
) -> None:
    build = request.getfixturevalue(f"build_{kind}")
    packages = {version: build(version) for version in (VERSION, NEXT)}
    install(fresh, packages[VERSION])
    service, other = Served(fresh), Served(fresh)
    service.start()
    other.start()
    other.configure(cache_sise="1G")  # the next version would refuse this mount
    stubborn = other.main_pid()
    load = Loading(fresh, service.point)
    try:
        for version in (NEXT, VERSION):
            pid = service.main_pid()
            said = install(fresh, packages[version])
            assert f"{service.unit}: jfsd: server" in said, said
            assert said.count(f"{other.unit} keeps running the former version") == 1, said
            assert service.await_other(pid)
            service.await_state(NRestarts="0", **KEPT)
            (loaded,) = versions_loaded(service)
            assert loaded.startswith(f"{version}+")
            assert version in fresh.run("jfsd", "version").stdout
            assert other.main_pid() == stubborn
            assert [name.split("+")[0] for name in versions_loaded(other)] == [VERSION]
        load.stop()
    finally:
        load.kill()
    kinds = [event["JFSD_EVENT_KIND"] for event in service.await_events(3)]
    assert kinds == ["start", "upgrade", "upgrade"]
    assert [name.split("+")[0] for name in installed(fresh)] == [VERSION]

    fresh.shell(f"echo kept >{service.point}/a")
    remove(fresh, kind, "remove")
    assert service.mounts() == other.mounts() == []
    assert service.show("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert fresh.shell("ls -A /usr/lib/jfsd 2>/dev/null || true") == ""
    fresh.run("test", "-d", "/var/cache/jfsd")
    if kind == "deb":
        remove(fresh, kind, "purge")
        fresh.shell("test ! -e /var/cache/jfsd; test ! -e /run/jfs; test ! -e /var/lib/jfs")
    assert service.instance in fresh.shell("ls /etc/jfs")
    install(fresh, packages[VERSION])
    service.start()
    assert fresh.shell(f"cat {service.point}/a") == "kept\n"


def remove(machine: Machine, kind: str, verb: str) -> None:
    """Remove the package."""
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", verb, "-y", "jfsd")
    machine.run(*(("rpm", "-e", "jfsd") if kind == "rpm" else apt), limit_s=100)
