"""Which mounts are served on this machine: one file each, for root and the owner only.

A served mount writes `<runtime directory>/<escaped mount point>.json` and removes it
at the end; commands that take a path find the volume through it. The file holds the
metadata URL with its password, so the directory is 0700 and the file 0600. A kill
leaves the file behind: whether the mount exists, only the kernel says.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jfsd.config.credentials import with_credentials
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, as_dict, field, names

DIRECTORY_VARIABLE = "JFSD_RUNTIME_DIR"
SERVICE_DIRECTORY = Path("/run/jfs")
"""Where the servers of jfs@.service, which are not root, have their records."""

PASSWORD_VARIABLES = (
    "REDIS_PASSWORD",
    "META_PASSWORD",
    "META_PASSWORD_FILE",
    "SENTINEL_PASSWORD",
)

RECORD, CONTROL = ".json", ".sock"
"""What the mount's files end in: its record, and the control socket of its server."""

_MAX_NAME_BYTES = 255
_SUFFIX_BYTES = 20


def _passwords() -> dict[str, str]:
    environ = with_credentials(os.environ)
    found = {name: environ[name] for name in PASSWORD_VARIABLES if name in environ}
    if file := found.get("META_PASSWORD_FILE"):
        # Who reads the record may be in another directory.
        found["META_PASSWORD_FILE"] = str(Path(file).absolute())
    return found


class MountRecord(Record):
    """What a command needs to know about a served mount."""

    mountpoint: str
    meta_url: str = field(repr=False)
    name: str
    uuid: str
    pid: int
    subdir: str = ""
    read_only: bool = False
    passwords: dict[str, str] = field(default_factory=_passwords, repr=False)
    """Variables that the password of a URL without one came from."""
    options: dict[str, str] = field(default_factory=dict)
    """What the server goes by now: every option's value by name."""
    source: dict[str, Any] = field(default_factory=dict)
    """What it reads again at a reload: `Source.as_dict`."""
    version: str = ""
    """Version of jfsd that serves."""
    layout: int = 0
    """Layout of its parked state."""
    failure: str = ""
    """Why its server ended, if not as it was asked to: read, told and removed by umount."""


def runtime_directory() -> Path:
    """Return the directory of the records; it need not exist."""
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/jfsd")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/jfsd-{os.geteuid()}") / "jfsd"  # noqa: S108


def escape(mountpoint: str) -> str:
    """Return the mount point as one file name, in the form of `systemd-escape --path`."""
    raw = os.fsencode(mountpoint).strip(b"/")
    if not raw:
        return "-"
    parts: list[str] = []
    for byte in raw:
        character = chr(byte)
        if character == "/":
            parts.append("-")
        elif byte < 128 and (character.isalnum() or character in (":_." if parts else ":_")):
            parts.append(character)
        else:
            parts.append(f"\\x{byte:02x}")
    return "".join(parts)


def unescape(instance: str) -> str:
    """Return the path that `escape` made the name from.

    Raises:
        ValueError: No path is written so.
    """
    if instance == "-":
        return "/"
    raw = bytearray()
    for part in re.split(r"(\\x[0-9a-f]{2}|-)", instance):
        if part == "-":
            raw += b"/"
        elif part.startswith("\\x"):
            raw += bytes.fromhex(part[2:])
        else:
            raw += os.fsencode(part)
    path = "/" + os.fsdecode(bytes(raw))
    if escape(path) != instance or "//" in path:
        raise ValueError(f"{instance!r} is not the name of a path")
    return path


def place_of(mountpoint: str, suffix: str) -> Path:
    """Return the path of a file of the mount in the runtime directory; it need not exist.

    A mount point whose name is too long for a file's is cut, and told apart by a digest.
    """
    name = escape(mountpoint)
    if len(name) + _SUFFIX_BYTES > _MAX_NAME_BYTES:
        import hashlib  # noqa: PLC0415 - rare

        digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
        name = name[: _MAX_NAME_BYTES - _SUFFIX_BYTES - len(digest)] + digest
    return runtime_directory() / (name + suffix)


def found_at(mountpoint: str, suffix: str) -> Path:
    """Return the path of a file of whoever serves the mount: a service's, or one of this user's."""
    place = place_of(mountpoint, suffix)
    return max(place, SERVICE_DIRECTORY / place.name, key=_changed_ns)


def make_directory() -> None:
    """Have the directory of the records, private to this user.

    Raises:
        RefusedError: It is somebody else's, or others may look into it.
    """
    directory = runtime_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise RefusedError(
            ExitCode.NO_PRIVILEGE,
            str(directory),
            "must belong to the user of the mount, with mode 0700",
            f"correct or remove it, or name another in {DIRECTORY_VARIABLE}",
        )


def register(record: MountRecord) -> Path:
    """Write the record so that commands find the mount; replaces an older one whole."""
    make_directory()
    path = place_of(record.mountpoint, RECORD)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(as_dict(record), file)
    draft.replace(path)
    return path


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def unregister(mountpoint: str, pid: int) -> None:
    """Remove the record of the mount point if it is the one of process `pid`.

    A detached mount may end after another one was made in its place.
    """
    record = find(mountpoint)
    if record is not None and record.pid == pid:
        place_of(mountpoint, RECORD).unlink(missing_ok=True)


def find(mountpoint: str) -> MountRecord | None:
    """Return the record of what is mounted there; None if it is not ours or not readable."""
    return _read(found_at(mountpoint, RECORD))


def records() -> list[MountRecord]:
    """Return all records that this user can read, newest first; a kill may have left some."""
    paths: list[Path] = []
    for directory in (runtime_directory(), SERVICE_DIRECTORY):
        with suppress(OSError):
            paths += directory.glob(f"*{RECORD}")
    paths.sort(key=_changed_ns, reverse=True)
    return [record for path in paths if (record := _read(path)) is not None]


def _read(path: Path) -> MountRecord | None:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            return _record(json.load(file))
    except (FileNotFoundError, PermissionError, ValueError, TypeError):
        return None


def _record(fields: Mapping[str, Any]) -> MountRecord:
    """Return the record without what a newer version may have added."""
    known = set(names(MountRecord))
    return MountRecord(**{name: value for name, value in fields.items() if name in known})
