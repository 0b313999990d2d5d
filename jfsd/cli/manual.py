"""The manual pages, from the commands themselves: `python -m jfsd.cli.manual` writes them all.

Besides docs/man it writes everything else that is made from the rows of the flags.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from jfsd.cli import fstab, group
from jfsd.config import manual, roff
from jfsd.config.document import ENVIRONMENT, EXIT_CODES, document
from jfsd.config.flags import MOUNT_FLAGS

_URLS = """
`redis://[USER[:PASSWORD]@]HOST[:PORT]/DB`, `rediss://` for TLS, `unix:///SOCKET?db=DB`,
`redis://MASTER,SENTINEL1,SENTINEL2:PORT/DB` for Sentinel. On a Redis cluster the number is the
prefix of every key.
"""

_FILES = (
    ("`/etc/jfs/INSTANCE.toml`", "Configuration of a mount: jfs.toml(5)."),
    ("`/run/jfsd`", "Records of served mounts, sockets of their servers, logs of those with -d."),
    ("`/var/cache/jfsd`", "Local copies of blocks."),
)

_MOUNT_DESCRIPTION = """
This is what mount(8) runs for a line of fstab(5) of the type `jfsd`. SPEC is a metadata URL; or
an instance, whose file in /etc/jfs says the rest; or the path of a configuration file, which
ends in .toml; or `none`, for the file of DIR. The mount is served in the background, as with
`jfsd mount -d`. What is mounted there already, from the same volume, is left as it is.
"""

_MOUNT_WORDS = """
The words after `-o` are mount options as for other file systems (ro, noatime, noexec, ...), and
every option of `jfsd mount` by its long name: `cache-size=20G`, `no-bgjob`. They win over the
file. Words for those who read fstab (defaults, noauto, nofail, _netdev, user, x-...) are passed
over; an unknown word is refused.
"""

_MOUNT_OPTIONS = (
    ("`-o` WORDS", "Options, separated by commas; may be given more than once."),
    ("`-s`", "Pass over unknown words."),
    ("`-f`", "Only look whether the words are right; mount nothing."),
    ("`-n`", "Accepted, without effect: there is no /etc/mtab."),
    ("`-v`", "Say which server serves the mount."),
)

_MOUNT_EXAMPLE = """
mnt-jfs  /mnt/jfs  jfsd  _netdev,nofail,noatime,prefetch=2  0 0
redis://db.internal/1  /srv/team  jfsd  _netdev,subdir=team,cache-size=20G  0 0
"""


def jfsd_page() -> str:
    """Return the page jfsd(1)."""
    return "".join(_jfsd_parts())


def _jfsd_parts() -> Iterator[str]:
    yield roff.head("jfsd", 1, "User Commands", "serve volumes in the JuiceFS format")
    yield roff.section("Synopsis", roff.literal("jfsd [--log-level LEVEL] COMMAND [ARGUMENT...]"))
    yield roff.section("Description", *_help(group.HELP), roff.paragraph("Metadata URLs: " + _URLS))
    context = click.Context(group.jfsd, info_name="jfsd")
    yield roff.section("Options", *_options(group.jfsd, context))
    yield roff.section("Commands")
    for verb in group.VERBS:
        command = group.jfsd.get_command(context, verb)
        if command is not None:
            yield from _command(command, click.Context(command, context, info_name=verb))
    yield roff.section("Environment", roff.items((f"`{n}`", t) for n, t in ENVIRONMENT.items()))
    codes = [(f"`{int(code)}`", text) for code, text in EXIT_CODES.items()]
    codes += [
        ("`130`", "Ended by Ctrl-C."),
        ("`143`", "A mount that was stopped during its start."),
    ]
    yield roff.section("Exit status", roff.items(codes))
    yield roff.section("Files", roff.items(_FILES))
    yield roff.section("See also", roff.paragraph("jfs.toml(5), mount.jfsd(8), mount(8)"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield roff.subsection(usage, *_help(command.help or ""), *_options(command, context))
    yield from _help(command.epilog or "")


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record is not None:
            yield roff.item(*record)


def _help(text: str) -> Iterator[str]:
    """Yield a text of click: paragraphs, and after a mark, lines as they are."""
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.startswith("\b"):
            yield roff.literal(block.removeprefix("\b"))
        elif block.strip():
            yield roff.paragraph(block)


def mount_page() -> str:
    """Return the page mount.jfsd(8)."""
    words = (
        (f"`{flag.name}`{flag.metavar and f'={flag.metavar}'}", flag.help)
        for flag in MOUNT_FLAGS
        if len(flag.name) > 1
    )
    codes = (
        ("`0`", "Mounted, or mounted already."),
        (f"`{fstab.WRONG_CALL}`", "A wrong word, value or configuration."),
        (f"`{fstab.FAILED}`", "It could not be mounted; stderr says why."),
    )
    return "".join(
        (
            roff.head("mount.jfsd", 8, "System Administration", "mount a volume of jfsd"),
            roff.section("Synopsis", roff.literal(fstab.USAGE.removeprefix("usage: "))),
            roff.section("Description", *map(roff.paragraph, (_MOUNT_DESCRIPTION, _MOUNT_WORDS))),
            roff.section("Options", roff.items(_MOUNT_OPTIONS)),
            roff.section("Words", roff.item("`config`=FILE", "Configuration file to use.")),
            roff.items(words),
            roff.section("Exit status", roff.items(codes)),
            roff.section("Example", roff.literal(_MOUNT_EXAMPLE)),
            roff.section("See also", roff.paragraph("jfsd(1), jfs.toml(5), fstab(5), mount(8)")),
        )
    )


GENERATED = {
    "docs/CONFIGURATION.md": document,
    "docs/man/jfsd.1": jfsd_page,
    "docs/man/jfs.toml.5": manual.toml_page,
    "docs/man/mount.jfsd.8": mount_page,
    "packaging/jfs.toml.example": manual.example,
}
"""Files of the repository that are made from the program."""


def write(root: Path) -> None:
    """Write all of them below the root of the repository."""
    for name, make in GENERATED.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
