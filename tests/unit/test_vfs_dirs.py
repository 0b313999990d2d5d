"""Listings: an unchanging entry is shown exactly once, whatever changes around it (promise 6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.types import Entry, NodeType
from jfsd.vfs import dirs
from jfsd.vfs.dirs import Snapshot, cookie_of

NAMES = st.sets(st.binary(min_size=1, max_size=12), max_size=40)


def entries(names: set[bytes]) -> list[Entry]:
    return [Entry(name, 1000 + i, NodeType.FILE, None) for i, name in enumerate(names)]


def test_a_cookie_depends_on_the_name_only_and_leaves_room_for_the_dots() -> None:
    assert cookie_of(b"a") == cookie_of(b"a")
    assert all(2 < cookie_of(b"%d" % i) < 2**63 for i in range(10_000))


@pytest.mark.promise(6)
@given(steady=NAMES, before=NAMES, after=NAMES, first=st.integers(0, 20))
def test_a_listing_that_goes_on_in_a_changed_directory_shows_each_steady_entry_once(
    steady: set[bytes], before: set[bytes], after: set[bytes], first: int
) -> None:
    started = Snapshot(entries(steady | before)).after(2, first)
    cookie = started[-1][0] if started else 2
    rest = Snapshot(entries(steady | after)).after(cookie, 1000)
    shown = [entry.name for _, entry in started + rest]
    for name in steady:
        assert shown.count(name) == 1


def test_names_that_share_a_cookie_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirs, "cookie_of", lambda _name: 7)
    snapshot = Snapshot(entries({b"a", b"b", b"c"}))
    assert [cookie for cookie, _ in snapshot.after(0, 10)] == [7, 8, 9]
    assert [entry.name for _, entry in snapshot.after(8, 10)] == [b"c"]
