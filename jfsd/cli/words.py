"""The words of `jfsd mount`, read without click.

A server is mostly started with words that a program has put together: systemd, a holder,
mount(8). To load click and to tell it of forty options takes a tenth of the start, which is
a pause for programs. What is not as plain as that (help, a mistake, half an option) is left
to click, which knows what to say; so this must never understand anything in another way.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from jfsd.cli.source import is_url
from jfsd.config.flags import MOUNT_FLAGS, Flag, Kind, Value
from jfsd.errors import RefusedError

_COMPLETION = "_JFSD_COMPLETE"
"""Set by a shell that wants to know what the next word could be."""


class Asked(NamedTuple):
    """What the words say: the arguments of `jfsd.cli.serving.serve`."""

    where: tuple[str, ...]
    config: str | None
    background: bool
    overrides: dict[str, Value]


class _NotPlainError(Exception):
    """Something that click shall look at."""


def read(arguments: list[str]) -> Asked | None:
    """Return what the words behind `mount` ask for; None if click shall read them."""
    if _COMPLETION in os.environ:
        return None
    try:
        return _read(arguments)
    except (_NotPlainError, RefusedError):
        return None


def _read(arguments: list[str]) -> Asked:
    where: list[str] = []
    config: str | None = None
    background = False
    given: dict[str, Value] = {}
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        option, equals, value = word.partition("=")
        if not word.startswith("-"):
            where.append(word)
        elif word in {"-d", "--background"}:
            background = True
        elif word in _SWITCHES:
            flag, on = _SWITCHES[word]
            given[flag.name] = on
        elif option == "--config":
            config = value if equals else _next(rest)
        elif option in _VALUED:
            flag = _VALUED[option]
            given[flag.name] = flag.parse(value if equals else _next(rest))
        elif word.startswith("-o"):
            words += (word[2:] or _next(rest)).split(",")
        else:
            raise _NotPlainError
    _check_count(where, config)
    if words := [word for word in words if word]:
        given["o"] = tuple(words)
    return Asked(tuple(where), config, background, given)


def _next(rest: Iterator[str]) -> str:
    word = next(rest, "-")
    if word.startswith("-"):
        raise _NotPlainError
    return word


def _check_count(where: list[str], config: str | None) -> None:
    if len(where) > 2 or (config is None and (not where or (len(where) == 1 and is_url(where[0])))):
        raise _NotPlainError


def _switches() -> Iterator[tuple[str, tuple[Flag, bool]]]:
    for flag in MOUNT_FLAGS:
        if flag.kind is Kind.SWITCH:
            yield flag.option, (flag, True)
            yield flag.opposite, (flag, False)


_SWITCHES = dict(_switches())
_VALUED = {flag.option: flag for flag in MOUNT_FLAGS if flag.kind not in {Kind.SWITCH, Kind.WORDS}}
