"""What the README says, on small systems of the releases that it is said for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import debian
from support.machine import Loading, Machine

from tests.system.conftest import VERSION, install

if TYPE_CHECKING:
    from support.session import Session

POINT, UNIT = "/mnt/jfs", "jfs@mnt-jfs.service"

SETUP = """
systemctl enable -q --now redis-server
jfsd format redis://localhost/1 myvol --bucket /srv/objects
echo 'meta = "redis://localhost/1"' >/etc/jfs/mnt-jfs.toml
chown root:jfs /etc/jfs/mnt-jfs.toml
chmod 640 /etc/jfs/mnt-jfs.toml
chown -R jfs /srv/objects
mkdir -p /mnt/jfs
systemctl enable --now jfs@mnt-jfs
"""

EVENTS = """
cp -a /usr/share/doc /mnt/jfs/
echo 'cache-size = "20G"' >>/etc/jfs/mnt-jfs.toml
systemctl reload jfs@mnt-jfs
systemctl restart jfs@mnt-jfs
jfsd upgrade /mnt/jfs
systemctl restart jfs@mnt-jfs
systemctl kill -s KILL --kill-whom=main jfs@mnt-jfs
ls /mnt/jfs
systemctl daemon-reexec
diff -r /usr/share/doc /mnt/jfs/doc
"""


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.promise(17)
@pytest.mark.promise(18)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_readme_is_true_on(suite: str, bed: Session) -> None:
    package = debian.package(suite, VERSION, bed.directory("b"))
    machine = Machine(bed, suite, str(debian.system(suite)))
    try:
        install(machine, package)
        machine.shell(SETUP)
        load = Loading(machine, POINT)
        machine.shell(EVENTS, limit_s=200)
        load.stop()
        assert machine.show(UNIT, "NFileDescriptorStore", "ActiveState") == {
            "NFileDescriptorStore": "3",
            "ActiveState": "active",
        }
        say = machine.shell
        assert not say("systemd-analyze --no-pager verify /usr/lib/systemd/system/jfs*@.service")
        last = say(f"systemd-analyze --no-pager security {UNIT}").splitlines()[-1]
        assert float(last.split(": ")[1].split()[0]) < 2.5, last
        machine.reboot()
        say(f"while ! systemctl -q is-active {UNIT}; do sleep 0.2; done", limit_s=100)
        say(f"diff -r /usr/share/doc {POINT}/doc", limit_s=100)
        machine.systemctl("stop", UNIT)
        assert machine.show(UNIT, "Result", "ActiveState") == {
            "Result": "success",
            "ActiveState": "inactive",
        }
        log = machine.messages(UNIT)
        assert "Traceback" not in log, log
        assert "credential" not in log, log
        assert "is not started again" not in machine.messages("jfs-failed@mnt-jfs.service")
    finally:
        machine.close()
