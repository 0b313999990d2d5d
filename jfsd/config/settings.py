"""What a mount was told: every option, parsed and checked against the others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jfsd.config.address import DEFAULT, parse_address
from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Change, Flag, Value
from jfsd.config.fuseopts import FuseOptions, effective_words, parse_fuse_options
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, replace

MEMORY_CACHE = "memory"
"""The word that `--cache-dir` takes instead of directories."""

_MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255


class MountSettings(Record, kw_only=True):
    """Every mount option with its value; defaults are those of `config.flags`.

    Values are in range and do not contradict each other: `check` ran when the
    settings were made.
    """

    fuse_options: tuple[str, ...] = ()
    read_only: bool = False
    subdir: str = ""
    stop_wait_s: float = 10.0
    enable_xattr: bool = True
    heartbeat_s: float = 12.0
    no_bgjob: bool = False
    backup_meta_s: float = 0.0
    attr_cache_s: float = 1.0
    entry_cache_s: float = 1.0
    dir_entry_cache_s: float = 1.0
    open_cache_s: float = 0.0
    storage: str = ""
    bucket: str = ""
    access_key_file: str = ""
    secret_key_file: str = ""
    session_token_file: str = ""
    get_timeout_s: float = 60.0
    put_timeout_s: float = 60.0
    io_retries: int = 10
    max_uploads: int = 20
    max_downloads: int = 200
    upload_limit_mbps: int = 0
    download_limit_mbps: int = 0
    buffer_size_bytes: int = 300 << 20
    max_readahead_bytes: int = 32 << 20
    prefetch: int = 1
    cache_dirs: tuple[str, ...] = ("/var/cache/jfsd",)
    cache_size_bytes: int = 100 << 30
    free_space_ratio: float = 0.1
    metrics: str = DEFAULT
    log_level: str = "info"
    no_syslog: bool = False

    def __post_init__(self) -> None:
        """Bring equal settings to one form and refuse contradictions."""
        options = parse_fuse_options(self.fuse_options)
        if self.read_only and "rw" in self.fuse_options:
            raise RefusedError(
                ExitCode.USAGE, "--read-only and -o rw", "contradict each other", "drop one of them"
            )
        object.__setattr__(self, "read_only", self.read_only or options.read_only)
        object.__setattr__(self, "subdir", _clean_subdir(self.subdir))
        _check_cache_dirs(self.cache_dirs)
        _check_backup(self.backup_meta_s)
        _check_metrics(self.metrics)

    def value(self, flag: Flag) -> Value:
        """Return the value of an option."""
        found: Value = getattr(self, flag.field)
        return found

    def effective(self, flag: Flag) -> Value:
        """Return the value of an option in one form: equal ones have the same effect."""
        return effective_words(self.fuse_options) if flag.name == "o" else self.value(flag)

    def taking(self, names: Iterable[str], other: MountSettings) -> MountSettings:
        """Return these settings, with the options of these names as `other` has them."""
        fields: dict[str, Any] = {BY_NAME[name].field: other.value(BY_NAME[name]) for name in names}
        return replace(self, **fields)

    def as_texts(self) -> dict[str, str]:
        """Return every option's value by name, as a person writes it."""
        return {flag.name: flag.show(self.value(flag)) for flag in MOUNT_FLAGS}

    @property
    def fuse(self) -> FuseOptions:
        """What `-o` asked for."""
        return parse_fuse_options(self.fuse_options)

    @property
    def subdir_names(self) -> tuple[bytes, ...]:
        """The names that lead from the volume's root to the mounted directory."""
        return tuple(os.fsencode(name) for name in self.subdir.split("/") if name)

    @property
    def allow_other(self) -> bool:
        """Whether other users may use the mount: as asked, else for root only."""
        asked = self.fuse.allow_other
        return os.geteuid() == 0 if asked is None else asked

    @property
    def memory_cache(self) -> bool:
        """Whether blocks are cached in memory instead of directories."""
        return self.cache_dirs == (MEMORY_CACHE,)


def settings_from(values: Mapping[str, Value | None]) -> MountSettings:
    """Return settings from parsed values by flag name; None and what is absent is the default.

    Raises:
        RefusedError: An unknown name, or values that contradict each other.
    """
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in BY_NAME:
            raise RefusedError(ExitCode.USAGE, name, "is not an option of mount", "leave it out")
        if value is not None:
            fields[BY_NAME[name].field] = value
    return MountSettings(**fields)


def settings_from_texts(texts: Mapping[str, str]) -> MountSettings:
    """Return the settings that `as_texts` described; what another version knows is left out.

    Raises:
        RefusedError: It has a value that this version does not take.
    """
    return settings_from(
        {name: BY_NAME[name].parse(text) for name, text in texts.items() if name in BY_NAME}
    )


class Difference(NamedTuple):
    """One option that two settings disagree on, with both values as a person writes them."""

    option: str
    """As it is typed: `--attr-cache`; `meta` and `mountpoint` have no dashes."""
    before: str
    after: str
    change: Change

    def __str__(self) -> str:
        return f"{self.option} {self.before or '(none)'} -> {self.after or '(none)'}"


def diff(before: MountSettings, after: MountSettings) -> list[Difference]:
    """Return the options that differ, in the order of the rows."""
    return [
        Difference(
            flag.option,
            flag.show(before.value(flag)),
            flag.show(after.value(flag)),
            flag.change,
        )
        for flag in MOUNT_FLAGS
        if before.effective(flag) != after.effective(flag)
    ]


def _clean_subdir(path: str) -> str:
    """Return the path without doubled, leading and trailing slashes."""
    names = [name for name in path.split("/") if name]
    for name in names:
        if name in {".", ".."}:
            raise RefusedError(
                ExitCode.USAGE, f"--subdir {path!r}", f"contains {name!r}", "give a plain path"
            )
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            raise RefusedError(
                ExitCode.USAGE,
                f"--subdir {path[:40]!r}...",
                f"has a name over {_MAX_NAME_BYTES} bytes",
                "give a directory that exists in the volume",
            )
    cleaned = "/".join(names)
    if len(os.fsencode(cleaned)) > _MAX_PATH_BYTES:
        raise RefusedError(
            ExitCode.USAGE,
            f"--subdir {path[:40]!r}...",
            f"is over {_MAX_PATH_BYTES} bytes",
            "give a shorter path",
        )
    return cleaned


def _check_cache_dirs(dirs: tuple[str, ...]) -> None:
    shown = "--cache-dir " + repr(":".join(dirs))
    if not dirs:
        raise RefusedError(ExitCode.USAGE, shown, "is empty", "give a directory or memory")
    if dirs == (MEMORY_CACHE,):
        return
    if MEMORY_CACHE in dirs:
        raise RefusedError(
            ExitCode.USAGE, shown, "mixes memory and directories", "give one or the other"
        )
    for path in dirs:
        if not path.startswith("/"):
            raise RefusedError(
                ExitCode.USAGE, shown, f"{path!r} is not an absolute path", "begin it with /"
            )


def _check_backup(interval_s: float) -> None:
    if interval_s:
        raise RefusedError(
            ExitCode.USAGE,
            f"--backup-meta {interval_s:g}s",
            "the mount does not back up metadata",
            "give 0 or leave it out, and run `juicefs dump` from a timer",
        )


def _check_metrics(address: str) -> None:
    try:
        parse_address(address)
    except ValueError as error:
        raise BY_NAME["metrics"].refusal(address, str(error)) from None
