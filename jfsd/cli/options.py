"""From rows of `config.flags` to options of click."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Flag, Kind, Value
from jfsd.config.settings import MountSettings, settings_from

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

EXIT_CODES_EPILOG = "Exit codes: see docs/CONFIGURATION.md."


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
        # A switch that is on by default is only worth typing to switch it off.
        names = f"{flag.option}/--no-{flag.name}" if flag.default_value else flag.option
        return click.option(
            names, flag.field, is_flag=True, default=None, help=flag.help + _default_text(flag)
        )
    return click.option(
        flag.option,
        flag.field,
        type=FlagType(flag),
        default=None,
        multiple=flag.kind is Kind.WORDS,
        help=flag.help + _default_text(flag),
    )


def mount_options(function: Decorated) -> Decorated:
    """Add every mount option to a command, in the order of the rows."""
    for flag in reversed(MOUNT_FLAGS):
        function = flag_option(flag)(function)
    return function


def settings_of(parameters: Mapping[str, Any]) -> MountSettings:
    """Return settings from the parameters that `mount_options` added.

    Raises:
        RefusedError: Values that contradict each other.
    """
    values = {name: parameters[flag.field] for name, flag in BY_NAME.items()}
    words = tuple(word for group in values["o"] or () for word in group)
    return settings_from({**values, "o": words or None})


def _default_text(flag: Flag) -> str:
    if not flag.default or flag.kind is Kind.SWITCH:
        return ""
    return f"  [default: {flag.default}]"
