"""`jfsd upgrade`: have the installed version take a served mount over, without a pause."""

from __future__ import annotations

import click

from jfsd.cli.served import served_place

EPILOG = """\b
Examples:
  jfsd upgrade /mnt/jfs
"""
_SILENCE_S = 180.0


@click.command("upgrade", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
def command(mountpoint: str) -> None:
    """Start the installed version beside the server of MOUNTPOINT and hand over to it.

    The new process loads, connects and checks everything while the old one serves, and then
    takes over within some ten milliseconds. If it cannot, the old one goes on, and the exit
    code is not 0. The options stay those of the running server.
    """
    from jfsd.daemon.control_client import ask  # noqa: PLC0415

    place = served_place(mountpoint)
    before = ask(place, {"do": "status"}).result["mount"]
    request = {"do": "upgrade", "generation": before["Generation"]}
    after = ask(place, request, silence_s=_SILENCE_S).result
    gap = after["event"].get("gap_ms")
    took = "" if gap is None else f" after a pause of {gap:.0f} ms"
    click.echo(f"jfsd: server {after['pid']} has taken {place} over from {before['Pid']}{took}")
