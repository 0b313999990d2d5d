"""A volume's database as a whole: read it, compare two readings, and recount everything in it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from jfsd.meta import codec
from jfsd.types import ROOT_INO, TRASH_INO, NodeType, a4k

if TYPE_CHECKING:
    import redis

    from jfsd.types import Attr

Reading = dict[bytes, Any]


def reading(client: redis.Redis) -> Reading:
    """Return every key of the format with its value."""
    found: Reading = {}
    for key in client.keys("*"):
        if key.startswith((b"jfsd", b"setting", b"next")):
            continue
        kind = client.type(key)
        found[key] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"list": lambda key: client.lrange(key, 0, -1),
            b"set": client.smembers,
            b"zset": lambda key: dict(client.zrange(key, 0, -1, withscores=True)),
        }[kind](key)
    return found


def changes(before: Reading, after: Reading) -> dict[bytes, Any]:
    """Return new values of keys that differ; None for a key that is gone."""
    return {k: after.get(k) for k in before.keys() | after.keys() if before.get(k) != after.get(k)}


def problems(client: redis.Redis) -> list[str]:
    """Return every count in the volume that is not what its nodes and entries add up to."""
    return _Audit(client).run()


def _number(data: bytes | None) -> int:
    return int(data or 0)


def _length(attr: Attr | None) -> int:
    return attr.length if attr is not None and attr.type is NodeType.FILE else 0


class _Audit:
    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.found: list[str] = []
        self.attrs = {
            int(key[1:]): codec.decode_attr(client.get(key)) for key in client.keys("i[0-9]*")
        }
        self.entries = {
            int(key[1:]): {n: codec.decode_entry(v) for n, v in client.hgetall(key).items()}
            for key in client.keys("d[0-9]*")
        }
        self.links: dict[int, Counter[int]] = {}
        for parent, names in self.entries.items():
            for _, ino in names.values():
                self.links.setdefault(ino, Counter())[parent] += 1

    def expect(self, what: str, stored: object, counted: object) -> None:
        if stored != counted:
            self.found.append(f"{what}: stored {stored!r}, counted {counted!r}")

    def run(self) -> list[str]:
        counted = [ino for ino in self.attrs if ino not in (ROOT_INO, TRASH_INO)]
        space = sum(a4k(_length(self.attrs[ino])) for ino in counted)
        self.expect("totalInodes", _number(self.client.get("totalInodes")), len(counted))
        self.expect("usedSpace", _number(self.client.get("usedSpace")), space)
        sustained = set()
        for key in self.client.keys("session[0-9]*"):
            sustained |= {int(ino) for ino in self.client.smembers(key)}
        for ino, attr in self.attrs.items():
            self.node(ino, attr, sustained)
        for parent in self.entries:
            if parent not in self.attrs:
                self.found.append(f"d{parent}: no such directory")
        self.stats()
        self.quotas()
        self.references()
        return self.found

    def references(self) -> None:
        counted: Counter[bytes] = Counter()
        for key in self.client.keys("c[0-9]*_[0-9]*"):
            whole = [raw for raw in self.client.lrange(key, 0, -1) if len(raw) == 24]
            for record in codec.decode_slices(whole):
                counted[b"k%d_%d" % (record.id, record.size)] += record.id > 0
        for value in self.client.hvals("delSlices"):
            counted.update(b"k%d_%d" % pair for pair in codec.decode_delayed(value))
        stored = {field: int(value) for field, value in self.client.hgetall("sliceRef").items()}
        for field, count in counted.items():
            if count:
                self.expect(f"sliceRef {field!r}", stored.get(field, 0), count - 1)
        for field, value in stored.items():
            if value > 0 and not counted[field]:
                self.found.append(f"sliceRef {field!r}: {value} of a slice that nobody uses")

    def node(self, ino: int, attr: Attr, sustained: set[int]) -> None:
        links = self.links.get(ino, Counter())
        parents = {int(k): int(v) for k, v in self.client.hgetall(f"p{ino}").items() if int(v) != 0}
        if attr.type is NodeType.DIRECTORY:
            children = self.entries.get(ino, {}).values()
            if ino < TRASH_INO:
                below = sum(kind is NodeType.DIRECTORY for kind, _ in children)
                self.expect(f"i{ino} nlink", attr.nlink, 2 + below)
            if ino not in (ROOT_INO, TRASH_INO):
                self.expect(f"i{ino} parent", links, Counter({attr.parent: 1}))
            return
        if attr.nlink == 0:
            self.expect(f"i{ino} sustained", ino in sustained, True)
            self.expect(f"i{ino} entries", links, Counter())
            return
        self.expect(f"i{ino} nlink", attr.nlink, links.total())
        if attr.parent:
            self.expect(f"i{ino} parent", Counter({attr.parent: 1}), links)
            self.expect(f"p{ino}", parents, {})
        else:
            self.expect(f"p{ino}", parents, dict(links))

    def stats(self) -> None:
        for raw, stored in self.client.hgetall("dirUsedSpace").items():
            ino = int(raw)
            attrs = [self.attrs.get(child) for _, child in self.entries.get(ino, {}).values()]
            if ino not in self.attrs:
                self.found.append(f"dirUsedSpace {ino}: no such directory")
                continue
            self.expect(f"dirUsedSpace {ino}", int(stored), sum(a4k(_length(a)) for a in attrs))
            length = _number(self.client.hget("dirDataLength", raw))
            self.expect(f"dirDataLength {ino}", length, sum(_length(a) for a in attrs))
            inodes = _number(self.client.hget("dirUsedInodes", raw))
            self.expect(f"dirUsedInodes {ino}", inodes, len(attrs))

    def tree(self, top: int) -> tuple[int, int]:
        space = inodes = 0
        for kind, ino in self.entries.get(top, {}).values():
            space += a4k(_length(self.attrs.get(ino)))
            inodes += 1
            if kind is NodeType.DIRECTORY:
                below = self.tree(ino)
                space, inodes = space + below[0], inodes + below[1]
        return space, inodes

    def quotas(self) -> None:
        for raw, stored in self.client.hgetall("dirQuotaUsedInodes").items():
            used = _number(self.client.hget("dirQuotaUsedSpace", raw)), int(stored)
            self.expect(f"quota of {int(raw)}", used, self.tree(int(raw)))
        for which in ("user", "group"):
            stored = self.client.hgetall(f"{which}QuotaUsedInodes")
            if not stored:
                continue
            space: Counter[int] = Counter()
            inodes: Counter[int] = Counter()
            for ino, attr in self.attrs.items():
                if ino != ROOT_INO and ino < TRASH_INO:
                    owner = attr.uid if which == "user" else attr.gid
                    space[owner] += a4k(_length(attr))
                    inodes[owner] += 1
            self.expect(
                f"{which} inodes",
                {int(k): int(v) for k, v in stored.items() if int(v)},
                dict(inodes),
            )
            used = self.client.hgetall(f"{which}QuotaUsedSpace")
            self.expect(
                f"{which} space", {int(k): int(v) for k, v in used.items() if int(v)}, dict(space)
            )
