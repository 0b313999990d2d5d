"""What the words of a command line name: a URL, a mount point, an instance, a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jfsd.config.file import config_path, is_instance
from jfsd.config.flags import Value
from jfsd.config.source import Source
from jfsd.errors import ExitCode, RefusedError

if TYPE_CHECKING:
    from click import UsageError


def source_of(words: Sequence[str], config: str | None, overrides: Mapping[str, Value]) -> Source:
    """Return where the settings of a mount come from.

    Args:
        words: META-URL and MOUNTPOINT; one of them or none if a file says the rest; an
            instance alone.
        config: The file that was named, if one was.
        overrides: Options of the command line.

    Raises:
        UsageError: Too few words, or too many.
        RefusedError: There is no configuration for the word.
    """
    overrides = {
        name: absolute(str(value)) if name.endswith("-file") else value
        for name, value in overrides.items()
    }
    if len(words) > 2:
        raise usage_error(f"Got unexpected extra argument ({words[2]})")
    if len(words) == 2:
        return Source(absolute(config), words[0], absolute(words[1]), overrides)
    if config is not None:
        if words and is_url(words[0]):
            return Source(absolute(config), words[0], "", overrides)
        return Source(absolute(config), "", absolute("".join(words)), overrides)
    if not words:
        raise usage_error("Missing argument 'META-URL'")
    if is_url(words[0]):
        raise usage_error("Missing argument 'MOUNTPOINT'")
    return Source(configured(words[0]), "", "", overrides)


def configured(word: str) -> str:
    """Return the file of an instance or of a mount point.

    Raises:
        RefusedError: There is none.
    """
    path = config_path(word if is_instance(word) else absolute(word))
    if not Path(path).exists():
        raise RefusedError(
            ExitCode.USAGE,
            word,
            f"has no configuration {path}",
            "write one (jfs.toml(5)), or give META-URL and MOUNTPOINT",
        )
    return path


def is_url(word: str) -> bool:
    """Return whether a word is a metadata URL rather than a path or an instance."""
    return "://" in word


def absolute(path: str | None) -> str:
    """Return the path from the root, without looking at it; "" stays ""."""
    return os.path.abspath(path) if path else ""  # noqa: PTH100 - resolve() would look


def usage_error(text: str) -> UsageError:
    """Return a complaint about the words of a command."""
    from click import UsageError  # noqa: PLC0415 - a server is started without click

    return UsageError(text)
