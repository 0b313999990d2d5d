"""ACL rules: stored form, kernel form, and their effect on modes (format.md §15)."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.meta.acl import UNSET, Rule, from_kernel, inherit, to_kernel

perms = st.integers(0, 7)
named = st.lists(st.tuples(st.integers(0, 0xFFFFFFFE), perms), max_size=4).map(tuple)
complete = st.builds(Rule, perms, perms, perms, perms, named, named)
any_perm = st.one_of(perms, st.just(UNSET))
stored = st.builds(Rule, any_perm, any_perm, any_perm, any_perm, named, named)


def test_stored_form_is_that_of_the_format() -> None:
    rule = Rule(6, 4, 6, 4, ((1000, 6),), ((1001, 4),))
    assert rule.encode().hex() == "000600040006000400000001000003e8000600000001000003e90004"
    default = Rule(7, 5, 7, 5, ((1000, 7),))
    assert default.encode().hex() == "000700050007000500000001000003e8000700000000"


@given(stored)
def test_stored_form_round_trips(rule: Rule) -> None:
    assert Rule.decode(rule.encode()) == rule


@given(complete)
def test_kernel_form_round_trips(rule: Rule) -> None:
    assert from_kernel(to_kernel(rule)) == rule


def test_kernel_form_is_little_endian_and_ordered() -> None:
    rule = Rule(6, 4, 6, 4, ((1000, 6),), ((1001, 4),))
    entries = [(1, 6), (2, 6, 1000), (4, 4), (8, 4, 1001), (0x10, 6), (0x20, 4)]
    assert to_kernel(rule) == struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *(*entry, 0xFFFFFFFF)[:3]) for entry in entries
    )


def test_minimal_rule_has_no_mask_entry() -> None:
    assert len(to_kernel(Rule(7, 5, UNSET, 5))) == 4 + 3 * 8
    assert Rule(7, 5, UNSET, 5).is_minimal
    assert not Rule(7, 5, UNSET, 5).is_empty
    assert Rule().is_empty
    assert not Rule(7, 5, 7, 5).is_minimal


def entry(*fields: int) -> bytes:
    return struct.pack("<HHI", *fields)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        struct.pack("<I", 1),
        struct.pack("<I", 2) + b"1234",
        struct.pack("<I", 2) + entry(1, 6, 0) + entry(1, 6, 0),
        struct.pack("<I", 2) + entry(1, 8, 0),
        struct.pack("<I", 2) + entry(3, 6, 0),
        struct.pack("<I", 2) + entry(2, 6, 1000),
        struct.pack("<I", 2) + entry(8, 6, 1000),
    ],
)
def test_bad_kernel_form_is_einval(value: bytes) -> None:
    with pytest.raises(OSError, match="Invalid") as caught:
        from_kernel(value)
    assert caught.value.errno == errno.EINVAL


@given(st.binary(max_size=60))
def test_any_kernel_bytes_parse_or_are_einval(value: bytes) -> None:
    try:
        rule = from_kernel(value)
    except OSError:
        return
    assert from_kernel(to_kernel(rule)) == rule


@given(st.binary(max_size=60))
def test_any_stored_bytes_parse_or_are_eio(value: bytes) -> None:
    try:
        rule = Rule.decode(value)
    except OSError:
        return
    assert rule.encode() == value


def test_chmod_changes_the_mask_when_there_is_one() -> None:
    rule = Rule(7, 5, 7, 5, ((1, 7),))
    assert rule.after_chmod(0o640) == Rule(6, 5, 4, 0, ((1, 7),))
    assert Rule(7, 5, UNSET, 5).after_chmod(0o640) == Rule(6, 4, UNSET, 0)


def test_fill_takes_only_what_is_unset() -> None:
    assert Rule(mask=5, users=((1, 7),)).filled(0o642) == Rule(6, 4, 5, 2, ((1, 7),))
    assert Rule(1, 1, UNSET, 1).filled(0o777) == Rule(1, 1, UNSET, 1)


def test_inheriting_a_minimal_default_masks_the_mode() -> None:
    assert inherit(Rule(7, 5, UNSET, 0), 0o4666) == (0o4640, None)


def test_inheriting_a_default_makes_an_access_rule() -> None:
    mode, rule = inherit(Rule(7, 5, 7, 5, ((1, 7),)), 0o2660)
    assert mode == 0o2660
    assert rule == Rule(6, 5, 6, 0, ((1, 7),))


@given(complete, st.integers(0, 0o7777))
def test_a_child_never_gets_more_than_the_caller_asked_for(rule: Rule, mode: int) -> None:
    result, child = inherit(rule, mode)
    assert result & ~mode == 0
    if child is not None:
        assert child.permission_bits == result & 0o777


@pytest.mark.parametrize(
    ("uid", "gids", "want", "granted"),
    [
        (10, (), 6, True),
        (10, (), 1, False),
        (1000, (20,), 4, True),
        (1000, (20,), 2, False),
        (5, (20,), 4, True),
        (5, (20,), 2, False),
        (5, (1001,), 1, True),
        (5, (1001, 20), 5, False),
        (5, (1001, 20), 4, True),
        (5, (99,), 1, False),
    ],
)
def test_permission_check(uid: int, gids: tuple[int, ...], want: int, granted: bool) -> None:
    rule = Rule(6, 6, 5, 0, ((1000, 6),), ((1001, 3),))
    assert rule.permits(uid, gids, 10, 20, want) is granted
