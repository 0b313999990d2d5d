"""From the command line to a verb, and from any error to one line and an exit code."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jfsd.cli.mends import line_of, say
from jfsd.errors import FINAL, ExitCode, JfsdError
from jfsd.systemd.fdstore import promised
from jfsd.systemd.unit import stderr_is_journal, under_systemd

if TYPE_CHECKING:
    import click

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of any program that the signal ends."""

POSTPONE_S = 2.0
"""How long a server that refuses a live mount lets pass before the next one tries."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; an error is one line on stderr."""
    arguments = list(sys.argv[1:] if args is None else args)
    has_live_mount = "state" in promised() and under_systemd()
    try:
        code = _run(arguments)
    finally:
        gc.enable()
    if args is None:
        gc.freeze()  # the process ends: not even its end need look through all of it
    return _postpone(code) if has_live_mount and code in FINAL else code


def _run(arguments: list[str]) -> int:
    try:
        return _mount(arguments) if arguments[:1] == ["mount"] else _dispatch(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except JfsdError as error:
        return _report(line_of(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away; Python must not complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILURE)
    except Exception as error:  # noqa: BLE001 (the top: nothing may reach a person as a traceback)
        return _unforeseen(error)


def _mount(arguments: list[str]) -> int:
    """Serve; without click, if the words are as plain as those of a service or a holder."""
    gc.disable()  # what is loaded stays: looking through it costs a tenth of the start
    from jfsd.cli.words import read  # noqa: PLC0415 - other verbs need none of it

    asked = read(arguments[1:])
    if asked is None:
        return _dispatch(arguments)
    from jfsd.cli.serving import serve  # noqa: PLC0415

    return serve(*asked) or ExitCode.OK


def _dispatch(arguments: list[str]) -> int:
    """Let click find out what is asked for, and do it.

    It takes a tenth of the start of a server, therefore the imports here.
    """
    import click  # noqa: PLC0415

    from jfsd.cli.group import HELP, jfsd  # noqa: PLC0415

    try:
        result = jfsd.main(arguments, prog_name="jfsd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else HELP, err=True)
        return int(ExitCode.USAGE)
    except click.ClickException as error:
        return _report(_usage_line(error), ExitCode.USAGE)
    except click.Abort:
        return INTERRUPTED
    return result if isinstance(result, int) else int(ExitCode.OK)


def _postpone(code: int) -> int:
    """Let the service manager try again, for what it keeps is lost once it gives up.

    Programs wait meanwhile, and go on when somebody has mended what this process refused.
    """
    from jfsd.systemd.notify import Notifier  # noqa: PLC0415

    Notifier.from_environ().status(
        f"the live mount cannot be served (exit code {code}, the log says why); tries again"
    )
    time.sleep(POSTPONE_S)
    return int(ExitCode.FAILURE)


def _report(line: str, code: int) -> int:
    """Write the one line that a person sees, whatever the message contained."""
    text = " ".join(line.split())
    level = "<3>" if stderr_is_journal() else ""  # sd-daemon(3); taken off by the journal
    say(f"{level}jfsd: {text}")
    return int(code)


def _unforeseen(error: Exception) -> int:
    import logging  # noqa: PLC0415

    if logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger(__name__).error("unforeseen", exc_info=error)
        return int(ExitCode.FAILURE)
    return _report(
        f"{type(error).__name__}: {error}; unforeseen, jfsd --log-level debug ... shows where",
        ExitCode.FAILURE,
    )


def _usage_line(error: click.ClickException) -> str:
    """Return click's complaint as value, rule, mend."""
    import click  # noqa: PLC0415 - it is there if it complains

    if isinstance(error, click.NoSuchOption):
        near = error.possibilities[0] if error.possibilities else None
        mend = f"did you mean {near}?" if near else "see --help of the command"
        return f"{error.option_name}: is not an option; {mend}"
    message = error.format_message().rstrip(".")
    return message if ";" in message else f"{message}; see --help of the command"
