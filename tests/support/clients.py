"""The two programs that mount a volume: ours, and the reference."""

from __future__ import annotations

import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from support import mounts
from support.session import Service, Session, clean_env, program, run, wait_until

if TYPE_CHECKING:
    from support.weed import Bucket

UNMOUNT_S = 60


@dataclass(frozen=True)
class Storage:
    """Where a volume's objects are: a directory of its own, or a bucket."""

    directory: Path | None = None
    bucket: Bucket | None = None

    @property
    def kind(self) -> str:
        """`file` or `s3`."""
        return "s3" if self.bucket else "file"

    def flags(self) -> list[str]:
        """Return the flags of `format` that name this store."""
        if self.bucket:
            flags = ["--storage", "s3", "--bucket", self.bucket.url]
            return [
                *flags,
                "--access-key",
                self.bucket.access_key,
                "--secret-key",
                self.bucket.secret_key,
            ]
        return ["--storage", "file", "--bucket", f"{self.directory}/"]


class Mounted:
    """A mount point that is being served by one process in the foreground."""

    def __init__(self, client: Client, path: Path, service: Service) -> None:
        self.client = client
        self.path = path
        self.service = service

    def __repr__(self) -> str:
        return f"<{self.client.name} on {self.path} {self.service!r}>"

    def pids(self) -> list[int]:
        """Return all processes that serve this mount."""
        below = self.service.session.request("descendants", pid=self.service.pid)
        alive = [self.service.pid] if self.service.returncode() is None else []
        return alive + below

    def serving_pid(self) -> int:
        """Return the process that answers requests."""
        return self.pids()[-1]

    def unmount(self) -> None:
        """Unmount in the program's own way; everything is flushed and the process has ended."""
        self.client.unmount(self.path)
        status = self.service.wait(UNMOUNT_S)
        assert status == 0, f"{self!r}: exit {status}\n{self.service.tail()}"
        assert not mounts.at(self.path), f"{self.path} is still mounted"

    def kill(self) -> None:
        """SIGKILL all of it and take the dead mount away."""
        self.service.kill(group=True)
        self.service.session.request("abort", path=str(self.path))
        self.service.session.request("detach", path=str(self.path))

    def discard(self) -> None:
        """End it however it takes; for teardown."""
        if self.service.returncode() is None and mounts.at(self.path):
            try:
                self.client.unmount(self.path)
                self.service.wait(20)
            except (AssertionError, TimeoutError):
                self.kill()
                raise AssertionError(
                    f"{self!r} could not be unmounted\n{self.service.tail()}"
                ) from None
        self.kill()


class Client:
    """A program that formats and mounts volumes."""

    name: ClassVar[str] = ""
    defaults: ClassVar[dict[str, str]] = {}

    def __init__(self, session: Session) -> None:
        self.session = session
        self.binary = program(self.name)
        self.extra_env = {"HOME": str(session.root), **self.defaults}

    def env(self) -> dict[str, str]:
        """Return the environment that the program runs in."""
        return clean_env(**self.extra_env)

    def run(
        self, *arguments: str | Path, limit_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the program to its end."""
        return run([self.binary, *arguments], limit_s=limit_s, check=check, env=self.env())

    def format(self, meta_url: str, name: str, storage: Storage, *flags: str) -> None:
        """Create a volume."""
        self.run("format", *storage.flags(), *flags, meta_url, name)

    def mount_flags(self) -> list[str]:
        """Return the flags that every mount of the tests gets."""
        raise NotImplementedError

    def mount(
        self, meta_url: str, path: Path, *flags: str, limit_s: float = 30, cache: Path | None = None
    ) -> Mounted:
        """Mount a volume and return when it answers.

        Without `cache` the mount gets a new, empty cache directory.
        """
        if not mounts.at(path):
            path.mkdir(exist_ok=True)
        cache = cache or self.session.directory("c")
        log = self.session.root / f"{path.name}.{self.name}.log"
        before = len(mounts.at(path))
        argv = [self.binary, "mount", *self.mount_flags(), "--cache-dir", str(cache)]
        service = Service(self.session, [*argv, *flags, meta_url, path], log, env=self.env())
        mounted = Mounted(self, path, service)
        try:
            wait_until(
                lambda: service.returncode() is not None or len(mounts.at(path)) > before,
                limit_s,
                f"mount of {path}",
            )
            assert service.returncode() is None, f"exit {service.returncode()}"
            run(["stat", path], limit_s=limit_s)
        except (AssertionError, TimeoutError) as error:
            mounted.kill()
            raise AssertionError(
                f"{self.name} does not mount: {error}\n{service.tail()}"
            ) from error
        return mounted

    def unmount(self, path: Path) -> None:
        """Unmount, waiting until the server has flushed."""
        self.run("umount", path, limit_s=UNMOUNT_S)

    def status(self, target: str | Path) -> dict:
        """Return what `status` prints, decoded."""
        return json.loads(self.run("status", target).stdout)


HARMLESS = (
    "Set storage tier: not supported",
    "AOF is not enabled",
    "Metadata backup is disabled",
    "stop deleting slice",
)


class JuiceFS(Client):
    """The reference, juicefs 1.4.2. A mount is two processes; the child serves."""

    name: ClassVar[str] = "juicefs"
    defaults: ClassVar[dict[str, str]] = {"JFS_GC_SKIPPEDTIME": "0"}

    def run(
        self, *arguments: str | Path, limit_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; no profiling server, no colours."""
        return super().run(
            *arguments[:1], "--no-agent", "--no-color", *arguments[1:], limit_s=limit_s, check=check
        )

    def mount_flags(self) -> list[str]:
        """No reports to anybody; xattrs and all times as jfsd has them by default."""
        flags = ["--no-usage-report", "--no-agent", "--enable-xattr"]
        return [*flags, "--backup-meta", "0", "--skip-dir-mtime", "0"]

    def fsck(self, meta_url: str) -> str:
        """Check blocks and directories of the volume; any complaint fails."""
        blocks = self._quiet("fsck", meta_url)
        return blocks + self._quiet("fsck", "--path", "/", "--recursive", meta_url)

    def gc(self, meta_url: str, *flags: str) -> str:
        """Run `gc`, which only looks unless told otherwise; return its report."""
        return self._quiet("gc", *flags, meta_url)

    def dump(self, meta_url: str) -> dict:
        """Return the whole metadata, decoded."""
        return json.loads(self.run("dump", meta_url, limit_s=120).stdout)

    def quota(self, verb: str, meta_url: str, *flags: str) -> str:
        """Run a `quota` command; for `check` any complaint fails."""
        done = self.run("quota", verb, meta_url, *flags)
        return done.stdout + done.stderr

    def info(self, *paths: Path) -> str:
        """Return what `info` prints about paths of a mount."""
        return self.run("info", *paths).stdout

    def _quiet(self, *arguments: str) -> str:
        done = self.run(*arguments, limit_s=120)
        report = done.stdout + done.stderr
        complaints = [
            line
            for line in report.splitlines()
            if ("<ERROR>" in line or "<WARNING>" in line or "<FATAL>" in line)
            and not any(word in line for word in HARMLESS)
        ]
        assert not complaints, "\n".join(complaints)
        return report


class Jfsd(Client):
    """The program under test, from this checkout."""

    name: ClassVar[str] = "jfsd"

    def mount_flags(self) -> list[str]:
        """The defaults."""
        return ["--no-syslog"]


def stop_signal(service: Service) -> int:
    """SIGTERM a foreground mount; return its exit status once it has flushed and gone."""
    service.signal(signal.SIGTERM)
    return service.wait(UNMOUNT_S)
