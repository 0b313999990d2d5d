"""`jfsd state`: what the next server of a mount would know."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress

import click

from jfsd.cli.served import served_place
from jfsd.errors import JfsdError

EPILOG = """\b
Examples:
  jfsd state /mnt/jfs
  jfsd state /mnt/jfs | jq '.files | length'
"""
SERVICE_MANAGER = 1
_SILENCE_S = 5.0
"""A server that hangs is left alone after this."""


@click.command("state", epilog=EPILOG)
@click.argument("mountpoint", metavar="MOUNTPOINT")  # click.Path would stat(2) it
def command(mountpoint: str) -> None:
    """Print the parked state of MOUNTPOINT as JSON; nothing is changed.

    It is what a server that is started now would go on with: generation and options, open
    files, owners of locks, requests that servers died of, slices that wait to be stored. It
    can be read while no server runs, as long as something keeps it: systemd (root may
    look) or jfsd's holder. A state that is damaged or of a version that this one cannot read
    is refused, and left as it is.
    """
    from jfsd.daemon.state_view import describe  # noqa: PLC0415

    place = served_place(mountpoint)
    with ExitStack() as stack:
        fds = _descriptors(place, stack)
        click.echo(json.dumps(describe(*fds), indent=2, ensure_ascii=False))


def _descriptors(place: str, stack: ExitStack) -> tuple[int, ...]:
    """Return descriptors of the state, and of the arena where it can be had.

    Raises:
        NoServerError: Nobody has them.
    """
    from jfsd.daemon.control_client import NoServerError, ask  # noqa: PLC0415
    from jfsd.daemon.state_view import state_kept_by  # noqa: PLC0415

    try:
        fds = ask(place, {"do": "state"}, patience_s=0, silence_s=_SILENCE_S).fds
    except NoServerError:
        fds = _held(place)
        if not fds and (kept := state_kept_by(SERVICE_MANAGER, place)) is not None:
            fds = (kept,)
        if not fds:
            fds = ask(place, {"do": "state"}).fds
    for fd in fds:
        stack.callback(os.close, fd)
    return fds


def _held(place: str) -> tuple[int, ...]:
    """Return what jfsd's holder of the mount keeps; nothing if there is none."""
    from jfsd.daemon.holder_link import HolderClient  # noqa: PLC0415
    from jfsd.daemon.takeover import ARENA, STATE  # noqa: PLC0415

    with suppress(JfsdError):
        holder = HolderClient.find(place)
        if holder is not None:
            with holder:
                kept = dict(holder.descriptors())
            for name in kept.keys() - {STATE, ARENA}:
                os.close(kept[name])
            return tuple(kept[name] for name in (STATE, ARENA) if name in kept)
    return ()
