"""`jfsd check`: say beforehand whether a reload, restart or upgrade would be smooth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jfsd.cli.mends import line_of, mend_of
from jfsd.cli.source import absolute, configured, is_url
from jfsd.config.credentials import DIRECTORY_VARIABLE
from jfsd.config.file import is_instance
from jfsd.config.flags import Change
from jfsd.config.runtime import MountRecord, escape, find
from jfsd.config.source import Source
from jfsd.errors import ExitCode, JfsdError, RefusedError

if TYPE_CHECKING:
    from jfsd.daemon.check import Verdict

EPILOG = """\b
Examples:
  jfsd check mnt-jfs && systemctl reload jfs@mnt-jfs
  jfsd check --config /tmp/new.toml /mnt/jfs     # before it is installed
  jfsd check /mnt/jfs --json
"""

_WHEN = {
    Change.LIVE: "takes effect at a reload",
    Change.RESTART: "takes effect at a restart",
    Change.FIXED: "needs an unmount",
}
_WORD = {Change.LIVE: "reload", Change.RESTART: "restart", Change.FIXED: "unmount"}

_CREDENTIALS = Path("/run/credentials")


@click.command("check", epilog=EPILOG)
@click.argument("target", metavar="[INSTANCE|MOUNTPOINT]", required=False)
@click.option("--config", metavar="FILE", help="Check this configuration file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(target: str | None, config: str | None, as_json: bool) -> int:
    """Say whether a reload, restart or upgrade would be smooth, and mount, if nothing is mounted.

    Reads the configuration, reaches Redis and the store, and compares with the mount that is
    served. Each thing that differs or is in the way is one line. Exit code 17: a restart would
    not bring all of it about, or would fail. Nothing is changed, and the mount is not touched.
    """
    from jfsd.cli.opening import be_quiet  # noqa: PLC0415
    from jfsd.daemon.check import examine  # noqa: PLC0415

    be_quiet()
    source, record = _subject(target, config)
    _use_credentials(source, record)
    verdict = examine(source, record)
    if as_json:
        click.echo(json.dumps(_as_dict(verdict), indent=2, ensure_ascii=False))
    else:
        for line in _lines(verdict):
            click.echo(line)
    return ExitCode.OK if verdict.smooth else ExitCode.NOT_SMOOTH


def _subject(target: str | None, config: str | None) -> tuple[Source, MountRecord | None]:
    """Return what is to be checked, and the mount that it is about, if there is one."""
    from jfsd.daemon.check import live_mount, refuse_path_on_mount  # noqa: PLC0415
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    if target is not None and is_url(target):
        raise click.UsageError(f"{target}: is no instance and no mount point; give one of them")
    if config is not None:
        refuse_path_on_mount(absolute(config), "--config")
        source = Source(absolute(config), "", absolute(target))
    elif target is None:
        raise click.UsageError("Missing argument 'INSTANCE'")
    elif is_instance(target):
        source = Source(configured(target))
    else:
        place = absolute(target)
        with suppress(RefusedError):  # it does not exist
            place = mounting.resolve(place)
        record = find(place)
        if record is not None and mounting.find(place) is not None:
            return Source.from_dict(record.source, record.meta_url), record
        source = Source(configured(target))
    record = live_mount(source)
    if record is not None and record.source.get("config") == source.config:
        # The next server is given the same command line.
        source = Source.from_dict(record.source, record.meta_url)
    return source, record


def _use_credentials(source: Source, record: MountRecord | None) -> None:
    """Read the secrets that the service has, where this user may."""
    place = record.mountpoint if record else source.load().mountpoint
    directory = _CREDENTIALS / f"jfs@{escape(place)}.service"
    if DIRECTORY_VARIABLE not in os.environ and os.access(directory, os.R_OK | os.X_OK):
        os.environ[DIRECTORY_VARIABLE] = str(directory)


def _lines(verdict: Verdict) -> Iterator[str]:
    for change in verdict.changes:
        yield f"{_WHEN[change.change]}: {change}"
    for problem in verdict.problems:
        yield f"in the way: {line_of(problem)}"
    if not verdict.changes and not verdict.problems:
        yield "nothing differs" if verdict.mounted else "nothing is in the way of a mount"


def _as_dict(verdict: Verdict) -> dict[str, Any]:
    return {
        "smooth": verdict.smooth,
        "mountpoint": verdict.mountpoint,
        "mounted": verdict.mounted,
        "server": verdict.server,
        "changes": [
            {
                "option": change.option,
                "before": change.before,
                "after": change.after,
                "takes": _WORD[change.change],
            }
            for change in verdict.changes
        ],
        "problems": [_problem(error) for error in verdict.problems],
    }


def _problem(error: JfsdError) -> dict[str, Any]:
    if isinstance(error, RefusedError):
        value, rule, mend = error.value, error.rule, error.mend
    else:
        value, _, rule = str(error).partition(": ")
        mend = mend_of(error)
    return {"code": int(error.exit_code), "value": value, "rule": rule, "mend": mend}
