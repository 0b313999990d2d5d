"""A mount made from a configuration file, for tests that change the file."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from support import mounts
from support.clients import Mounted
from support.session import Service, wait_until

if TYPE_CHECKING:
    from support.clients import Jfsd
    from support.session import Session
    from support.volume import Volume

KEEPER = Path(__file__).parent / "keeper.py"


class Configured:
    """A mount made from a configuration file, and what it tells its service manager."""

    def __init__(self, bed: Session, jfsd: Jfsd, volume: Volume, *, kept: bool = False) -> None:
        self.volume = volume
        self.path = bed.directory("m")
        self.cache = bed.directory("c")
        self.runtime = bed.root / f"{self.path.name}.run"
        self.config = bed.root / f"{self.path.name}.toml"
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(bed.root / f"{self.path.name}.notify"))
        self.manager.settimeout(60)
        self.write()
        env = {
            **jfsd.env(),
            "NOTIFY_SOCKET": self.manager.getsockname(),
            "JFSD_RUNTIME_DIR": str(self.runtime),
        }
        log = bed.root / f"{self.path.name}.jfsd.log"
        if kept:
            env["JFSD_KEPT"] = jfsd.binary
        argv = [KEEPER if kept else jfsd.binary, "mount", "--config", self.config]
        self.service = Service(bed, argv, log, env=env)
        self.mounted = Mounted(jfsd, self.path, self.service)
        volume.mounted.append(self.mounted)
        if kept:  # by a keeper, which is told instead of us
            self.await_log(" is ready ")
        else:
            self.until("READY")

    def write(self, **options: object) -> None:
        """Write the configuration; underscores stand for dashes."""
        values = {"cache_dir": str(self.cache), "cache_size": "1G", **options}
        values = {"meta": self.volume.meta_url, "mountpoint": str(self.path), **values}
        lines = [f"{key.replace('_', '-')} = {json.dumps(v)}" for key, v in values.items()]
        self.config.write_text("\n".join(lines))
        self.config.chmod(0o600)

    def until(self, word: str) -> dict[str, str]:
        """Return the manager's next message with this assignment."""
        while True:
            message = self.manager.recv(8192).decode()
            told = dict(line.split("=", 1) for line in message.splitlines() if "=" in line)
            if word in told:
                return told

    def await_log(self, words: str) -> None:
        """Wait until the log has these words."""
        wait_until(lambda: words in self.service.tail(1000), 60, words)

    def reload(self, **options: object) -> str:
        """Change the configuration and reload it; return the status that the service then has."""
        if options:
            self.write(**options)
        self.service.signal(signal.SIGHUP)
        self.until("RELOADING")
        return self.until("READY")["STATUS"]

    def options(self) -> dict[str, str]:
        """Return what the server says it goes by."""
        (record,) = self.runtime.glob("*.json")
        return json.loads(record.read_text())["options"]

    def bdi(self, name: str) -> str:
        """Return a number that the kernel keeps for the mount."""
        minor = mounts.at(self.path)[-1].minor
        return Path(f"/sys/class/bdi/0:{minor}/{name}").read_text().strip()
