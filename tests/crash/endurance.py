#!/usr/bin/env python3
"""Restarts, upgrades, kills and reloads by the dozen under a checked load; no test, run by hand.

Prints, for a volume on Redis and a directory and for one on Redis and S3, how many errors
programs saw, what was lost or done twice (all of it must be 0), and the longest stall of
each kind of event. The exit status says whether all was well.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clients import JuiceFS, Storage
from support.events import KINDS, Background, Outcome, table, under_load
from support.held import Held, HeldJfsd
from support.redis import RedisServer
from support.session import Session
from support.volume import Volume
from support.weed import WeedServer

LOAD = (*KINDS, "contender", "contender", "waiter", "lister")


def endure(held: Held, times: argparse.Namespace) -> Outcome:
    """Return what a load felt of everything."""
    again = [held.client.binary, *held.again]
    mount = Background(again, held.path, held.client.env())
    events = [("restart", mount.restart)] * times.restarts
    events += [("upgrade", mount.upgrade)] * times.upgrades
    events += [("kill", mount.kill)] * times.kills
    outcome = under_load(held.path, events, kinds=LOAD)

    def reloads() -> None:
        for _ in range(times.reloads):
            mount.reload()
            time.sleep(0.05)

    def storm() -> None:
        end = time.monotonic() + times.storm_s
        while time.monotonic() < end:
            mount.shoot()
            time.sleep(0.3)

    for name, happen in (("reload", reloads), ("storm", storm)):
        (held.path / name).mkdir()
        more = under_load(held.path / name, [(name, happen)], kinds=LOAD)
        outcome.errors += more.errors
        outcome.wrong += more.wrong
        outcome.doubled += more.doubled
        outcome.operations += more.operations
        outcome.stalls[name] = more.stalls[name]
    return outcome


def complaints(held: Held) -> list[str]:
    """Return what the servers logged beyond news."""
    lines = held.log.read_text(errors="replace").splitlines()
    return [line for line in lines if "<INFO>" not in line][-40:]


def main() -> int:
    """Run it on both kinds of store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("restarts", 20), ("upgrades", 20), ("kills", 20), ("reloads", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--storm-s", type=float, default=60, help="a kill every 300 ms for so long")
    parser.add_argument("--stores", nargs="+", default=["file", "s3"])
    times = parser.parse_args()
    session = Session()
    rows = {}
    try:
        for kind in times.stores:
            redis = RedisServer(session)
            if kind == "s3":
                storage = Storage(bucket=WeedServer(session).bucket())
            else:
                storage = Storage(directory=session.directory("o"))
            client, juicefs = HeldJfsd(session), JuiceFS(session)
            client.format(redis.url(0), f"vol{kind}", storage, "--trash-days", "0")
            volume = Volume(session, client, juicefs, redis.url(0), storage, f"vol{kind}")
            held = volume.mount()
            outcome = rows[kind] = endure(held, times)
            print(*outcome.errors[:20], *outcome.wrong[:20], sep="\n", flush=True)
            if not outcome.fine:
                print(*complaints(held), sep="\n", flush=True)
            held.unmount()
            volume.check()
            print(*table({kind: outcome}), sep="\n", flush=True)
    finally:
        session.close()
    return 0 if all(outcome.fine for outcome in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
