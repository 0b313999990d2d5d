"""Random operations of two clients: afterwards every count in the volume adds up."""

from __future__ import annotations

import errno
import random

import pytest
from support.audit import problems
from support.engines import bare_volume, open_meta
from support.nodes import ROOT, open_nodes

from jfsd.meta import codec
from jfsd.types import CHUNK_SIZE, FLAG_SKIP_TRASH, Caller, NodeType, Slice

CALLERS = [ROOT, Caller(1000, 1000), Caller(2000, 1000)]
STEPS = 600


class Monkey:
    """Does whatever comes to its mind, among few names so that they collide."""

    def __init__(self, meta, seed: int) -> None:
        self.meta = meta
        self.random = random.Random(seed)
        self.dirs = [1]
        self.files: list[int] = []
        self.open: set[int] = set()
        self.sustained: set[int] = set()
        self.done = 0

    def name(self) -> bytes:
        return b"n%d" % self.random.randrange(6)

    def dir(self) -> int:
        return self.random.choice(self.dirs[-8:])

    def file(self) -> int:
        return self.random.choice(self.files[-20:] or [1])

    def caller(self) -> Caller:
        return self.random.choice(CALLERS)

    def length(self) -> int:
        return self.random.choice([0, 1, 4096, 5000, 123456, CHUNK_SIZE + 5, 1 << 33])

    async def step(self) -> None:
        makers = [self.make] * 3
        removers = [self.unlink, self.rmdir, self.rename, self.rename, self.release]
        changers = [self.truncate, self.write, self.allocate, self.copy, self.chown, self.skip]
        action = self.random.choice([*makers, *removers, *changers, self.link, self.unnamed])
        try:
            await action()
        except OSError as error:
            if error.errno == errno.EIO:
                raise
        else:
            self.done += 1

    async def make(self) -> None:
        kind = self.random.choice([NodeType.FILE, NodeType.FILE, NodeType.DIRECTORY, 3, 4])
        target = b"x" * 5000 if kind == 3 else b""
        target = target[:77]
        ino, _ = await self.meta.mknod(
            self.caller(), self.dir(), self.name(), NodeType(kind), 0o777, 0, target
        )
        if kind == NodeType.DIRECTORY:
            self.dirs.append(ino)
        else:
            self.files.append(ino)

    async def unnamed(self) -> None:
        ino, _ = await self.meta.tmpfile(self.caller(), self.dir(), 0o600)
        self.files.append(ino)
        self.sustained.add(ino)

    async def unlink(self) -> None:
        self.open = set(self.random.sample(self.files, len(self.files) // 2))
        result = await self.meta.unlink(self.caller(), self.dir(), self.name(), self.open)
        if result.sustained:
            self.sustained.add(result.ino)

    async def rmdir(self) -> None:
        await self.meta.rmdir(self.caller(), self.dir(), self.name())

    async def rename(self) -> None:
        self.open = set(self.random.sample(self.files, len(self.files) // 2))
        result = await self.meta.rename(
            self.caller(),
            self.dir(),
            self.name(),
            self.dir(),
            self.name(),
            self.random.choice([0, 0, 1, 2]),
            self.open,
        )
        if result.sustained:
            self.sustained.add(result.replaced)

    async def link(self) -> None:
        ino = self.file()
        await self.meta.link(self.caller(), ino, self.dir(), self.name())

    async def truncate(self) -> None:
        await self.meta.truncate(ROOT, self.file(), self.length(), through_handle=True)

    async def write(self) -> None:
        size = self.random.randrange(1, 10000)
        record = Slice(self.random.randrange(CHUNK_SIZE - size), 0, size, 0, size)
        record = record._replace(id=await self.meta.new_slice_id())
        await self.meta.commit_slice(self.file(), self.random.randrange(3), record, 5)

    async def allocate(self) -> None:
        mode = self.random.choice([0, 1, 3, 16, 17])
        await self.meta.fallocate(ROOT, self.file(), mode, self.length(), 5000)

    async def copy(self) -> None:
        await self.meta.copy_file_range(ROOT, self.file(), 100, self.file(), self.length(), 9999)

    async def chown(self) -> None:
        ino = self.random.choice([self.file(), self.dir()])
        if ino != 1:
            caller = self.caller()
            await self.meta.setattr(ROOT, ino, uid=caller.uid, gid=caller.gid)

    async def skip(self) -> None:
        await self.meta.setattr(ROOT, self.file(), flags=self.random.choice([0, FLAG_SKIP_TRASH]))

    async def release(self) -> None:
        if self.sustained:
            await self.meta.release_sustained(self.sustained.pop())


@pytest.mark.promise(14)
@pytest.mark.parametrize("trash_days", [0, 1])
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_counts_add_up(redis_server, meta_db, meta_url, seed, trash_days) -> None:
    fields = {"trash_days": trash_days, "dir_stats": True, "user_group_quota": True}
    with redis_server.client(meta_db) as client:
        async with open_nodes(meta_url, client, **fields) as nodes, open_meta(meta_url, "2") as two:
            two.apply(bare_volume(**fields))
            two.sid = 8
            monkeys = [Monkey(nodes.meta, seed), Monkey(two, seed + 100)]
            for quota in [1, *[await nodes.mkdir(1, b"n%d" % n) for n in range(3)]]:
                client.hset("dirQuota", str(quota), codec.encode_quota(1 << 40, 1 << 30))
                client.hset("dirQuotaUsedSpace", str(quota), 0 if quota > 1 else 3 * 4096)
                client.hset("dirQuotaUsedInodes", str(quota), 0 if quota > 1 else 3)
            for turn in range(STEPS):
                for monkey in monkeys:
                    await monkey.step()
                if turn % 20 == 19:
                    assert problems(client) == []
            assert sum(monkey.done for monkey in monkeys) > STEPS // 2
