"""A formatted volume, and everything the tests do with one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import redis
from support import audit

if TYPE_CHECKING:
    from pathlib import Path

    from support.clients import Client, JuiceFS, Mounted, Storage
    from support.session import Session


class Volume:
    """A volume of one test; `close` unmounts what is left and checks nothing was broken."""

    def __init__(
        self,
        session: Session,
        client: Client,
        juicefs: JuiceFS,
        meta_url: str,
        storage: Storage,
        name: str,
    ) -> None:
        self.session = session
        self.client = client
        self.juicefs = juicefs
        self.meta_url = meta_url
        self.storage = storage
        self.name = name
        self.mounted: list[Mounted] = []
        self.only_ours = True

    def mount(
        self,
        *flags: str,
        client: Client | None = None,
        path: Path | None = None,
        cache: Path | None = None,
    ) -> Mounted:
        """Mount the volume at a new mount point, with a cold cache unless one is given."""
        path = path or self.session.directory("m")
        mounted = (client or self.client).mount(self.meta_url, path, *flags, cache=cache)
        self.mounted.append(mounted)
        self.only_ours &= mounted.client.name == "jfsd"
        return mounted

    def remount(self, mounted: Mounted, *flags: str) -> Mounted:
        """Unmount, and mount again at the same place with a cold cache."""
        mounted.unmount()
        return self.mount(*flags, client=mounted.client, path=mounted.path)

    def kept_objects(self) -> list[Path]:
        """Return all block objects of a volume whose store is a directory."""
        root = self.storage.directory / self.name / "chunks"
        return sorted(p for p in root.rglob("*") if p.is_file())

    def database(self) -> redis.Redis:
        """Return a client of the volume's metadata."""
        return redis.Redis.from_url(self.meta_url)

    def unused_objects(self) -> list[str]:
        """Return the block objects of a directory that no slice refers to, with their sizes."""
        if not self.storage.directory:
            return []
        with self.database() as client:
            records = [r for key in client.scan_iter("c*_*") for r in client.lrange(key, 0, -1)]
            used = {int.from_bytes(record[4:12], "big") for record in records}
            used |= {int(field[1:].split(b"_")[0]) for field in client.hkeys("sliceRef")}
        paths = [
            path
            for path in self.kept_objects()
            if path.name.startswith(".") or int(path.name.split("_")[0]) not in used
        ]
        return [f"{path.name} of {path.stat().st_size} bytes" for path in paths]

    def check(self) -> None:
        """Fail if the reference's tools, or a recount of our own, find anything wrong.

        The recount is left out where the reference has mounted the volume: its
        directory statistics follow later and keep what it replaced.
        """
        self.juicefs.fsck(self.meta_url)
        report = self.juicefs.gc(self.meta_url)
        leaked = re.search(r"(\d+) leaked", report)
        assert leaked, report
        assert leaked[1] == "0", f"{self.unused_objects()}\n{report}"
        if self.client.name == "jfsd" and self.only_ours:
            with self.database() as client:
                assert audit.problems(client) == []

    def close(self) -> None:
        """Unmount everything that is still mounted."""
        failures = []
        for mounted in reversed(self.mounted):
            try:
                mounted.discard()
            except AssertionError as error:
                failures.append(error)
        self.mounted.clear()
        if failures:
            raise failures[0]
