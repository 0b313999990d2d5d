"""Every mount option, one row each: name, kind, default, range, help, live or fixed.

The rows drive the command line, `MountSettings`, docs/CONFIGURATION.md and, with the
same names, configuration files. A row is the only place where a fact about an
option is written down.
"""

from __future__ import annotations

import math
import re
from enum import Enum
from typing import TypeAlias

from jfsd.config import units
from jfsd.config.address import DEFAULT
from jfsd.errors import ExitCode, RefusedError
from jfsd.log import LEVELS
from jfsd.record import Record

Value: TypeAlias = str | int | float | bool | tuple[str, ...]
"""What an option can hold, after parsing."""


class Kind(Enum):
    """How the text of an option is read."""

    SWITCH = "switch"
    COUNT = "count"
    RATIO = "ratio"
    BYTES = "size"
    SECONDS = "time"
    MBPS = "bandwidth"
    TEXT = "text"
    CHOICE = "choice"
    PATHS = "paths"
    """Directories separated by colons."""
    WORDS = "words"
    """Comma-separated and repeatable, as with `mount -o`."""


class Change(Enum):
    """Whether a served mount can take another value."""

    LIVE = "live"
    """Takes effect at a reload, without a pause."""
    RESTART = "restart"
    """Takes effect at a restart, which programs do not see."""
    FIXED = "fixed"
    """The kernel was told at mount time: unmount and mount again."""
    CALL = "this call"
    """Says how a command shall do its work, and is not kept."""


class Flag(Record):
    """One option. `default`, `low` and `high` are written as a person would write them."""

    name: str
    """Name on the command line, without the dashes."""
    field: str
    """Attribute of `MountSettings`; it ends in the unit of its number."""
    kind: Kind
    default: str
    help: str
    group: str
    change: Change = Change.RESTART
    low: str = "0"
    high: str = ""
    unit: str = ""
    """Unit of a bare size."""
    choices: tuple[str, ...] = ()
    mend: str = ""
    """What to do about a bad value, when the range does not say it."""
    alias: str = ""
    """Name in a configuration file, if the option's is too short for one."""

    @property
    def option(self) -> str:
        """The option as it is typed."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def opposite(self) -> str:
        """The option that takes a switch back; "" for what is none."""
        if self.kind is not Kind.SWITCH:
            return ""
        return f"--{self.name.removeprefix('no-')}" if self.negated else f"--no-{self.name}"

    @property
    def negated(self) -> bool:
        """Whether the option is the absence of something, as `--no-bgjob` is."""
        return self.name.startswith("no-")

    @property
    def key(self) -> str:
        """The name in a configuration file."""
        return self.alias or self.name

    @property
    def metavar(self) -> str:
        """What stands for the value in help; "" for a switch."""
        if self.name.endswith(("-file", "-rsa-key")):
            return "FILE"
        return _METAVARS[self.kind]

    @property
    def default_value(self) -> Value:
        """The default, parsed."""
        return self.parse(self.default)

    def parse(self, text: str) -> Value:
        """Return the value of `text`.

        Raises:
            RefusedError: Not of this kind, or out of range (exit code USAGE).
        """
        try:
            value = self._read(text)
            self._check_range(value)
        except ValueError as error:
            raise self.refusal(text, str(error)) from None
        return value

    def show(self, value: Value) -> str:
        """Return the text of a value as a person would write it; `parse` reads it back."""
        match value:
            case bool():
                return "true" if value else "false"
            case tuple():
                return (":" if self.kind is Kind.PATHS else ",").join(value)
            case str():
                return value
        if self.kind is Kind.BYTES:
            return units.format_bytes(int(value))
        if self.kind is Kind.SECONDS:
            return units.format_seconds(value)
        return units.format_number(value)

    def argument(self, value: Value) -> str:
        """Return the one word that gives this option `value` on a command line."""
        if self.kind is Kind.SWITCH:
            return self.option if value else self.opposite
        return f"{self.option}{'' if len(self.name) == 1 else '='}{self.show(value)}"

    def refusal(self, text: str, rule: str) -> RefusedError:
        """Return the error for a value of this option that breaks `rule`."""
        shown = text if len(text) <= 80 else text[:77] + "..."
        return RefusedError(ExitCode.USAGE, f"{self.option} {shown!r}", rule, self._mend())

    def _read(self, text: str) -> Value:
        match self.kind:
            case Kind.SWITCH:
                return _switch(text)
            case Kind.COUNT:
                return _count(text)
            case Kind.RATIO:
                return _ratio(text)
            case Kind.BYTES:
                return units.parse_bytes(text, self.unit)
            case Kind.SECONDS:
                return units.parse_seconds(text)
            case Kind.MBPS:
                return units.parse_mbps(text)
            case Kind.PATHS:
                return tuple(part for part in text.split(":") if part)
            case Kind.WORDS:
                return tuple(part for part in text.split(",") if part)
            case Kind.CHOICE:
                return self._choice(text)
            case Kind.TEXT:
                return text

    def _choice(self, text: str) -> str:
        if text.lower() not in self.choices:
            raise ValueError(f"is not one of {self.range_text}")
        return text.lower()

    def _number(self, text: str) -> float:
        value = self._read(text)
        return float(value) if isinstance(value, int | float) else math.nan

    def _check_range(self, value: Value) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if value < self._number(self.low) or (self.high and value > self._number(self.high)):
            raise ValueError(f"is out of range {self.range_text}")

    @property
    def range_text(self) -> str:
        """The range as help and messages show it; "" for what has none."""
        if self.kind in {Kind.SWITCH, Kind.TEXT, Kind.PATHS, Kind.WORDS}:
            return ""
        if self.kind is Kind.CHOICE:
            return ", ".join(word for word in self.choices if word)
        return f"{self.low} to {self.high}" if self.high else f"{self.low} or more"

    def _mend(self) -> str:
        if self.mend:
            return self.mend
        if self.kind is Kind.SWITCH:
            return "give true or false"
        return f"give {self.range_text} (default {self.default})"


_METAVARS = {
    Kind.SWITCH: "",
    Kind.COUNT: "N",
    Kind.RATIO: "RATIO",
    Kind.BYTES: "SIZE",
    Kind.SECONDS: "TIME",
    Kind.MBPS: "MBPS",
    Kind.TEXT: "TEXT",
    Kind.CHOICE: "WORD",
    Kind.PATHS: "PATHS",
    Kind.WORDS: "WORDS",
}


def _switch(text: str) -> bool:
    if text.lower() in {"true", "1", "yes", "on"}:
        return True
    if text.lower() in {"false", "0", "no", "off"}:
        return False
    raise ValueError("is not true or false")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise ValueError("is not a whole number")
    return int(text)


def _ratio(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ValueError("is not a number such as 0.1")
    return float(text)


FUSE = "The mount"
META = "Metadata"
KERNEL_CACHE = "Metadata cache"
STORE = "Object store"
CACHE = "Data cache"
OTHER = "Other"

MOUNT_FLAGS: tuple[Flag, ...] = (
    Flag(
        "o", "fuse_options", Kind.WORDS, "", change=Change.FIXED, group=FUSE, alias="options",
        help="Mount options as with mount(8): ro, nonempty, noatime, noexec, ...;"
        " nosuid and nodev unless suid and dev are given.",
    ),
    Flag(
        "read-only", "read_only", Kind.SWITCH, "false", change=Change.FIXED, group=FUSE,
        help="Change nothing: no session, no background jobs, EROFS for every write.",
    ),
    Flag(
        "subdir", "subdir", Kind.TEXT, "", change=Change.FIXED, group=FUSE,
        help="Directory of the volume to mount as the root.",
    ),
    Flag(
        "stop-wait", "stop_wait_s", Kind.SECONDS, "10s", high="1h", group=FUSE,
        help="How long a stop waits for open files; then the mount is detached, and a service"
        " serves them for as long again.",
    ),
    Flag(
        "enable-xattr", "enable_xattr", Kind.SWITCH, "true", change=Change.FIXED, group=FUSE,
        help="Extended attributes; always on if the volume has ACLs.",
    ),
    Flag(
        "heartbeat", "heartbeat_s", Kind.SECONDS, "12s", low="1s", high="10m", change=Change.LIVE,
        group=META,
        help="Interval of the session's heartbeat; others declare it dead after five.",
    ),
    Flag(
        "no-bgjob", "no_bgjob", Kind.SWITCH, "false", change=Change.LIVE, group=META,
        help="Leave cleaning, trash and compaction to other clients of the volume.",
    ),
    Flag(
        "backup-meta", "backup_meta_s", Kind.SECONDS, "0", change=Change.LIVE, group=META,
        help="Must be 0: metadata is not backed up by the mount, use `juicefs dump`.",
    ),
    Flag(
        "attr-cache", "attr_cache_s", Kind.SECONDS, "1s", high="365d", change=Change.LIVE,
        group=KERNEL_CACHE, help="How long the kernel keeps attributes.",
    ),
    Flag(
        "entry-cache", "entry_cache_s", Kind.SECONDS, "1s", high="365d", change=Change.LIVE,
        group=KERNEL_CACHE, help="How long the kernel keeps names of files.",
    ),
    Flag(
        "dir-entry-cache", "dir_entry_cache_s", Kind.SECONDS, "1s", high="365d",
        change=Change.LIVE, group=KERNEL_CACHE,
        help="How long the kernel keeps names of directories.",
    ),
    Flag(
        "open-cache", "open_cache_s", Kind.SECONDS, "0s", high="365d", change=Change.LIVE,
        group=KERNEL_CACHE,
        help="How long attributes are reused at open; above 0 gives up close-to-open consistency.",
    ),
    Flag(
        "storage", "storage", Kind.CHOICE, "", choices=("", "file", "s3", "minio"),
        change=Change.LIVE, group=STORE,
        mend="give file, s3 or minio, or nothing for the volume's own",
        help="Kind of object store, if this machine reaches it differently than the volume says.",
    ),
    Flag(
        "bucket", "bucket", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="Address of the bucket, if this machine reaches it differently than the volume says.",
    ),
    Flag(
        "access-key-file", "access_key_file", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="File with the access key (else ACCESS_KEY, else the volume's own).",
    ),
    Flag(
        "secret-key-file", "secret_key_file", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="File with the secret key (else SECRET_KEY, else the volume's own).",
    ),
    Flag(
        "session-token-file", "session_token_file", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="File with the session token (else SESSION_TOKEN, else the volume's own).",
    ),
    Flag(
        "get-timeout", "get_timeout_s", Kind.SECONDS, "60s", low="1s", high="1h",
        change=Change.LIVE, group=STORE, help="Longest time for the download of one object.",
    ),
    Flag(
        "put-timeout", "put_timeout_s", Kind.SECONDS, "60s", low="1s", high="1h",
        change=Change.LIVE, group=STORE, help="Longest time for the upload of one object.",
    ),
    Flag(
        "io-retries", "io_retries", Kind.COUNT, "10", high="1000", change=Change.LIVE,
        group=STORE,
        help="How often a failed request is repeated before the program sees EIO, over at"
        " least 12 s for each.",
    ),
    Flag(
        "max-uploads", "max_uploads", Kind.COUNT, "20", low="1", high="1000",
        change=Change.LIVE, group=STORE, help="Objects uploaded at the same time.",
    ),
    Flag(
        "max-downloads", "max_downloads", Kind.COUNT, "200", low="1", high="10000",
        change=Change.LIVE, group=STORE, help="Objects downloaded at the same time.",
    ),
    Flag(
        "upload-limit", "upload_limit_mbps", Kind.MBPS, "0", high="10000000",
        change=Change.LIVE, group=STORE,
        help="Bandwidth for uploads in Mbit/s; 0 is the volume's own, or none.",
    ),
    Flag(
        "download-limit", "download_limit_mbps", Kind.MBPS, "0", high="10000000",
        change=Change.LIVE, group=STORE,
        help="Bandwidth for downloads in Mbit/s; 0 is the volume's own, or none.",
    ),
    Flag(
        "buffer-size", "buffer_size_bytes", Kind.BYTES, "300M", low="16M", high="1T", unit="M",
        change=Change.LIVE, group=CACHE,
        help="Memory for data being written and read ahead; writers wait at its end.",
    ),
    Flag(
        "max-readahead", "max_readahead_bytes", Kind.BYTES, "32M", high="1T", unit="M",
        change=Change.LIVE, group=CACHE, help="How far a sequential reader is read ahead of.",
    ),
    Flag(
        "prefetch", "prefetch", Kind.COUNT, "1", high="100", change=Change.LIVE, group=CACHE,
        help="Blocks fetched whole at the same time behind a random read; 0 is off.",
    ),
    Flag(
        "cache-dir", "cache_dirs", Kind.PATHS, "/var/cache/jfsd", change=Change.LIVE, group=CACHE,
        mend="give directories separated by colons, or the word memory",
        help="Directories for cached blocks, separated by colons, or `memory`.",
    ),
    Flag(
        "cache-size", "cache_size_bytes", Kind.BYTES, "100G", high="1024P", unit="M",
        change=Change.LIVE, group=CACHE,
        help="Size of the cache over all its directories; 0 is none.",
    ),
    Flag(
        "free-space-ratio", "free_space_ratio", Kind.RATIO, "0.1", low="0", high="1",
        change=Change.LIVE, group=CACHE,
        help="Part of the cache's file system that is left free.",
    ),
    Flag(
        "metrics", "metrics", Kind.TEXT, DEFAULT, change=Change.LIVE, group=OTHER,
        mend="give a port of the loopback such as 127.0.0.1:9567, unix:/PATH, or off",
        help="Where metrics can be read as Prometheus text: a loopback address, unix:/PATH, or"
        " off. The default takes any free port if this one is not.",
    ),
    Flag(
        "log-level", "log_level", Kind.CHOICE, "info", choices=LEVELS, change=Change.LIVE,
        group=OTHER, help="Least important records that are logged.",
    ),
    Flag(
        "no-syslog", "no_syslog", Kind.SWITCH, "false", change=Change.LIVE, group=OTHER,
        help="Accepted, without effect: records go to stderr and so to systemd's journal.",
    ),
)  # fmt: skip

BY_NAME = {flag.name: flag for flag in MOUNT_FLAGS}
"""The rows by their name on the command line."""

BY_KEY = {flag.key: flag for flag in MOUNT_FLAGS}
"""The rows by their name in a configuration file."""
