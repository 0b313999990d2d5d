"""The commands as click knows them.

A verb's module is imported when the verb is used: `jfsd version` must not wait for
what `jfsd mount` needs.
"""

from __future__ import annotations

import importlib
from typing import cast

import click

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
            import difflib  # noqa: PLC0415 - for the message of an error

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
