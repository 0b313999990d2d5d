"""Listings: an unchanging entry is shown exactly once, whatever changes around it (promise 6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.meta.codec import encode_entry
from jfsd.types import NodeType
from jfsd.vfs.dirs import Snapshot, cookie_of

NAMES = st.sets(st.binary(min_size=1, max_size=12), max_size=40)


def snapshot(names: set[bytes], **how: int) -> Snapshot:
    made = Snapshot(**how)
    for i, name in enumerate(names):
        made.add([name, encode_entry(NodeType.FILE, 1000 + i)])
    return made


def test_a_cookie_depends_on_the_name_only_and_leaves_room_for_the_dots() -> None:
    assert cookie_of(b"a") == cookie_of(b"a") == 0x16C20860CD93A249
    assert all(2 < cookie_of(b"%d" % i) < 2**63 for i in range(10_000))
    assert len({cookie_of(b"%d" % i) for i in range(10_000)}) == 10_000


@pytest.mark.promise(6)
@given(steady=NAMES, before=NAMES, after=NAMES, first=st.integers(0, 20))
def test_a_listing_that_goes_on_in_a_changed_directory_shows_each_steady_entry_once(
    steady: set[bytes], before: set[bytes], after: set[bytes], first: int
) -> None:
    cookies, started, *_ = snapshot(steady | before).after(2, first)
    cookie = cookies[-1] if started else 2
    _, rest, *_ = snapshot(steady | after).after(cookie, 1000)
    for name in steady:
        assert (started + rest).count(name) == 1


def test_names_that_share_a_cookie_are_told_apart() -> None:
    shared = snapshot({b"a", b"b", b"c"}, mask=3)
    cookies, names, *_ = shared.after(0, 10)
    assert cookies == [3, 4, 5]
    assert names == [b"a", b"b", b"c"]
    assert shared.after(4, 10)[1] == [b"c"]


def test_a_name_that_came_twice_is_listed_once() -> None:
    twice = snapshot({b"a", b"b"})
    twice.add([b"a", encode_entry(NodeType.FILE, 1000), b"", encode_entry(NodeType.FILE, 1)])
    assert sorted(twice.after(0, 10)[1]) == [b"a", b"b"]
    assert len(twice) == 2


def test_entries_keep_their_inode_and_type() -> None:
    made = Snapshot()
    made.add(
        [b"d", encode_entry(NodeType.DIRECTORY, 2**62), b"s", encode_entry(NodeType.SOCKET, 1)]
    )
    _, names, inos, types = made.after(0, 10)
    found = dict(zip(names, zip(inos, types, strict=True), strict=True))
    assert found == {b"d": (2**62, NodeType.DIRECTORY), b"s": (1, NodeType.SOCKET)}


@pytest.mark.parametrize(
    "pair",
    [[b"a", b"short"], [b"a", bytes(9)], [b"a", b"\x08" + bytes(8)], [b"x" * 256, b"\1" * 9]],
)
def test_what_is_no_entry_is_refused(pair: list[bytes]) -> None:
    with pytest.raises(ValueError, match="not a directory entry"):
        Snapshot().add(pair)
