"""The file that a server without a journal writes to: its last words, and its size."""

from __future__ import annotations

import os
from pathlib import Path

OWN_LOGGER = "jfsd.daemon.holder"
"""What the holder's own lines are signed with: they are not a server's last words."""

MAX_BYTES = 32 << 20
"""A log in a memory file system must not fill it: above this, one former part is kept."""

_TAIL_BYTES = 16384
_OWN_LINE = f"[{OWN_LOGGER}]"
_REPORT = "jfsd: "
"""How the one line begins in which a command says why it failed."""


class LogFile:
    """A file that others append to; None if server and holder write to a terminal."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def size(self) -> int:
        """Return its length, to be given to `last_words` later."""
        return self._path.stat().st_size if self._path and self._path.exists() else 0

    def last_words(self, since: int) -> str:
        """Return the line that says why a server ended, of what was written since; or ""."""
        if self._path is None or not self._path.exists():
            return ""
        with self._path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(since if since <= end else 0, end - _TAIL_BYTES))
            text = file.read().decode(errors="backslashreplace")
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line and not line.endswith(_OWN_LINE)]
        reports = [line.removeprefix(_REPORT) for line in lines if line.startswith(_REPORT)]
        return (reports or lines or [""])[-1]

    def trim(self) -> None:
        """Move what there is to a file beside it if it is too much; writers go on unaware."""
        if self.size() <= MAX_BYTES or self._path is None:
            return
        former = self._path.with_name(self._path.name + ".1")
        draft = self._path.with_name(self._path.name + ".tmp")
        with self._path.open("rb") as source, draft.open("wb") as target:
            draft.chmod(0o600)
            length = source.seek(0, os.SEEK_END)
            os.sendfile(target.fileno(), source.fileno(), max(0, length - MAX_BYTES), MAX_BYTES)
        draft.replace(former)
        os.truncate(self._path, 0)
