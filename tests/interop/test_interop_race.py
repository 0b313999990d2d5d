"""The reference's transactions and our scripts on the same names at the same time."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys

import pytest
from support.audit import problems
from support.engines import open_meta
from support.nodes import ROOT

from jfsd.types import NodeType

STATISTICS = ("dirUsedSpace", "dirUsedInodes", "dirDataLength")
"""Two clients of the reference alone let these drift when their transactions are repeated."""

LOAD = """
import os, random, sys
root, seed, kinds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
def name(): return f"{root}/{chance.choice('ab')}/n{chance.randrange(5)}"
done = 0
for turn in range(300):
    try:
        what = chance.randrange(kinds)
        if what == 0: os.close(os.open(name(), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        elif what == 1: os.mkdir(name())
        elif what == 2: os.unlink(name())
        elif what == 3: os.rmdir(name())
        elif what == 4: os.rename(name(), name())
        elif what == 5: os.mkfifo(name())
        else: os.link(name(), name())
        done += 1
    except OSError as error:
        if error.errno in (5, 9, 22, 4): raise
print(done)
"""


async def ours(meta, dirs: list[int], seed: int, kinds: int) -> int:
    """Do what LOAD does; return how often it worked."""
    chance = random.Random(seed)

    def at() -> tuple[int, bytes]:
        return chance.choice(dirs), b"n%d" % chance.randrange(5)

    done = 0
    for _ in range(600):
        what = chance.randrange(kinds)
        try:
            if what == 0:
                await meta.create(ROOT, *at(), 0o644, True)
            elif what == 1:
                await meta.mknod(ROOT, *at(), NodeType.DIRECTORY, 0o755)
            elif what == 2:
                await meta.unlink(ROOT, *at())
            elif what == 3:
                await meta.rmdir(ROOT, *at())
            elif what == 4:
                await meta.rename(ROOT, *at(), *at(), chance.choice([0, 0, 1, 2]))
            elif what == 5:
                await meta.mknod(ROOT, *at(), NodeType.FIFO, 0o600)
            else:
                ino, _ = await meta.lookup(*at())
                await meta.link(ROOT, ino, *at())
            done += 1
        except OSError as error:
            if error.errno in (5, 9, 22):
                raise
        await asyncio.sleep(0.001)
    return done


@pytest.mark.promise(14)
@pytest.mark.parametrize("trash", ["0", "1"])
async def test_nothing_is_lost_or_doubled(new_volume, redis_server, juicefs, trash) -> None:
    """Without hard links when the trash is on: there the reference loses one of two that a
    rename replaces under the same name within an hour.
    """
    kinds = 7 if trash == "0" else 6
    volume = new_volume("file", "--trash-days", trash, by=juicefs)
    db = int(volume.meta_url.rpartition("=")[2])
    mounted = volume.mount(client=juicefs)
    for name in "ab":
        os.mkdir(mounted.path / name)
    with redis_server.client(db) as client:
        async with open_meta(volume.meta_url) as meta:
            dirs = [(await meta.lookup(1, name))[0] for name in (b"a", b"b")]
            loads = [
                subprocess.Popen(
                    [sys.executable, "-c", LOAD, str(mounted.path), str(seed), str(kinds)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for seed in (1, 2)
            ]
            done = await asyncio.gather(*(ours(meta, dirs, seed, kinds) for seed in (3, 4)))
            ends = [await asyncio.to_thread(load.communicate, timeout=60) for load in loads]
        assert [load.returncode for load in loads] == [0, 0], [end[1] for end in ends]
        assert min(*done, *(int(end[0]) for end in ends)) > 20
        mounted.unmount()
        wrong = [text for text in problems(client) if not text.startswith(STATISTICS)]
        assert not wrong, "\n".join(wrong)
    volume.check()
