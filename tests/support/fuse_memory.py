"""A file system in memory, to serve through jfsd.fuse without Redis and a store.

Run as a program it serves one mount from a descriptor:
    fuse_memory.py FD INIT_HEX {fresh|adopted} [JSON options]
It prints "ready" once it serves, and ends on SIGTERM without unmounting.
Options: uvloop (bool), stock (bool, pyfuse3's own asyncio layer), state (path: nodes
and finished operations are kept there), delay_s (before each mutation is answered),
acls (bool), log (path: one JSON line per call of interest).

File handles are inode numbers, so that any process can answer for them.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import pickle
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

from jfsd.meta.codec import encode_attr
from jfsd.types import Attr, NodeType
from jfsd.vfs.dirs import Node, Page, cookie_of, place_after
from jfsd.vfs.ports import Opened, PosixLock, StatFs

TYPES = {
    stat.S_IFREG: NodeType.FILE,
    stat.S_IFDIR: NodeType.DIRECTORY,
    stat.S_IFLNK: NodeType.SYMLINK,
    stat.S_IFIFO: NodeType.FIFO,
    stat.S_IFBLK: NodeType.BLOCKDEV,
    stat.S_IFCHR: NodeType.CHARDEV,
    stat.S_IFSOCK: NodeType.SOCKET,
}
PAGE = 4096


def fail(code):
    raise OSError(code, os.strerror(code))


class MemoryVfs:
    """The interface of jfsd.vfs.vfs.Vfs on dictionaries; nothing is checked twice."""

    attr_timeout_s = entry_timeout_s = dir_entry_timeout_s = 0.0

    def __init__(self, options=None):
        self.options = options or {}
        self.attr_timeout_s = self.options.get("timeout_s", 0.0)
        self.entry_timeout_s = self.dir_entry_timeout_s = self.attr_timeout_s
        self.state = self.options.get("state")
        self.next = 2
        root = Attr(NodeType.DIRECTORY, 0o755, nlink=2)
        self.attrs = {1: root}
        self.names = {1: {}}
        self.parents = {1: 1}
        self.data = {}
        self.holes = {}
        self.targets = {}
        self.xattrs = {}
        self.done = {}
        self.flocks, self.posix = {}, {}
        self.fh_owners = {}
        if self.state and Path(self.state).exists():
            self.__dict__.update(pickle.loads(Path(self.state).read_bytes()))

    def attr_valid_s(self, _ino: int) -> float:
        return self.attr_timeout_s

    def touched_record(self, _ino: int) -> None:
        return None

    def log(self, **fields):
        if self.options.get("log"):
            with Path(self.options["log"]).open("a") as out:
                out.write(json.dumps(fields) + "\n")

    def save(self):
        if self.state:
            keep = {k: v for k, v in self.__dict__.items() if k not in ("options", "state")}
            temp = Path(self.state + ".new")
            temp.write_bytes(pickle.dumps(keep))
            temp.replace(self.state)

    def kernel_ino(self, ino):
        return ino

    async def once(self, caller, work):
        """Do `work` at most once per operation, as the real metadata does."""
        if caller.op in self.done:
            self.log(call="repeat", op=caller.op)
            result = self.done[caller.op]
        else:
            try:
                result = (0, work())
            except OSError as error:
                result = (error.errno, None)
            self.done[caller.op] = result
            self.save()
        if self.options.get("delay_s"):
            await asyncio.sleep(self.options["delay_s"])
        if result[0]:
            fail(result[0])
        return result[1]

    # -- names

    def node(self, ino):
        if ino not in self.attrs:
            fail(errno.ENOENT)
        return Node(ino, self.attrs[ino])

    def touch(self, ino):
        now = time.time_ns()
        attr = self.attrs[ino]
        attr.mtime_ns = attr.ctime_ns = now

    def add(self, caller, parent, name, kind, mode, rdev=0):
        if name in self.names[parent]:
            fail(errno.EEXIST)
        ino, self.next = self.next, self.next + 1
        now = time.time_ns()
        nlink = 2 if kind is NodeType.DIRECTORY else 1
        self.attrs[ino] = Attr(
            kind, mode & ~caller.umask, caller.uid, caller.gid, now, now, now, nlink, 0, rdev
        )
        self.attrs[ino].parent = parent
        self.names[parent][name] = ino
        if kind is NodeType.DIRECTORY:
            self.names[ino] = {}
            self.attrs[parent].nlink += 1
        elif kind is NodeType.FILE:
            self.data[ino] = bytearray()
            self.holes[ino] = set()
        self.touch(parent)
        return self.node(ino)

    def find(self, parent, name):
        ino = self.names[parent].get(name)
        if ino is None:
            fail(errno.ENOENT)
        return ino

    async def lookup(self, caller, parent, name):
        return self.node(self.find(parent, name))

    async def mknod(self, caller, parent, name, mode, rdev):
        kind = TYPES[stat.S_IFMT(mode) or stat.S_IFREG]
        return await self.once(
            caller, lambda: self.add(caller, parent, name, kind, stat.S_IMODE(mode), rdev)
        )

    async def mkdir(self, caller, parent, name, mode):
        assert stat.S_IFMT(mode) == 0
        return await self.once(
            caller, lambda: self.add(caller, parent, name, NodeType.DIRECTORY, mode)
        )

    async def symlink(self, caller, parent, name, target):
        def work():
            node = self.add(caller, parent, name, NodeType.SYMLINK, 0o777)
            self.targets[node.ino] = target
            self.attrs[node.ino].length = len(target)
            return node

        return await self.once(caller, work)

    async def link(self, caller, ino, parent, name):
        def work():
            if name in self.names[parent]:
                fail(errno.EEXIST)
            self.names[parent][name] = ino
            self.attrs[ino].nlink += 1
            return self.node(ino)

        return await self.once(caller, work)

    async def unlink(self, caller, parent, name):
        def work():
            ino = self.find(parent, name)
            del self.names[parent][name]
            self.attrs[ino].nlink -= 1
            self.touch(parent)

        await self.once(caller, work)

    async def rmdir(self, caller, parent, name):
        def work():
            ino = self.find(parent, name)
            if self.names[ino]:
                fail(errno.ENOTEMPTY)
            del self.names[parent][name], self.names[ino], self.attrs[ino]
            self.attrs[parent].nlink -= 1

        await self.once(caller, work)

    async def rename(self, caller, parent, name, new_parent, new_name, flags):
        def work():
            ino = self.find(parent, name)
            there = self.names[new_parent].get(new_name)
            if flags & 1 and there is not None:
                fail(errno.EEXIST)
            if flags & 2:
                self.names[parent][name] = self.find(new_parent, new_name)
            else:
                del self.names[parent][name]
            self.names[new_parent][new_name] = ino

        await self.once(caller, work)

    async def readlink(self, ino):
        return self.targets[ino]

    # -- attributes

    async def getattr(self, caller, ino):
        return self.node(ino).attr

    async def setattr(self, caller, ino, changes, fh):
        self.log(call="setattr", changes=changes._asdict(), fh=fh, op=caller.op)

        def work():
            attr = self.attrs[ino]
            for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns"):
                value = getattr(changes, name)
                if value is not None:
                    setattr(attr, name, value)
            if changes.size is not None:
                self.resize(ino, changes.size)
                self.touch(ino)
            return replace(attr)

        return await self.once(caller, work)

    def resize(self, ino, size):
        data = self.data[ino]
        if size < len(data):
            del data[size:]
        else:
            first = (len(data) + PAGE - 1) // PAGE
            self.holes[ino] |= set(range(first, (size + PAGE - 1) // PAGE))
            data.extend(bytes(size - len(data)))
        self.attrs[ino].length = size

    async def statfs(self, ino):
        if self.options.get("bug"):
            raise RuntimeError("a bug")
        return StatFs(1 << 40, 1 << 39, 1000, 900)

    async def getxattr(self, caller, ino, name):
        value = self.xattrs.get(ino, {}).get(name)
        if value is None:
            fail(errno.ENODATA)
        return value

    async def listxattr(self, ino):
        return list(self.xattrs.get(ino, {}))

    async def setxattr(self, caller, ino, name, value, flags):
        self.log(call="setxattr", name=name.decode(), flags=flags)

        def work():
            mine = self.xattrs.setdefault(ino, {})
            if flags == 1 and name in mine:
                fail(errno.EEXIST)
            if flags == 2 and name not in mine:
                fail(errno.ENODATA)
            mine[name] = value

        await self.once(caller, work)

    async def removexattr(self, caller, ino, name):
        def work():
            if self.xattrs.get(ino, {}).pop(name, None) is None:
                fail(errno.ENODATA)

        await self.once(caller, work)

    # -- files

    async def open(self, caller, ino, flags):
        self.log(call="open", flags=flags)
        self.node(ino)
        return Opened(ino)

    async def create(self, caller, parent, name, mode, flags):
        assert stat.S_IFMT(mode) == 0
        node = await self.once(caller, lambda: self.add(caller, parent, name, NodeType.FILE, mode))
        return Opened(node.ino), node

    async def tmpfile(self, caller, parent, mode, flags):
        def work():
            node = self.add(caller, parent, b"\0tmp", NodeType.FILE, mode)
            del self.names[parent][b"\0tmp"]
            self.attrs[node.ino].nlink = 0
            return node

        node = await self.once(caller, work)
        return Opened(node.ino), node

    async def read(self, fh, off, size):
        self.log(call="read", size=size)
        if fh not in self.data:
            fail(errno.EBADF)
        if self.options.get("read_delay_s"):
            await asyncio.sleep(self.options["read_delay_s"])
        return memoryview(self.data[fh]).toreadonly()[off : off + size].tobytes()

    async def write(self, fh, off, data):
        self.log(call="write", size=len(data), kind=type(data).__name__)
        held = memoryview(data)
        if self.options.get("write_delay_s"):
            await asyncio.sleep(self.options["write_delay_s"])
        mine = self.data[fh]
        if len(mine) < off + len(held):
            self.resize(fh, off + len(held))
        mine[off : off + len(held)] = held
        self.holes[fh] -= set(range(off // PAGE, (off + len(held) + PAGE - 1) // PAGE))
        self.touch(fh)
        self.save()
        return len(held)

    async def flush(self, caller, fh, lock_owner):
        self.log(call="flush", fh=fh, owner=lock_owner, pid=caller.pid)
        self.fh_owners.get(fh, set()).discard(lock_owner)
        self.unlock(fh, lock_owner, 0, 1 << 63)

    async def release(self, caller, fh, flock_owner):
        self.log(call="release", fh=fh, owner=flock_owner)
        if flock_owner is not None:
            self.flocks.get(fh, {}).pop(flock_owner, None)
            self.unlock(fh, flock_owner, 0, 1 << 63)
        for owner in self.fh_owners.pop(fh, set()):
            self.unlock(fh, owner, 0, 1 << 63)

    async def fsync(self, fh, datasync):
        self.log(call="fsync", fh=fh, datasync=datasync)

    async def fallocate(self, caller, fh, mode, off, length):
        self.log(call="fallocate", mode=mode, off=off, length=length, op=caller.op)
        if mode & ~3:
            fail(errno.EOPNOTSUPP)

        def work():
            if mode & 2:
                end = min(off + length, len(self.data[fh]))
                self.data[fh][off:end] = bytes(max(end - off, 0))
                self.holes[fh] |= set(range((off + PAGE - 1) // PAGE, end // PAGE))
            elif not mode & 1 and off + length > len(self.data[fh]):
                self.resize(fh, off + length)

        await self.once(caller, work)

    async def lseek(self, fh, off, whence):
        size = len(self.data[fh])
        if off >= size:
            fail(errno.ENXIO)
        want_hole = whence == os.SEEK_HOLE
        for page in range(off // PAGE, (size + PAGE - 1) // PAGE):
            if (page in self.holes[fh]) == want_hole:
                return max(off, page * PAGE)
        if want_hole:
            return size
        return fail(errno.ENXIO)

    async def copy_file_range(self, caller, fh_in, off_in, fh_out, off_out, length, flags):
        self.log(call="copy_file_range", length=length, flags=flags)
        data = bytes(self.data[fh_in][off_in : off_in + length])
        await self.write(fh_out, off_out, data)
        return len(data)

    # -- directories

    async def opendir(self, caller, ino):
        return ino

    async def readdir(self, fh, cookie, *, plus=True):
        own = self.attrs[fh]
        rows = [
            (cookie_of(name), name, ino, self.attrs[ino]) for name, ino in self.names[fh].items()
        ]
        rows = [(1, b".", fh, own), (2, b"..", fh, own), *sorted(rows, key=lambda row: row[0])]
        cookies, names, inos, attrs = map(list, zip(*rows, strict=True))
        records = [encode_attr(attr) for attr in attrs] if plus else None
        page = Page(cookies, names, inos, bytes(attr.type for attr in attrs), records)
        return page, place_after(page, cookie)

    async def releasedir(self, fh):
        pass

    async def fsyncdir(self, fh):
        self.log(call="fsyncdir", fh=fh)

    # -- locks

    async def flock(self, caller, fh, owner, lock_type, blocking):
        self.log(call="flock", type=lock_type, blocking=blocking, pid=caller.pid)
        held = self.flocks.setdefault(fh, {})
        if lock_type == fcntl.F_UNLCK:
            held.pop(owner, None)
            self.save()
            return
        while any(o != owner and fcntl.F_WRLCK in (t, lock_type) for o, t in held.items()):
            if not blocking:
                fail(errno.EAGAIN)
            await asyncio.sleep(0.005)
        held[owner] = lock_type
        self.save()

    def conflict(self, fh, owner, lock_type, start, end):
        for row in self.posix.get(fh, []):
            if (
                row[0] != owner
                and fcntl.F_WRLCK in (row[1], lock_type)
                and row[2] <= end
                and start <= row[3]
            ):
                return row
        return None

    def unlock(self, fh, owner, start, end):
        rows = []
        for row in self.posix.get(fh, []):
            if row[0] != owner or row[3] < start or end < row[2]:
                rows.append(row)
                continue
            if row[2] < start:
                rows.append((*row[:3], start - 1, row[4]))
            if row[3] > end:
                rows.append((*row[:2], end + 1, *row[3:]))
        self.posix[fh] = rows
        self.save()

    async def getlk(self, caller, fh, owner, lock_type, start, end, pid):
        row = self.conflict(fh, owner, lock_type, start, end)
        if row is None:
            return PosixLock(fcntl.F_UNLCK, start, end, 0)
        return PosixLock(row[1], row[2], row[3], row[4])

    async def setlk(self, caller, fh, owner, lock_type, start, end, pid, blocking):
        self.log(call="setlk", type=lock_type, start=start, end=end, pid=pid, blocking=blocking)
        if lock_type == fcntl.F_UNLCK:
            self.unlock(fh, owner, start, end)
            return
        while self.conflict(fh, owner, lock_type, start, end):
            if not blocking:
                fail(errno.EAGAIN)
            await asyncio.sleep(0.005)
        self.unlock(fh, owner, start, end)
        self.posix[fh].append((owner, lock_type, start, end, pid))
        self.fh_owners.setdefault(fh, set()).add(owner)
        self.save()


async def serve(fd, init_in, adopted, options):
    from jfsd.fuse import native
    from jfsd.fuse.session import Session, Terms

    terms = Terms(acls=options.get("acls", False), max_readahead_bytes=1 << 20)
    init_out = bytes.fromhex(options.get("init_out", ""))
    session = Session(
        MemoryVfs(options), fd, init_in, adopted=adopted, init_out=init_out, terms=terms
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, session.park)
    loop.add_signal_handler(signal.SIGUSR2, session.resume)

    async def drain():
        session.park()
        await session.answered()
        session.stop()

    tasks = []
    loop.add_signal_handler(signal.SIGTERM, lambda: tasks.append(loop.create_task(drain())))

    def ready(resent):
        init_out = session.init_out.hex()
        print(json.dumps({"ready": True, "resent": resent, "init_out": init_out}), flush=True)

    await session.serve(ready)
    for task in tasks:
        await task
    told = {
        "ended": native.ended(),
        "in_flight": session.in_flight,
        "answered": len(native.take_answered()),
    }
    print(json.dumps(told), flush=True)


def main():
    fd, init_hex, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    options = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    work = serve(fd, bytes.fromhex(init_hex), how == "adopted", options)
    if options.get("uvloop"):
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()
