"""A machine with the package installed, and services on it."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.machine import Loading, Machine
from support.session import run, wait_until

from jfsd.systemd.journal import EVENT_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[2]
VERSION = "0.1.0"
_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the first test the time that building the package and booting take."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


class Served:
    """One instance of jfs@.service, with a volume of its own."""

    def __init__(self, machine: Machine) -> None:
        number = next(_numbers)
        self.machine = machine
        self.point = f"/mnt/jfs{number}"
        self.instance = f"mnt-jfs{number}"
        self.unit = f"jfs@{self.instance}.service"
        self.url = f"redis://localhost/{number}"
        self.bucket = f"/srv/objects{number}"
        machine.shell(
            f"mkdir -p {self.point} {self.bucket}; chown jfs: {self.bucket};"
            f"setpriv --reuid=jfs --regid=jfs --init-groups --"
            f" jfsd format {self.url} vol{number} --bucket {self.bucket} --trash-days 0"
        )
        self.configure()

    def configure(self, **options: str) -> None:
        """Write the configuration; underscores stand for dashes."""
        lines = [f'meta = "{self.url}"']
        lines += [f'{name.replace("_", "-")} = "{value}"' for name, value in options.items()]
        path = f"/etc/jfs/{self.instance}.toml"
        self.machine.write(path, "\n".join(lines) + "\n", 0o640)
        self.machine.run("chown", "root:jfs", path)

    def start(self) -> None:
        """Start the unit."""
        done = self.machine.systemctl("start", self.unit, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.log()}"

    def drop_in(self, text: str) -> None:
        """Change settings of the unit, for this instance."""
        self.machine.write(f"/run/systemd/system/{self.unit}.d/test.conf", f"[Service]\n{text}\n")
        self.machine.systemctl("daemon-reload")

    def main_pid(self) -> int:
        """Return the server, as it is numbered inside."""
        return int(self.show("MainPID")["MainPID"])

    def show(self, *names: str) -> dict[str, str]:
        """Return properties of the unit."""
        return self.machine.show(self.unit, *names)

    def kill(self, signal: str) -> None:
        """Send a signal to the server."""
        self.machine.run("kill", f"-{signal}", self.main_pid())

    def await_state(self, limit_s: float = 60, **wanted: str) -> dict[str, str]:
        """Return the unit's properties once they are as wanted."""
        found: dict[str, str] = {}

        def reached() -> bool:
            found.update(self.show(*wanted, "ActiveState", "SubState", "Result", "StatusText"))
            return all(found.get(name) == value for name, value in wanted.items())

        try:
            wait_until(reached, limit_s, f"{self.unit}: {wanted}")
        except TimeoutError:
            pytest.fail(f"{self.unit}: {found}, not {wanted}\n{self.log()}")
        return found

    def await_other(self, pid: int) -> int:
        """Return the server once it is another than `pid`."""
        wait_until(lambda: self.main_pid() not in (0, pid), 60, f"another server than {pid}")
        return self.main_pid()

    def await_events(self, number: int) -> list[dict[str, str]]:
        """Return the journal's records of events, once there are so many."""

        def records() -> list[dict[str, str]]:
            return self.machine.journal(self.unit, f"MESSAGE_ID={EVENT_ID}")

        wait_until(lambda: len(records()) >= number, 30, f"{number} events in the journal")
        return records()

    def log(self) -> str:
        """Return what the journal has of the unit."""
        return self.machine.messages(self.unit)

    def mounts(self) -> list[str]:
        """Return the lines of the mount table for the mount point, as PID 1 sees it."""
        table = self.machine.path("/proc/1/mountinfo").read_text().splitlines()
        return [line for line in table if line.split()[4] == self.point]

    def close(self) -> None:
        """Leave nothing."""
        self.machine.systemctl("stop", self.unit, check=False)
        self.machine.systemctl("reset-failed", self.unit, check=False)
        self.machine.shell(f"rm -rf /run/systemd/system/{self.unit}.d")
        self.machine.shell(f"umount -l {self.point} 2>/dev/null || true; rmdir {self.point}")


@pytest.fixture(scope="session")
def build_deb() -> Callable[[str], Path]:
    """A function that builds the package as some version."""
    built: dict[str, Path] = {}

    def build(version: str) -> Path:
        if version not in built:
            done = run([REPOSITORY / "packaging/build-deb", version, "none"], limit_s=500)
            built[version] = REPOSITORY / done.stdout.splitlines()[-1]
        return built[version]

    return build


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, build_deb: Callable[[str], Path]) -> Iterator[Machine]:
    """A machine with Redis running and the package installed, shared by the session."""
    package = build_deb(VERSION)
    machine = Machine(request.getfixturevalue("bed"), "m")
    try:
        install(machine, package)
        machine.shell("sed -i 's/^databases .*/databases 1000/' /etc/redis/redis.conf")
        machine.systemctl("start", "redis-server")
        yield machine
    finally:
        machine.close()


@pytest.fixture(scope="session")
def build_rpm() -> Callable[[str], Path]:
    """A function that builds the RPM package as some version."""

    def build(version: str) -> Path:
        done = run([REPOSITORY / "packaging/build-rpm", version], limit_s=500)
        return REPOSITORY / done.stdout.splitlines()[-1]

    return build


def install(machine: Machine, package: Path) -> str:
    """Install a package as an administrator would, from a file; return what is said."""
    if package.suffix == ".rpm":
        machine.path("/root/jfsd.rpm").write_bytes(package.read_bytes())
        words = ("rpm", "-U", "--force-debian", "--nodeps", "--oldpackage", "/root/jfsd.rpm")
        done = machine.run(*words, limit_s=200)
        return done.stdout + done.stderr
    machine.path("/root/jfsd.deb").write_bytes(package.read_bytes())
    done = machine.run(
        *("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-q"),
        *("--no-install-recommends", "--allow-downgrades", "/root/jfsd.deb"),
        limit_s=200,
    )
    return done.stdout + done.stderr


@pytest.fixture
def new_service(machine: Machine) -> Iterator[Callable[[], Served]]:
    """A function that prepares a service with a volume; it is not started."""
    with contextlib.ExitStack() as stack:

        def build() -> Served:
            service = Served(machine)
            stack.callback(service.close)
            return service

        yield build


@pytest.fixture
def service(new_service: Callable[[], Served]) -> Served:
    """A service that runs."""
    service = new_service()
    service.start()
    return service


@pytest.fixture
def load(service: Served) -> Iterator[Loading]:
    """The checked load, on the running service."""
    loading = Loading(service.machine, service.point)
    yield loading
    loading.kill()
