"""From rows of `config.flags` to options of click."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from jfsd.config.flags import BY_NAME, Flag, Kind, Value

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class FlagType(click.ParamType[Value]):
    """Values of one row; what it refuses is a `RefusedError`, not a complaint of click."""

    def __init__(self, flag: Flag) -> None:
        self.flag = flag
        self.name = flag.kind.value

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Value:
        """Return the parsed value.

        Raises:
            RefusedError: Not of the row's kind, or out of range.
        """
        del param, ctx
        return self.flag.parse(str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """Return the choices that begin with what is typed, or ask for file names."""
        del ctx, param
        item = click.shell_completion.CompletionItem
        if self.flag.kind is Kind.CHOICE:
            return [item(word) for word in self.flag.choices if word.startswith(incomplete)]
        if self.flag.kind is Kind.PATHS or self.flag.name.endswith("-file"):
            return [item(incomplete, type="file")]
        return []


def flag_option(flag: Flag) -> Callable[[Decorated], Decorated]:
    """Return the decorator that adds the row's option; its parameter is the row's field."""
    if flag.kind is Kind.SWITCH:
        # What is off by default is only worth switching off where a file may have it on.
        both = flag.default_value or BY_NAME.get(flag.name) is flag
        names = f"{flag.option}/{flag.opposite}" if both else flag.option
        return click.option(
            names, flag.field, is_flag=True, default=None, help=flag.help + _default_text(flag)
        )
    return click.option(
        flag.option,
        flag.field,
        type=FlagType(flag),
        default=None,
        multiple=flag.kind is Kind.WORDS,
        metavar=flag.metavar,
        help=flag.help + _default_text(flag),
    )


def flag_options(flags: Sequence[Flag]) -> Callable[[Decorated], Decorated]:
    """Return the decorator that adds an option for each row, in their order."""

    def decorate(function: Decorated) -> Decorated:
        for flag in reversed(flags):
            function = flag_option(flag)(function)
        return function

    return decorate


def given_options(parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Return what was given of the mount's options, by the name of their row."""
    values = {name: parameters[flag.field] for name, flag in BY_NAME.items()}
    words = tuple(word for group in values["o"] or () for word in group)
    return {
        name: value for name, value in {**values, "o": words or None}.items() if value is not None
    }


def _default_text(flag: Flag) -> str:
    """Return what help adds: the choices, and the default."""
    notes = [flag.range_text] if flag.kind is Kind.CHOICE and "" not in flag.choices else []
    if flag.default and flag.kind is not Kind.SWITCH:
        notes.append(f"default: {flag.default}")
    return f"  [{'; '.join(notes)}]" if notes else ""
