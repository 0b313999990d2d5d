"""From the command line to a verb, and from any error to one line and an exit code.

A verb's module is imported when the verb is used: `jfsd version` must not wait for
what `jfsd mount` needs.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
from collections.abc import Sequence
from typing import cast

import click

from jfsd.cli.mends import line_of
from jfsd.errors import FINAL, ExitCode, JfsdError
from jfsd.systemd.fdstore import promised
from jfsd.systemd.unit import stderr_is_journal, under_systemd

VERBS = {
    "format": "Create a volume, or change what may change of it.",
    "mount": "Serve a volume at a directory, in the foreground.",
    "umount": "Take a mount away.",
    "check": "Say whether a reload, restart or upgrade would be smooth.",
    "drain": "Have everything stored that was written, while the mount is served.",
    "reload": "Have a server read its configuration again.",
    "status": "Show a volume's setting, sessions and usage, and a mount, as JSON.",
    "state": "Show what the next server of a mount would know, as JSON.",
    "stats": "Show how busy a mount is, line by line.",
    "profile": "Show what programs ask of a mount, and how long it takes.",
    "info": "Show what files are made of: inode, chunks, slices, objects.",
    "upgrade": "Let the installed version take a served mount over.",
    "version": "Show the versions of jfsd and what it runs on.",
}
"""The verbs with their first line of help; each has a module of its name here."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of any program that the signal ends."""

POSTPONE_S = 2.0
"""How long a server that refuses a live mount lets pass before the next one tries."""


class VerbGroup(click.Group):
    """A group that imports the module of a verb when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of a volume's life."""
        del ctx
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the verb's command, or None if there is no such verb."""
        del ctx
        if cmd_name not in VERBS:
            return None
        return cast("click.Command", importlib.import_module(f"jfsd.cli.{cmd_name}").command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs without importing them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` name.

        Raises:
            UsageError: No such verb; the message names the nearest one.
        """
        if args[0] not in VERBS and not ctx.resilient_parsing:
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            mend = f"did you mean {near[0]}?" if near else "see jfsd --help"
            raise click.UsageError(f"{args[0]}: is not a command; {mend}")
        return super().resolve_command(ctx, args)


HELP = """A JuiceFS-format file system: metadata in Redis, contents in S3 or a directory.

\b
First steps:
  jfsd format redis://localhost/1 myvol --bucket /srv/objects
  jfsd mount redis://localhost/1 /mnt/jfs
  jfsd umount /mnt/jfs

Passwords and keys come from the environment or files: META_PASSWORD,
META_PASSWORD_FILE, ACCESS_KEY, SECRET_KEY, SESSION_TOKEN, JFS_RSA_PASSPHRASE.

Completion for bash: eval "$(_JFSD_COMPLETE=bash_source jfsd)"
"""


@click.group(cls=VerbGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Log to stderr what a command does; debug adds tracebacks.",
)
def jfsd(log_level: str | None) -> None:
    """Root of the commands."""
    if log_level is not None:
        from jfsd import log  # noqa: PLC0415

        log.configure(log_level)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; an error is one line on stderr."""
    arguments = list(sys.argv[1:] if args is None else args)
    has_live_mount = "state" in promised() and under_systemd()
    code = _run(arguments)
    return _postpone(code) if has_live_mount and code in FINAL else code


def _run(arguments: list[str]) -> int:
    try:
        result = jfsd.main(arguments, prog_name="jfsd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else HELP, err=True)
        return int(ExitCode.USAGE)
    except click.ClickException as error:
        return _report(_usage_line(error), ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except JfsdError as error:
        return _report(line_of(error), error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away; Python must not complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILURE)
    except Exception as error:  # noqa: BLE001 (the top: nothing may reach a person as a traceback)
        return _unforeseen(error)
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
    click.echo(f"{level}jfsd: {text}".encode(errors="surrogateescape"), err=True)
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
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities[0] if error.possibilities else None
        mend = f"did you mean {near}?" if near else "see --help of the command"
        return f"{error.option_name}: is not an option; {mend}"
    message = error.format_message().rstrip(".")
    return message if ";" in message else f"{message}; see --help of the command"
