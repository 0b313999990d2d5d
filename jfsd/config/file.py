"""Configuration files: /etc/jfs/<instance>.toml, one mount each.

A file holds `meta`, perhaps `mountpoint`, and any option of `jfsd mount` by its long name.
Its instance is the mount point as `systemd-escape --path` writes it, so that
/etc/jfs/mnt-jfs.toml is the mount of jfs@mnt-jfs.service at /mnt/jfs.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jfsd.config.credentials import password_of
from jfsd.config.flags import BY_KEY, BY_NAME, Flag, Kind, Value
from jfsd.config.runtime import escape, unescape
from jfsd.config.settings import settings_from
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, field

META, MOUNTPOINT = "meta", "mountpoint"
"""Keys that are no options."""

KEYS = (META, MOUNTPOINT, *BY_KEY)
SUFFIX = ".toml"
DIRECTORY_VARIABLE = "JFSD_CONFIG_DIR"

_MAX_BYTES = 1 << 20
_SHOWN_CHARS = 80


class ConfigFile(Record):
    """What one file says, parsed and checked."""

    path: str
    meta_url: str = field(default="", repr=False)
    """"" if the file does not say."""
    mountpoint: str = ""
    """As written, or else the path that the file's name stands for; "" if neither."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """Options by the name of their row."""


def config_directory() -> Path:
    """Return where configuration files are looked for by their instance."""
    return Path(os.environ.get(DIRECTORY_VARIABLE) or "/etc/jfs")


def config_path(name: str) -> str:
    """Return the file of an instance, or of a mount point (which begins with a slash)."""
    instance = escape(name) if name.startswith("/") else name
    return str(config_directory() / (instance + SUFFIX))


def is_instance(name: str) -> bool:
    """Return whether a word can be an instance: not a URL, not a path."""
    return bool(name) and not any(character in name for character in "/:")


def read_config(path: str) -> ConfigFile:
    """Return what the file says.

    Raises:
        RefusedError: It cannot be read, is no TOML, has an unknown key or a wrong value, or
            lies open to users who may not know or change what is in it (USAGE).
    """
    import tomllib  # noqa: PLC0415 - most mounts have no file

    text, mode = _read(path)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        rule = f"is no TOML: {error}"
        raise _refusal(path, rule, "mend it; text stands in quotes") from None
    for key in table:
        _check_key(path, key, table[key])
    meta_url = _text(path, META, table, shown=False)
    if password_of(meta_url) and mode & stat.S_IROTH:
        raise _refusal(
            path,
            "holds a password and may be read by every user",
            f"chmod o-rwx {path}, or keep the password in a credential (meta-password)",
        )
    values = {
        flag.name: _value(path, flag, table[key]) for key, flag in BY_KEY.items() if key in table
    }
    try:
        settings_from(values)
    except RefusedError as error:
        raise _refusal(f"{path}: {error.value}", error.rule, error.mend) from None
    return ConfigFile(path, meta_url, _mountpoint(path, table), values)


def _read(path: str) -> tuple[str, int]:
    """Return the file's text and mode; what is no plain file is not even opened for long."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _unreadable(path, "not a file")
        if status.st_size > _MAX_BYTES:
            raise _unreadable(path, "over 1 MiB")
        if status.st_mode & stat.S_IWOTH:
            raise _refusal(path, "may be written by every user", f"chmod o-w {path}")
        with open(descriptor, encoding="utf-8", closefd=False) as file:
            return file.read(), status.st_mode
    except OSError as error:
        raise _unreadable(path, error.strerror) from None
    except UnicodeDecodeError:
        raise _unreadable(path, "not UTF-8") from None
    finally:
        os.close(descriptor)


def _check_key(path: str, key: str, raw: object) -> None:
    if key in KEYS:
        return
    if isinstance(raw, dict):
        raise _refusal(
            f"{path}: [{key}]", "the configuration has no tables", "put the keys above, without it"
        )
    near = BY_NAME[key].key if key in BY_NAME else next(iter(_near(key)), None)
    raise _refusal(
        f"{path}: {_cut(key)}",
        "is not a key of the configuration",
        f"did you mean {near}?" if near else "leave it out, or see jfs.toml(5)",
    )


def _near(key: str) -> list[str]:
    import difflib  # noqa: PLC0415 - for the message of an error

    word = key.lower().replace("_", "-")
    return difflib.get_close_matches(word, KEYS, n=1) or difflib.get_close_matches(
        word.removeprefix("no-"), KEYS, n=1
    )


def _text(path: str, key: str, table: Mapping[str, Any], *, shown: bool = True) -> str:
    """Return a text that is no option; "" if it is absent."""
    raw = table.get(key, "")
    if isinstance(raw, str) and (raw or key not in table):
        return raw
    value = f"{path}: {key} = {_shown(raw)}" if shown else f"{path}: {key}"
    raise _refusal(value, "is not a text in quotes", f'give {key} = "..."')


def _mountpoint(path: str, table: Mapping[str, Any]) -> str:
    given = _text(path, MOUNTPOINT, table)
    if given:
        if not given.startswith("/") or "\0" in given:
            raise _refusal(
                f"{path}: {MOUNTPOINT} = {_shown(given)}",
                "is not an absolute path",
                "begin it with /",
            )
        return given
    instance = os.path.basename(path)  # noqa: PTH119 - a Path would need the suffix to be one
    if not instance.endswith(SUFFIX):
        return ""
    try:
        return unescape(instance.removesuffix(SUFFIX))
    except ValueError:
        return ""


def _value(path: str, flag: Flag, raw: object) -> Value:
    """Return the option's value of a TOML value.

    Raises:
        RefusedError: Another type than the option has, or out of range.
    """
    shown = f"{path}: {flag.key} = {_shown(raw)}"
    try:
        return _typed(flag, raw)
    except ValueError as error:
        raise _refusal(shown, str(error), f"write {_example(flag)}") from None
    except RefusedError as error:
        raise _refusal(shown, error.rule, error.mend) from None


_NUMBERS = frozenset((Kind.COUNT, Kind.RATIO, Kind.BYTES, Kind.SECONDS, Kind.MBPS))
_LISTS = frozenset((Kind.PATHS, Kind.WORDS))


def _typed(flag: Flag, raw: object) -> Value:
    match raw:
        case bool() if flag.kind is Kind.SWITCH:
            return raw
        case str():
            if flag.name.endswith("-file") and raw and not raw.startswith("/"):
                raise ValueError("is not an absolute path")
            return flag.parse(raw)
        case list() if flag.kind in _LISTS:
            return _words(flag, raw)
        case int() | float() if flag.kind in _NUMBERS and math.isfinite(raw):
            if not isinstance(raw, bool):
                return flag.parse(str(raw))
    raise ValueError(f"is not {_wanted(flag)}")


def _words(flag: Flag, raw: list[object]) -> tuple[str, ...]:
    words = tuple(word for word in raw if isinstance(word, str) and word.strip())
    if len(words) != len(raw):
        raise ValueError("is not an array of texts")
    if flag.kind is Kind.PATHS and any(":" in word for word in words):
        raise ValueError("has a path with a colon")
    return words


def _wanted(flag: Flag) -> str:
    """Return what TOML type an option has, in words."""
    if flag.kind is Kind.SWITCH:
        return "true or false"
    if flag.kind in _LISTS:
        return "an array of texts"
    return "a number or a text" if flag.kind in _NUMBERS else "a text in quotes"


def _example(flag: Flag) -> str:
    """Return a line that would be right."""
    if flag.kind is Kind.SWITCH:
        return f"{flag.key} = true"
    if flag.kind in _LISTS:
        return f'{flag.key} = ["..."]'
    return f'{flag.key} = "{flag.default or "..."}"'


def _shown(raw: object) -> str:
    """Return a TOML value on one line, cut if it is long."""
    if isinstance(raw, bool | str | list):
        return _cut(json.dumps(raw, ensure_ascii=False, default=str))
    return _cut("a table" if isinstance(raw, dict) else str(raw))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def _unreadable(path: str, why: str | None) -> RefusedError:
    return _refusal(path, f"cannot be read ({why})", "name a configuration file (jfs.toml(5))")


def _refusal(value: str, rule: str, mend: str) -> RefusedError:
    return RefusedError(ExitCode.USAGE, value, rule, mend)
