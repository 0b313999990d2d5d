"""The Lua scripts, assembled once: each is one file plus the libraries that it names.

A line `--@include NAME` is replaced by `scripts/lib/NAME.lua`, once per script however often it
is named; libraries may include libraries. All files are read when this module is loaded, because
later the files may belong to another version of the program (handover.md §2).
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_INCLUDE = re.compile(r"--@include ([a-z_]+)\s*\Z")
_COMMENT = re.compile(r"\s*--(?!\[\[)[^\n]*")


class Script(NamedTuple):
    """An assembled script and the digest under which the server knows it."""

    name: str
    source: bytes
    digest: bytes


def assemble(text: str, libraries: dict[str, str]) -> str:
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


def _texts(folder: Traversable) -> dict[str, str]:
    return {
        file.name.removesuffix(".lua"): file.read_text("utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }


def load_scripts() -> dict[str, Script]:
    """Return all scripts of the package by name."""
    folder = resources.files("jfsd.meta") / "scripts"
    libraries = _texts(folder / "lib")
    scripts = {}
    for name, text in _texts(folder).items():
        source = assemble(text, libraries).encode()
        digest = hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
        scripts[name] = Script(name, source, digest)
    return scripts


SCRIPTS: Final = load_scripts()
"""Every script of the program by the name of its file."""
