"""Extended attributes and ACLs in the database: values, flags, limits, errnos."""

from __future__ import annotations

import errno
from contextlib import contextmanager

import pytest
from support.engines import ROOT, bare_volume, open_meta

from jfsd.meta.acl import ACCESS_XATTR, DEFAULT_XATTR, Rule, to_kernel
from jfsd.meta.codec import decode_attr, encode_attr
from jfsd.meta.xattrs import XATTR_CREATE, XATTR_REPLACE, AclKind
from jfsd.types import FLAG_IMMUTABLE, TRASH_INO, Attr, Caller, NodeType

INO = (1 << 53) + 1
OWNER = Caller(1000, 1000)
RULE = Rule(6, 4, 6, 4, ((1000, 6),), ((1001, 4),))


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("setting", bare_volume(enable_acl=True).to_json())
        put(client, INO, Attr(NodeType.FILE, 0o644, 1000, 1000, parent=1))
        yield client


@pytest.fixture(name="meta")
async def fixture_meta(meta_url, client):
    async with open_meta(meta_url) as meta:
        yield meta


def put(client, ino: int, attr: Attr) -> None:
    client.set(f"i{ino}", encode_attr(attr))


def get(client, ino: int = INO) -> Attr:
    return decode_attr(client.get(f"i{ino}"))


@contextmanager
def fails(number: int):
    with pytest.raises(OSError, match=r".") as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]


async def test_xattrs_are_fields_of_a_hash(meta, client) -> None:
    before = client.get(f"i{INO}")
    await meta.setxattr(OWNER, INO, b"user.\xff", b"\0v")
    await meta.setxattr(OWNER, INO, b"user.\xff", b"\0w")
    assert client.hgetall(f"x{INO}") == {b"user.\xff": b"\0w"}
    assert await meta.getxattr(INO, b"user.\xff") == b"\0w"
    assert await meta.listxattr(INO) == [b"user.\xff"]
    await meta.removexattr(OWNER, INO, b"user.\xff")
    assert client.exists(f"x{INO}") == 0
    assert client.get(f"i{INO}") == before


async def test_flags_and_missing_names(meta) -> None:
    with fails(errno.ENODATA):
        await meta.setxattr(OWNER, INO, b"user.a", b"", XATTR_REPLACE)
    await meta.setxattr(OWNER, INO, b"user.a", b"", XATTR_CREATE)
    with fails(errno.EEXIST):
        await meta.setxattr(OWNER, INO, b"user.a", b"1", XATTR_CREATE)
    await meta.setxattr(OWNER, INO, b"user.a", b"2", XATTR_REPLACE)
    assert await meta.getxattr(INO, b"user.a") == b"2"
    with fails(errno.EINVAL):
        await meta.setxattr(OWNER, INO, b"user.a", b"2", 3)
    for call in (meta.getxattr(INO, b"user.b"), meta.removexattr(OWNER, INO, b"user.b")):
        with fails(errno.ENODATA):
            await call


async def test_limits(meta) -> None:
    name, value = b"user." + b"n" * 250, b"v" * 65536
    await meta.setxattr(OWNER, INO, name, value)
    assert await meta.getxattr(INO, name) == value
    with fails(errno.ERANGE):
        await meta.setxattr(OWNER, INO, name + b"n", b"")
    with fails(errno.ERANGE):
        await meta.setxattr(OWNER, INO, name, value + b"v")
    with fails(errno.EINVAL):
        await meta.setxattr(OWNER, INO, b"", b"")
    with fails(errno.ENOENT):
        await meta.setxattr(OWNER, 12345, b"user.a", b"")


async def test_read_only(meta_url, client) -> None:
    async with open_meta(meta_url, read_only=True) as meta:
        for call in (
            meta.setxattr(OWNER, INO, b"user.a", b""),
            meta.removexattr(OWNER, INO, b"user.a"),
            meta.set_acl(OWNER, INO, AclKind.ACCESS, RULE),
        ):
            with fails(errno.EROFS):
                await call


@pytest.mark.promise(2)
async def test_a_repeat_gives_the_first_result(meta) -> None:
    meta.ack_source = tuple
    create, remove = Caller(0, 0, op=2), Caller(0, 0, op=4)
    await meta.setxattr(create, INO, b"user.a", b"", XATTR_CREATE)
    await meta.setxattr(create, INO, b"user.a", b"", XATTR_CREATE)
    await meta.removexattr(remove, INO, b"user.a")
    await meta.removexattr(remove, INO, b"user.a")


async def test_access_acl_takes_over_the_mode(meta, client) -> None:
    attr = await meta.set_acl(OWNER, INO, AclKind.ACCESS, RULE)
    assert attr == get(client)
    assert (attr.mode, attr.access_acl, attr.default_acl) == (0o664, 1, 0)
    assert len(client.get(f"i{INO}")) == 80
    assert client.hgetall("acl") == {b"1": RULE.encode()}
    assert client.get("aclMaxId") == b"1"
    assert attr.ctime_ns > 0
    assert await meta.getxattr(INO, ACCESS_XATTR) == to_kernel(RULE)
    assert await meta.listxattr(INO) == [ACCESS_XATTR]


async def test_minimal_access_acl_becomes_the_mode(meta, client) -> None:
    await meta.setxattr(OWNER, INO, ACCESS_XATTR, to_kernel(RULE))
    await meta.setxattr(OWNER, INO, ACCESS_XATTR, to_kernel(Rule(7, 5, other=1)))
    assert (get(client).mode, get(client).access_acl) == (0o751, 0)
    assert len(client.get(f"i{INO}")) == 72
    with fails(errno.ENODATA):
        await meta.getxattr(INO, ACCESS_XATTR)


async def test_removing_an_acl_keeps_the_mode(meta, client) -> None:
    await meta.setxattr(OWNER, INO, ACCESS_XATTR, to_kernel(RULE))
    await meta.removexattr(OWNER, INO, ACCESS_XATTR)
    assert (get(client).mode, get(client).access_acl) == (0o664, 0)


async def test_default_acl_leaves_the_mode_and_may_be_minimal(meta, client) -> None:
    put(client, 9, Attr(NodeType.DIRECTORY, 0o2755, 1000, 1000, length=4096, parent=1, tier=2))
    await meta.setxattr(OWNER, 9, DEFAULT_XATTR, to_kernel(Rule(7, 5, other=0)))
    attr = get(client, 9)
    assert (attr.mode, attr.access_acl, attr.default_acl, attr.tier) == (0o2755, 0, 1, 2)
    assert len(client.get("i9")) == 81
    await meta.setxattr(OWNER, 9, ACCESS_XATTR, to_kernel(RULE))
    assert (get(client, 9).access_acl, get(client, 9).default_acl) == (2, 1)
    assert sorted(await meta.listxattr(9)) == [ACCESS_XATTR, DEFAULT_XATTR]


async def test_setgid_is_lost_outside_the_group(meta, client) -> None:
    put(client, INO, Attr(NodeType.FILE, 0o2755, 1000, 50, parent=1))
    await meta.set_acl(ROOT, INO, AclKind.ACCESS, RULE)
    assert get(client).mode == 0o2664
    await meta.set_acl(Caller(1000, 50), INO, AclKind.ACCESS, RULE)
    assert get(client).mode == 0o2664
    await meta.set_acl(OWNER, INO, AclKind.ACCESS, RULE)
    assert get(client).mode == 0o664


async def test_an_equal_acl_changes_nothing(meta, client) -> None:
    await meta.set_acl(OWNER, INO, AclKind.ACCESS, RULE)
    before = client.get(f"i{INO}")
    await meta.set_acl(OWNER, INO, AclKind.ACCESS, RULE)
    assert client.get(f"i{INO}") == before


async def test_who_may_set_an_acl(meta, client) -> None:
    with fails(errno.EPERM):
        await meta.set_acl(Caller(1001, 1000), INO, AclKind.ACCESS, RULE)
    with fails(errno.EPERM):
        await meta.set_acl(ROOT, TRASH_INO, AclKind.ACCESS, RULE)
    put(client, INO, Attr(NodeType.FILE, 0o644, 1000, 1000, flags=FLAG_IMMUTABLE, parent=1))
    with fails(errno.EPERM):
        await meta.set_acl(ROOT, INO, AclKind.ACCESS, RULE)
    with fails(errno.ENOENT):
        await meta.set_acl(ROOT, 12345, AclKind.ACCESS, RULE)


async def test_malformed_acl_is_einval(meta) -> None:
    with fails(errno.EINVAL):
        await meta.setxattr(OWNER, INO, ACCESS_XATTR, b"123")


async def test_rule_that_is_missing_is_eio(meta, client) -> None:
    put(client, INO, Attr(NodeType.FILE, 0o644, 1000, 1000, parent=1, access_acl=7))
    with fails(errno.EIO):
        await meta.getxattr(INO, ACCESS_XATTR)


async def test_without_acls(meta) -> None:
    meta.apply(bare_volume(enable_acl=False))
    with fails(errno.ENOTSUP):
        await meta.setxattr(OWNER, INO, ACCESS_XATTR, to_kernel(RULE))
    with fails(errno.ENODATA):
        await meta.getxattr(INO, ACCESS_XATTR)
