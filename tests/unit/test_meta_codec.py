"""Records, byte by byte: the examples of format.md §6, and random ones there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.meta import codec
from jfsd.types import TRASH_INO, Attr, NodeType, Slice

EXAMPLE = Attr(
    NodeType.FILE,
    0o640,
    1000,
    100,
    1700000000_000000001,
    1700000001_500000000,
    1700000002_999999999,
    1,
    5243880,
    0,
    1,
)
HEAD = (
    "00 11a0 000003e8 00000064 000000006553f100 00000001 000000006553f101 1dcd6500"
    "000000006553f102 3b9ac9ff 00000001 00000000005003e8 00000000 0000000000000001"
)


@pytest.mark.parametrize(
    ("access", "default", "tier", "tail"),
    [
        (0, 0, 0, "00"),
        (3, 0, 0, "00000003 00000000 00"),
        (0, 0, 2, "02 00"),
        (3, 7, 2, "00000003 00000007 02 00"),
    ],
)
def test_attr_examples(access, default, tier, tail) -> None:
    data = bytes.fromhex(HEAD + tail)
    attr = codec.decode_attr(data)
    assert (attr.access_acl, attr.default_acl, attr.tier) == (access, default, tier)
    assert codec.encode_attr(attr) == data
    attr.access_acl = attr.default_acl = attr.tier = 0
    assert attr == EXAMPLE


def test_observed_symlink() -> None:
    attr = codec.decode_attr(
        bytes.fromhex(
            "0031ff 00000000 00000000 000000006b02f374 2f8d262d 000000006b02f374 2f8d262d"
            "000000006b02f374 2f8d262d 00000001 0000000000000009 00000000 0000000000000001 00"
        )
    )
    assert (attr.type, attr.mode, attr.length, attr.parent) == (NodeType.SYMLINK, 0o777, 9, 1)


@pytest.mark.parametrize("size", [63, 64])
def test_ancient_attr_has_no_parent(size) -> None:
    attr = codec.decode_attr(codec.encode_attr(EXAMPLE)[:size])
    assert (attr.parent, attr.length, attr.tier) == (0, EXAMPLE.length, 0)


@pytest.mark.parametrize("data", [b"", b"\0" * 62, b"\0" * 72, b"\0\x80" + b"\0" * 70])
def test_damaged_attr_is_an_io_error(data) -> None:
    with pytest.raises(OSError, match="damaged") as caught:
        codec.decode_attr(data)
    assert caught.value.errno == 5


u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 63) - 1)
times = st.integers(-(1 << 40) * 10**9, (1 << 40) * 10**9)


@given(
    st.builds(
        Attr,
        st.sampled_from(NodeType),
        st.integers(0, 0o7777),
        u32,
        u32,
        times,
        times,
        times,
        u32,
        st.integers(0, (1 << 57) - 1),
        u32,
        u64,
        st.integers(0, 255),
        u32,
        u32,
        st.integers(0, 3),
    )
)
def test_attr_there_and_back(attr) -> None:
    data = codec.encode_attr(attr)
    assert codec.decode_attr(data) == attr
    acls = bool(attr.access_acl or attr.default_acl)
    assert len(data) == 72 + 8 * acls + bool(attr.tier)


def test_entry_examples() -> None:
    assert codec.encode_entry(NodeType.DIRECTORY, TRASH_INO + 1).hex() == "027fffffff10000001"
    assert codec.decode_entry(bytes.fromhex("010000000000000401")) == (NodeType.FILE, 1025)
    for bad in (b"", b"\1" * 8, b"\1" * 10, b"\0" * 9, b"\x08" + b"\0" * 8):
        with pytest.raises(OSError, match="damaged"):
            codec.decode_entry(bad)


def test_slice_examples() -> None:
    data = Slice(4 << 20, 4098, 3000, 0, 3000)
    assert codec.encode_slice(data).hex() == ("00400000000000000000100200000bb80000000000000bb8")
    hole = Slice(100000, 0, 0, 0, 50000)
    assert codec.encode_slice(hole).hex() == ("000186a0000000000000000000000000000000000000c350")
    assert codec.decode_slices(map(codec.encode_slice, (data, hole))) == [data, hole]
    with pytest.raises(OSError, match="damaged"):
        codec.decode_slices([b"\0" * 24, b"\0" * 23])


def test_other_examples() -> None:
    assert codec.encode_delayed([(4, 5000)]).hex() == "000000000000000400001388"
    assert codec.decode_delayed(codec.encode_delayed([(4, 5000), (1 << 60, 1)])) == [
        (4, 5000),
        (1 << 60, 1),
    ]
    assert codec.encode_quota(1 << 30, 100).hex() == "00000000400000000000000000000064"
    assert codec.encode_quota(-1, -1) == b"\xff" * 16
    assert codec.decode_quota(b"\xff" * 16) == (-1, -1)
    assert codec.decode_delfile(b"12:5243880") == (12, 5243880)
    for bad in (b"12", b"12:5:6", b":", b"a:b"):
        with pytest.raises(OSError, match="damaged"):
            codec.decode_delfile(bad)


@given(times)
def test_times_before_the_epoch_too(time_ns) -> None:
    seconds, nanoseconds = codec.encode_time(time_ns)[:8], codec.encode_time(time_ns)[8:]
    assert 0 <= int.from_bytes(nanoseconds, "big") < 10**9
    whole = int.from_bytes(seconds, "big", signed=True)
    assert whole * 10**9 + int.from_bytes(nanoseconds, "big") == time_ns
