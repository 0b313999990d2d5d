"""The page jfs.toml(5), and the example of a configuration file, from the rows of the flags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from textwrap import wrap

from jfsd.config import roff
from jfsd.config.credentials import CREDENTIALS
from jfsd.config.document import bare_unit
from jfsd.config.flags import MOUNT_FLAGS, Change, Flag, Kind

_WIDTH = 92
_BARE = frozenset((Kind.COUNT, Kind.RATIO, Kind.MBPS))

_EXAMPLE_HEAD = """\
# Example of a configuration file of jfsd: see jfs.toml(5).
#
# As /etc/jfs/mnt-jfs.toml it is the mount at /mnt/jfs, and that of jfs@mnt-jfs.service; other
# names are made with: systemd-escape --path /some/where
#
# Every option stands here with its default. "fixed" means: takes effect when the mount is made
# the next time; all others do at a reload. `jfsd check mnt-jfs` says what a change will do.

# What to mount. Keep the password out of here: as the credential meta-password of the service.
meta = "redis://localhost/1"

# Where, if not where the name of this file says.
# mountpoint = "/mnt/jfs"
"""

_DESCRIPTION = """
A file describes one mount. Its name is the mount point as `systemd-escape --path` writes it,
with `.toml`: `/etc/jfs/mnt-jfs.toml` is `/mnt/jfs`. It is used by `jfsd mount /mnt/jfs`,
`jfsd mount mnt-jfs`, the service `jfs@mnt-jfs.service`, and lines of fstab(5). Options on a
command line win over it, lists as a whole.
"""

_FORM = """
The file is TOML without tables: one key a line. Values are texts in quotes, written as on the
command line; numbers, with the unit that is named below; true and false; and arrays of texts
for directories and words. Sizes are binary and take a unit: 512K, 300M, 4MiB, 1.5G. Times do,
too: 500ms, 1s, 1m30s, 1h. An unknown key and a wrong value are refused, with what would be
right; nothing is mounted then, and a served mount stays as it is.
"""

_SAFETY = """
A file that every user may write to is refused, and so is one that holds a password in its URL
and may be read by every user. Better give secrets as credentials of the service
(LoadCredential= in systemd.exec(5)), by these names:
"""

_RELOAD = """
`systemctl reload` and `jfsd reload` have the server read the file, and the files of keys,
again. All options take effect then, without a pause, but for those that are marked *fixed*:
the kernel was told when the mount was made. A reload and a restart name them and go on with
the former values until the mount is unmounted and made again. Another metadata URL of the same
volume takes effect at a restart. `jfsd check` says beforehand what a change will do.
"""


def toml_page() -> str:
    """Return the page jfs.toml(5)."""
    return "".join(_toml_parts())


def _toml_parts() -> Iterator[str]:
    yield roff.head("jfs.toml", 5, "File Formats", "configuration of a mount of jfsd")
    yield roff.section("Synopsis", roff.literal("/etc/jfs/INSTANCE.toml"))
    yield roff.section("Description", *map(roff.paragraph, (_DESCRIPTION, _FORM, _RELOAD)))
    yield roff.section("Keys")
    yield roff.item("`meta` = TEXT", "Metadata URL: `redis://[USER@]HOST[:PORT]/DB`, rediss, unix.")
    yield roff.item(
        "`mountpoint` = TEXT", "Where to mount, if not at the path that the file's name stands for."
    )
    for group, rows in groupby(MOUNT_FLAGS, key=lambda flag: flag.group):
        yield roff.subsection(group, roff.items((_tag(flag), _text(flag)) for flag in rows))
    names = ((f"`{name}`", f"{variable}.") for name, variable in CREDENTIALS.items())
    yield roff.section("Secrets", roff.paragraph(_SAFETY), roff.items(names))
    yield roff.section(
        "Example",
        roff.literal('meta = "redis://localhost/1"\ncache-size = "20G"\nattr-cache = 5'),
    )
    yield roff.section("See also", roff.paragraph("jfsd(1), mount.jfsd(8), systemd-escape(1)"))


def _tag(flag: Flag) -> str:
    default = f" (default {toml_value(flag)})" if flag.default else ""
    return f"`{flag.key}` = {flag.metavar or 'true|false'}{default}"


def _text(flag: Flag) -> str:
    notes = []
    if flag.change is Change.FIXED:
        notes.append("*fixed*")
    if flag.range_text:
        notes.append(flag.range_text)
    if flag.kind in _BARE | {Kind.BYTES, Kind.SECONDS} and (unit := bare_unit(flag)):
        notes.append(f"a bare number is in {unit}")
    return flag.help + (f" [{'; '.join(notes)}]" if notes else "")


def toml_value(flag: Flag) -> str:
    """Return the option's default as it stands in a configuration file."""
    value = flag.default_value
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if isinstance(value, bool) or flag.kind in _BARE:
        return flag.show(value)
    return json.dumps(flag.default)


def example() -> str:
    """Return packaging/jfs.toml.example: every key, with what it is for and its default."""
    return "".join(_example_parts())


def _example_parts() -> Iterator[str]:
    yield _EXAMPLE_HEAD
    for group, rows in groupby(MOUNT_FLAGS, key=lambda flag: flag.group):
        yield f"\n\n# {f' {group} '.center(_WIDTH - 2, '-')}\n"
        for flag in rows:
            notes = [flag.range_text] if flag.range_text else []
            notes += ["fixed"] if flag.change is Change.FIXED else []
            text = flag.help + (f" [{'; '.join(notes)}]" if notes else "")
            yield "\n" + "".join(f"# {line}\n" for line in wrap(text, _WIDTH - 2))
            yield f"# {flag.key} = {toml_value(flag)}\n"
