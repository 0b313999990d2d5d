"""Where a mount's settings come from: a configuration file, a command line, or both.

A server keeps its `Source` and reads it again at a reload; `jfsd check` reads the same one
before, and so sees what the reload would see.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jfsd.config.credentials import password_of
from jfsd.config.file import META, MOUNTPOINT, ConfigFile, read_config
from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Change, Value
from jfsd.config.runtime import records
from jfsd.config.settings import (
    Difference,
    MountSettings,
    diff,
    settings_from,
    settings_from_texts,
)
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, field


class Wanted(NamedTuple):
    """What shall be mounted where, and how."""

    meta_url: str
    mountpoint: str
    settings: MountSettings


class Source(Record):
    """A configuration file and what a command line said beside it, which wins."""

    config: str = ""
    """Absolute path of the file; "" for none."""
    meta_url: str = field(default="", repr=False)
    """As on the command line; "" leaves it to the file."""
    mountpoint: str = ""
    """As on the command line, absolute; "" leaves it to the file."""
    overrides: Mapping[str, Value] = field(default_factory=dict)
    """Options of the command line, by the name of their row."""

    def load(self) -> Wanted:
        """Return what is wanted now; the file is read each time.

        Raises:
            RefusedError: The file is not what it should be, options contradict each other,
                or nobody says what to mount or where.
        """
        file = read_config(self.config) if self.config else ConfigFile("")
        settings = settings_from({**file.values, **self.overrides})
        meta_url = self.meta_url or file.meta_url
        mountpoint = self.mountpoint or file.mountpoint
        if not meta_url:
            raise self._missing(META, "redis://localhost/1")
        if not mountpoint:
            raise self._missing(MOUNTPOINT, "/mnt/jfs")
        return Wanted(meta_url, mountpoint, settings)

    @property
    def left_to_file(self) -> tuple[str, ...]:
        """Names of the fixed options that a file decides on: a live mount may keep its own.

        Who asks for something on the command line wants just that, or nothing.
        """
        said = set(self.overrides)
        if "o" in said:
            said.add("read-only")
        fixed = (flag.name for flag in MOUNT_FLAGS if flag.change is Change.FIXED)
        return tuple(name for name in fixed if self.config and name not in said)

    def as_dict(self) -> dict[str, Any]:
        """Return all but the URL as JSON can hold it; `from_dict` reads it back."""
        return {
            "config": self.config,
            "meta": bool(self.meta_url),
            "mountpoint": self.mountpoint,
            "overrides": {
                name: BY_NAME[name].show(value) for name, value in self.overrides.items()
            },
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], meta_url: str) -> Source:
        """Return the source that `as_dict` described.

        Raises:
            RefusedError: It has an option or value that this version does not know.
        """
        overrides: dict[str, Value] = {}
        for name, text in fields.get("overrides", {}).items():
            if name not in BY_NAME:
                raise RefusedError(
                    ExitCode.USAGE, name, "is not an option of mount", "mount again without it"
                )
            overrides[name] = BY_NAME[name].parse(text)
        config = str(fields.get("config", ""))
        if not fields.get("meta", not config):
            meta_url = ""  # the file says it
        return cls(config, meta_url, str(fields.get("mountpoint", "")), overrides)

    def _missing(self, key: str, example: str) -> RefusedError:
        return RefusedError(
            ExitCode.USAGE,
            f"{self.config or 'the command line'}: {key}",
            "is missing",
            f'add the line {key} = "{example}"',
        )


def last_wanted(source: Source) -> Wanted | None:
    """Return what the last server from the same file went by, None if nothing is known of it.

    The command line still wins. For a server whose file cannot be used any more, while its
    mount waits to be served.
    """
    for record in records():
        if source.config and record.source.get("config") == source.config:
            live = settings_from_texts(record.options)
            values = {flag.name: live.value(flag) for flag in MOUNT_FLAGS}
            settings = settings_from({**values, **source.overrides})
            return Wanted(record.meta_url, record.mountpoint, settings)
    return None


def given(settings: MountSettings) -> dict[str, Value]:
    """Return the options that are not at their default, by name."""
    return {
        flag.name: settings.value(flag)
        for flag in MOUNT_FLAGS
        if settings.value(flag) != flag.default_value
    }


def differences(before: Wanted, after: Wanted) -> list[Difference]:
    """Return what differs: options, and what is mounted where. No password is in it."""
    found = []
    if before.meta_url != after.meta_url:
        old, new = _masked(before.meta_url), _masked(after.meta_url)
        if old == new:
            new = f"{new} (another password)"
        found.append(Difference(META, old, new, Change.RESTART))
    if before.mountpoint != after.mountpoint:
        found.append(Difference(MOUNTPOINT, before.mountpoint, after.mountpoint, Change.FIXED))
    return found + diff(before.settings, after.settings)


def _masked(url: str) -> str:
    password = password_of(url)
    return url.replace(f":{password}@", ":***@") if password else url
