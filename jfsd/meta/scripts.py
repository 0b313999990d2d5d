"""The Lua scripts: each is one file plus the libraries that it names.

A line `--@include NAME` is replaced by `scripts/lib/NAME.lua`, once per script however often it
is named; libraries may include libraries. All files are read when this module is loaded, because
later the files may belong to another version of the program (handover.md §2). They are put
together when they are first used: a start uses four of them.
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_INCLUDE = re.compile(r"--@include ([a-z_]+)\s*\Z")
_COMMENT = re.compile(r"\s*--(?!\[\[)[^\n]*")


class Script:
    """One script, assembled and digested when it is asked for."""

    def __init__(self, name: str, text: bytes, libraries: Mapping[str, str]) -> None:
        self.name = name
        self._text = text
        self._libraries = libraries

    def __repr__(self) -> str:
        return f"<Script {self.name}>"

    @cached_property
    def source(self) -> bytes:
        """What is given to the server."""
        return assemble(self._text.decode(), self._libraries).encode()

    @cached_property
    def digest(self) -> bytes:
        """The name under which the server knows it."""
        return hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


def assemble(text: str, libraries: Mapping[str, str]) -> str:
    """Return `text` with its includes in place of the lines that name them, without comments.

    Raises:
        KeyError: A library is named that does not exist.
    """
    done: set[str] = set()

    def lines(source: str) -> list[str]:
        result: list[str] = []
        for line in source.splitlines():
            match = _INCLUDE.match(line)
            if match is None:
                if line.strip() and not _COMMENT.fullmatch(line):
                    result.append(line)
            elif match[1] not in done:
                done.add(match[1])
                result += lines(libraries[match[1]])
        return result

    return "\n".join(lines(text)) + "\n"


def _texts(folder: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in folder.iterdir() if file.suffix == ".lua"}


def load_scripts() -> dict[str, Script]:
    """Return all scripts of the package by name."""
    folder = Path(__file__).parent / "scripts"
    libraries = {name: text.decode() for name, text in _texts(folder / "lib").items()}
    return {name: Script(name, text, libraries) for name, text in _texts(folder).items()}


SCRIPTS: Final = load_scripts()
"""Every script of the program by the name of its file."""
