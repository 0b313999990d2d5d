"""Where passwords come from, and mounts that fstab describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.conftest import Served

SECRET = "not-to-be-seen"


@pytest.mark.promise(17)
@pytest.mark.promise(18)
def test_a_password_comes_from_the_store_of_credentials(
    new_service: Callable[[], Served],
) -> None:
    service = new_service()
    say, name = service.machine.shell, f"redis-{service.instance}"
    service.url = "redis://localhost:6390/0"
    say(
        f"systemd-run -q --unit={name} redis-server --port 6390 --requirepass {SECRET} --save '';"
        f"while ! redis-cli -p 6390 ping >/dev/null; do sleep 0.1; done;"
        f"mkdir -p {service.bucket}/more; chown jfs {service.bucket}/more;"
        f"META_PASSWORD={SECRET} setpriv --reuid=jfs --regid=jfs --init-groups --"
        f" jfsd format {service.url} secret --bucket {service.bucket}/more"
    )
    service.configure()
    path = f"/etc/credstore/jfs.{service.instance}.meta-password"
    service.machine.write(path, f"{SECRET}\n", 0o600)
    try:
        service.start()
        say(f"echo hello >{service.point}/a; cat {service.point}/a")
        pid = service.main_pid()
        assert SECRET not in say(
            f"tr '\\0' '\\n' </proc/{pid}/environ; jfsd status {service.point}"
        )
        assert SECRET not in service.log()
        service.machine.systemctl("stop", service.unit)
    finally:
        say(f"rm {path}; systemctl stop {name}")


@pytest.mark.promise(17)
def test_a_line_of_fstab_is_a_mount_unit(new_service: Callable[[], Served]) -> None:
    service = new_service()
    machine, say = service.machine, service.machine.shell
    line = f"{service.instance} {service.point} jfsd noauto,_netdev,nofail,prefetch=2 0 0\n"
    machine.write("/etc/fstab", line)
    say(f"chown -R root: {service.bucket}")
    machine.systemctl("daemon-reload")
    unit = f"{service.instance}.mount"
    machine.systemctl("start", unit)
    try:
        assert say(f"echo hello >{service.point}/a; cat {service.point}/a") == "hello\n"
        assert service.machine.systemctl("start", service.unit, check=False).returncode != 0
        assert "is a mount already" in service.log()
        assert say(f"cat {service.point}/a") == "hello\n"
        machine.systemctl("stop", unit)
        assert service.mounts() == []
    finally:
        machine.write("/etc/fstab", "")
        machine.systemctl("daemon-reload")
