"""Compare jfsd with the reference: same machine, same Redis, same store, in turn.

    make bench                              # everything, some twenty minutes
    make bench ARGS='--short'               # a few minutes
    make bench ARGS='--store file --rounds 5 --only metadata --json /tmp/bench.json'
    make bench ARGS='--plot docs/performance.png'

Both volumes are mounted for the whole run with each program's defaults; a workload
runs on one, then on the other, the order changing every round. Figures are rates
(more is better) and medians over the rounds; a ratio above 1 means jfsd is faster.
Beside each rate stands what one thing costs the server's processors, which hardly
depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import lifecycle, scaling, workloads
from bench.targets import BACKGROUND, FOREGROUND, MEMORY, STALL, TARGETS
from bench.workloads import CPU, WORKLOADS, Size
from support.clients import Jfsd, JuiceFS, Storage
from support.redis import RedisServer
from support.session import Session
from support.slowline import SlowLine
from support.weed import WeedServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.workloads import Rates
    from support.clients import Client, Mounted


class PlainJuiceFS(JuiceFS):
    """The reference as people run it: whatever costs or saves a request is at its default."""

    def mount_flags(self) -> list[str]:
        """No reports to anybody, and no backup that would fall into a measurement."""
        return ["--no-usage-report", "--no-agent", "--backup-meta", "0"]


Found = dict[str, dict[str, list[float]]]
"""Figure to program to its values, one for each round."""

FIRST_INO = 1 << 40
DELAYS_MS = (0, 1, 5)
PROGRAMS = (1, 16, 256)
CLIENTS = 10


def isolated(workload: Callable[[Any], Rates], servers: list[int], top: Path | list[Path]) -> Rates:
    """Run a workload in a process of its own and return its rates."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            workloads.SERVERS[:] = servers
            os.write(writer, json.dumps(workload(top)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as source:
        answer = source.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{workload} on {top} ended with {status}")
    return json.loads(answer)


def compare(
    found: Found, mounted: dict[str, Mounted], jobs: dict[str, Callable[[Path], Rates]], rounds: int
) -> None:
    """Add to `found` what each job says on each mount, in each round."""
    for number in range(rounds):
        order = list(mounted) if number % 2 == 0 else list(reversed(mounted))
        for name, job in jobs.items():
            for who in order:
                top = mounted[who].path / f"{name}{number}"
                top.mkdir()
                for figure, value in isolated(job, mounted[who].pids(), top).items():
                    found.setdefault(figure, {}).setdefault(who, []).append(value)
                if sys.stderr.isatty():
                    print(f"  round {number + 1} of {rounds}: {name} {who}", file=sys.stderr)
                time.sleep(0.3)


class Bed:
    """Both programs on one Redis and one kind of store."""

    def __init__(self, session: Session, kind: str) -> None:
        self.session = session
        self.redis = RedisServer(session)
        self.weed = WeedServer(session) if kind == "s3" else None
        self.clients: list[Client] = [Jfsd(session), PlainJuiceFS(session)]
        for db, client in enumerate(self.clients):
            weed = self.weed
            storage = (
                Storage(bucket=weed.bucket()) if weed else Storage(directory=session.directory("o"))
            )
            url = self.redis.url(db)
            client.format(url, f"bench-{client.name}", storage, "--trash-days", "0")

    def mount(self, line: SlowLine | None = None) -> dict[str, Mounted]:
        """Return the mounts by program, over `line` if there is one."""
        mounted = {}
        for db, client in enumerate(self.clients):
            url = f"redis://127.0.0.1:{line.port}/{db}" if line else self.redis.url(db)
            mounted[client.name] = client.mount(url, self.session.directory("m"))
        return mounted

    def unmount(self, mounted: dict[str, Mounted]) -> None:
        """End the mounts, whoever else on this machine keeps them alive."""
        for one in mounted.values():
            lifecycle.end(one.client, one.path)
            one.kill()

    def close(self) -> None:
        """End the servers."""
        self.redis.service.end()
        if self.weed:
            self.weed.service.kill()


def rates(bed: Bed, found: Found, arguments: argparse.Namespace) -> None:
    """Run the workloads, and see how much memory they have left in use."""
    size = Size(quick=arguments.short)
    mounted = bed.mount()
    jobs = {name: partial(_sized, WORKLOADS[name], size) for name in arguments.only}
    compare(found, mounted, jobs, arguments.rounds)
    for who, one in mounted.items():
        found.setdefault(MEMORY, {})[who] = [lifecycle.resident_mib(one.pids())]
    bed.unmount(mounted)


def _sized(workload: Callable[[Path, Size], Rates], size: Size, top: Path) -> Rates:
    return workload(top, size)


def growth(bed: Bed, found: Found, arguments: argparse.Namespace) -> None:
    """Run what shows how cost grows."""
    times, rounds = (100, 1) if arguments.short else (300, 3)
    mounted = bed.mount()
    for entries in (1000, 100_000) if arguments.short else (1000, 100_000, 1_000_000):
        for db, (who, one) in enumerate(mounted.items()):
            top = one.path / f"of{entries}"
            top.mkdir()
            with bed.redis.client(db) as client:
                scaling.populate(client, top.stat().st_ino, entries, FIRST_INO + entries)
            job = partial(scaling.in_directory, entries=entries, times=times)
            for figure, value in isolated(job, one.pids(), top).items():
                found.setdefault(figure, {}).setdefault(who, []).append(value)
    for count in PROGRAMS:
        job = partial(scaling.programs, count=count, files=times * 4)
        compare(found, mounted, {f"programs{count}-": job}, rounds)
    for mib in (1, 256) if arguments.short else (1, 10 << 10):
        job = partial(scaling.in_file, mib=mib, times=times * 5)
        compare(found, mounted, {f"file{mib}-": job}, 1)
    bed.unmount(mounted)
    beside_each_other(bed, found, times * 10)
    for delay_ms in DELAYS_MS:
        with SlowLine(bed.redis.socket, delay_ms / 1000) as line:
            mounted = bed.mount(line)
            job = partial(scaling.delayed, delay_ms=delay_ms, times=times // 2)
            compare(found, mounted, {f"delay{delay_ms}-": job}, rounds)
            bed.unmount(mounted)


def beside_each_other(bed: Bed, found: Found, files: int) -> None:
    """Mount one volume many times, by one program and then by the other."""
    for db, client in enumerate(bed.clients):
        mounted = [
            client.mount(bed.redis.url(db), bed.session.directory("m")) for _ in range(CLIENTS)
        ]
        shared = [one.path / "shared" for one in mounted]
        shared[0].mkdir()
        job = partial(scaling.clients, files=files)
        pids = [pid for one in mounted for pid in one.pids()]
        for figure, value in isolated(job, pids, shared).items():
            found.setdefault(figure, {}).setdefault(client.name, []).append(value)
        bed.unmount({str(one.path): one for one in mounted})


def lives(bed: Bed, found: Found, arguments: argparse.Namespace) -> None:
    """See how long a start takes, and how long programs wait at a restart."""
    times = 3 if arguments.short else 5
    for _ in range(times):
        for db, client in enumerate(bed.clients):
            where = bed.session.directory("f"), bed.session.directory("c")
            for figure, measure in (
                (BACKGROUND, lifecycle.background_ms),
                (FOREGROUND, lifecycle.foreground_ms),
            ):
                took = measure(client, bed.redis.url(db), *where)
                found.setdefault(figure, {}).setdefault(client.name, []).append(took)
    for db, client in enumerate(bed.clients):
        where = bed.session.directory("f"), bed.session.directory("c")
        stalls = lifecycle.restart_stalls(client, bed.redis.url(db), *where, times)
        found.setdefault(STALL, {})[client.name] = stalls


def table(kind: str, found: Found) -> dict[str, dict[str, object]]:
    """Print medians, ratios and targets; return them."""
    print(
        f"\nRedis + {kind}".ljust(42) + f"{'jfsd':>11}{'juicefs':>11}{'ratio':>8}{'target':>9}"
        f"{'CPU us':>9}{'juicefs':>9}"
    )
    result: dict[str, dict[str, object]] = {}
    for figure, values in found.items():
        if figure.startswith(CPU) or len(values) < 2:
            continue
        ours, theirs = (statistics.median(values[who]) for who in ("jfsd", "juicefs"))
        ratio = ours / theirs if theirs else 0.0
        target = TARGETS.get(figure)
        cpu = found.get(CPU + figure, {})
        costs = [statistics.median(cpu[who]) for who in ("jfsd", "juicefs")] if cpu else []
        met = "" if target is None else f"{target} {'✓' if target.met(ratio) else '✗'}"
        print(
            f"{figure:<41}{ours:>11.1f}{theirs:>11.1f}{ratio:>8.2f}{met:>9}"
            + "".join(f"{cost:>9.1f}" for cost in costs)
        )
        result[figure] = {
            "jfsd": ours, "juicefs": theirs, "ratio": ratio, "cpu_us": costs,
            "values": values,
            "target": str(target or ""), "met": target.met(ratio) if target else None,
        }  # fmt: skip
    return result


PARTS = {"rates": rates, "growth": growth, "lives": lives}


def main() -> None:
    """Parse the command line, run, print, and write JSON and picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=["file", "s3", "both"], default="both")
    parser.add_argument("--rounds", type=int, default=0, help="3; or 5, in the full form")
    parser.add_argument("--short", "--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="write a picture of the curves to this file")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (3 if arguments.short else 5)
    session = Session()
    results: dict[str, dict[str, dict[str, object]]] = {}
    stalls: dict[str, list[float]] = {}
    try:
        for kind in ["file", "s3"] if arguments.store == "both" else [arguments.store]:
            bed, found = Bed(session, kind), Found()
            for name in arguments.parts if kind == "file" else ["rates"]:
                PARTS[name](bed, found, arguments)
            results[kind] = table(kind, found)
            stalls = stalls or found.get(STALL, {})
            bed.close()
    finally:
        session.close()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.plot:
        from bench.plot import plot

        plot(next(iter(results.values())), stalls, arguments.plot)


if __name__ == "__main__":
    main()
