"""`jfsd reload`: have a server read its configuration again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from jfsd.cli.served import served_place
from jfsd.errors import ExitCode, RefusedError

EPILOG = """\b
Examples:
  jfsd reload /mnt/jfs
  systemctl reload jfs@mnt-jfs        # the same, without waiting for the report
"""

_TITLES = {
    "applied": "applied",
    "needs_restart": "needs a restart",
    "refused": "refused, fixed while mounted",
    "failed": "refused",
}


@click.command("reload", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
def command(mountpoint: str) -> int:
    """Have the server of MOUNTPOINT read its configuration and go by it, without a pause.

    Each changed option is one line: applied, in need of a restart, or refused, with its
    value before and after. Exit code 16 says that not all of it took effect; what did not
    stays as it was.
    """
    from jfsd.daemon.control_client import ask  # noqa: PLC0415

    report = ask(served_place(mountpoint), {"do": "reload"}).result
    if report.get("error"):
        raise RefusedError(
            ExitCode.USAGE, "the configuration", report["error"], "mend it and reload again"
        )
    for line in _lines(report):
        click.echo(line)
    complete = not any(report.get(part) for part in _TITLES if part != "applied")
    return ExitCode.OK if complete else ExitCode.NOT_APPLIED


def _lines(report: dict[str, Any]) -> Iterator[str]:
    found = False
    for part, title in _TITLES.items():
        for change in report.get(part, ()):
            found = True
            reason = f" ({change['reason']})" if change.get("reason") else ""
            yield f"{title}: {change['option']} {change['before']} -> {change['after']}{reason}"
    if not found:
        yield "nothing has changed"
