"""Makes docs/CONFIGURATION.md from the rows of the flags; `make docs` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from jfsd.config.credentials import CREDENTIALS
from jfsd.config.flags import MOUNT_FLAGS, Flag, Kind
from jfsd.config.formatflags import FORMAT_FLAGS
from jfsd.errors import ExitCode

EXIT_CODES = {
    ExitCode.OK: "Done.",
    ExitCode.FAILURE: "Something unforeseen; `jfsd --log-level debug VERB ...` shows where. Also "
    "a mount whose connection was aborted through `/sys/fs/fuse`.",
    ExitCode.USAGE: "An option, value or argument is wrong.",
    ExitCode.META_UNREACHABLE: "Redis does not answer, or refuses user, password or database.",
    ExitCode.VOLUME_MISSING: "The database holds no volume.",
    ExitCode.VOLUME_CONFLICT: "Already formatted differently, or the database holds other things.",
    ExitCode.VOLUME_UNSUPPORTED: "Newer than jfsd understands, or with a feature it lacks.",
    ExitCode.STORE_UNREACHABLE: "The object store does not answer.",
    ExitCode.STORE_REFUSED: "Bucket missing, forbidden, or belonging to another volume.",
    ExitCode.MOUNTPOINT_UNUSABLE: "Mount point missing, no directory, or not empty.",
    ExitCode.ALREADY_MOUNTED: "Something is mounted there already.",
    ExitCode.NO_PRIVILEGE: "Not root, or /dev/fuse is missing or may not be opened.",
    ExitCode.BUSY: "Files are open; nothing was unmounted.",
    ExitCode.NOT_MOUNTED: "Nothing of jfsd is mounted there.",
    ExitCode.NOT_STORED: "Not everything is in the store yet; what was written is kept.",
    ExitCode.NO_SERVER: "The mount is there, and no server of it answers.",
    ExitCode.NOT_APPLIED: "A reload left some options as they were; the lines before say which.",
    ExitCode.NOT_SMOOTH: "A check found something in the way of a smooth restart; lines say what.",
}

ENVIRONMENT = {
    "META_PASSWORD": "Password of Redis, if the URL has none (`REDIS_PASSWORD` comes first).",
    "META_PASSWORD_FILE": "File with the password of Redis, if neither variable is set.",
    "SENTINEL_PASSWORD": "Password of the Sentinels.",
    "ACCESS_KEY": "Access key of the object store, instead of the volume's own.",
    "SECRET_KEY": "Secret key of the object store.",
    "SESSION_TOKEN": "Session token of the object store.",
    "JFS_RSA_PASSPHRASE": "Passphrase of the RSA key of an encrypted volume.",
    "JFS_S3_VHOST_STYLE": "If set and not 0 or false: virtual-host requests to custom endpoints.",
    "AWS_ACCESS_KEY_ID": "With `AWS_SECRET_ACCESS_KEY`: keys of an S3 store, if nothing else names"
    " any; without them the machine's profile or role is asked.",
    "AWS_CA_BUNDLE": "File of authorities for an S3 store, if its URL has no `ca-certs`.",
    "HTTP_PROXY": "Proxy of an S3 store over http (`HTTPS_PROXY`: over https), except for the hosts"
    " in `NO_PROXY`. Each request costs a millisecond more of processor time.",
    "JFSD_CONFIG_DIR": "Directory of configuration files, instead of /etc/jfs.",
    "JFSD_RUNTIME_DIR": "Directory of the records of served mounts, instead of /run/jfsd.",
}

_HEAD = """\
# Configuration

This page is made from the program (`make docs`); a test compares the two.

Sizes are binary and take a unit: `512K`, `300M`, `4MiB`, `1.5G`; a bare number has the unit
in the column *bare*. Times take a unit, too: `500ms`, `1s`, `1m30s`, `1h`; a bare number is
seconds. A wrong value is refused with one line that names the value, the rule and the mend.
"""

_FILE_NOTE = """\
## Configuration files

`/etc/jfs/<instance>.toml` describes one mount; the instance is the mount point as
`systemd-escape --path` writes it: `/etc/jfs/mnt-jfs.toml` is `/mnt/jfs`. One line is enough:

```toml
meta = "redis://localhost/1"
cache-size = "20G"
attr-cache = 5
options = ["noatime"]
```

| key | meaning |
|---|---|
| `meta` | Metadata URL. |
| `mountpoint` | Where to mount; without it the path that the file's name stands for. |
| an option's long name | The option, without its dashes. The words of `-o` are the key `options`. |

Values are texts as on the command line, numbers with the unit of the column *bare*, `true` and
`false`, and arrays of texts for directories and words. There are no tables. An unknown key and
a wrong value are refused with file, key, rule and mend; nothing is mounted then, and a served
mount stays as it is.

`jfsd mount --config FILE`, `jfsd mount mnt-jfs` and `jfsd mount /mnt/jfs` use a file; what the
command line says besides wins over it, lists as a whole. JFSD_CONFIG_DIR names another
directory than /etc/jfs.

A file that every user may write to is refused, and so is one that holds a password and may be
read by every user: `chmod o-rwx`. Better keep the password out of it, as a credential.

SIGHUP (`systemctl reload`) reads the file again, and the files of keys. What is *live* below is
applied at once while programs go on; what is *fixed* is named and stays as it is. The status of
the service says what a reload could not do; a file that cannot be read changes nothing. A restart
leaves what is *fixed* as it is, too, and goes on with the former options if the file has become
unusable; log and status say so. `jfsd check mnt-jfs` tells all of it beforehand.

"""

_CHANGE_NOTE = """\
The column *change* says when another value takes effect: *live* at a reload, without a pause;
*fixed* after an unmount and a new mount, because the kernel was told at mount time. Words of
`-o` are compared by their effect. Another metadata URL of the same volume takes effect at a
restart of the service.
"""

_SECRETS_NOTE = """\
## Passwords and keys

Every user of a machine can see the arguments of every program. Give passwords and keys in
the environment or in files. A password in a metadata URL and keys given as options are
overwritten in the process list as soon as the program runs; for some ten milliseconds they
are visible. No secret is ever written to a log, and `jfsd status` shows `removed` instead.

The metadata URL of a served mount, with its password, lies in /run/jfsd (mode 0700,
files 0600), where `jfsd status`, `jfsd info` and `jfsd umount` look for it.

## Credentials

A service manager passes secrets as files in the directory $CREDENTIALS_DIRECTORY
(`LoadCredential=` in systemd.exec(5)). They come before the environment, and after a file that
an option names.

| credential | takes the place of |
|---|---|
"""

_ENVIRONMENT_NOTE = """\

## Environment

| variable | meaning |
|---|---|
"""


def document() -> str:
    """Return the whole page."""
    return "".join(_parts())


def _parts() -> Iterator[str]:
    yield _HEAD + "\n" + _FILE_NOTE
    yield "## jfsd mount\n\n" + _CHANGE_NOTE
    yield from _tables(MOUNT_FLAGS)
    yield "\n## jfsd format\n\n"
    yield "What is *fixed* cannot be changed once the volume exists; *live* options can be given\n"
    yield "again and reach running clients within a heartbeat.\n"
    yield from _tables(FORMAT_FLAGS)
    yield "\n" + _SECRETS_NOTE
    yield from (f"| `{name}` | `{variable}` |\n" for name, variable in CREDENTIALS.items())
    yield _ENVIRONMENT_NOTE
    yield from (f"| `{name}` | {text} |\n" for name, text in ENVIRONMENT.items())
    yield "\n## Exit codes\n\n| code | name | meaning |\n|---|---|---|\n"
    yield from (f"| {int(code)} | {code.name} | {text} |\n" for code, text in EXIT_CODES.items())
    yield "| 130 | | Ended by Ctrl-C. |\n"
    yield "| 143 | | A mount that was told to stop (SIGTERM, Ctrl-C) before it was ready. |\n"


def _tables(flags: Sequence[Flag]) -> Iterator[str]:
    for group, rows in groupby(flags, key=lambda flag: flag.group):
        yield f"\n### {group}\n\n"
        yield "| option | default | range | bare | change | meaning |\n|---|---|---|---|---|---|\n"
        for flag in rows:
            cells = (
                _option(flag),
                _default(flag),
                flag.range_text,
                bare_unit(flag),
                flag.change.value,
            )
            yield f"| {' | '.join(cells)} | {flag.help} |\n"


def _option(flag: Flag) -> str:
    if flag.kind is Kind.SWITCH and (flag.default_value or flag in MOUNT_FLAGS):
        return f"`{flag.option}`, `{flag.opposite}`"
    return f"`{flag.option} {flag.metavar}`" if flag.metavar else f"`{flag.option}`"


def _default(flag: Flag) -> str:
    if flag.kind is Kind.SWITCH:
        return "on" if flag.default_value else "off"
    return f"`{flag.default}`" if flag.default else ""


def bare_unit(flag: Flag) -> str:
    """Return the unit of a bare number of this option; "" for what has none."""
    if flag.kind is Kind.BYTES:
        return f"{flag.unit}iB" if flag.unit else "bytes"
    return {Kind.SECONDS: "s", Kind.MBPS: "Mbit/s"}.get(flag.kind, "")
