"""Lock records and ACL rules computed in Lua, against plain models in Python."""

from __future__ import annotations

import struct
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jfsd.meta.acl import UNSET, Rule, inherit

if TYPE_CHECKING:
    import redis

LIB = Path(__file__).parents[2] / "jfsd/meta/scripts/lib"
EOF_OFFSET = (1 << 63) - 1
RECORD = struct.Struct(">IIQQ")
UNLOCK = 2

relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(name="client")
def fixture_client(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        yield client


def lua(client: redis.Redis, lib: str, body: str, *args: object) -> object:
    return client.eval((LIB / f"{lib}.lua").read_text() + body, 0, *args)


def merge(client: redis.Redis, value: bytes, kind: int, pid: int, first: int, last: int) -> bytes:
    new = "locks.range(tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], ARGV[5])"
    body = f"return locks.merge(ARGV[1], {new})"
    return lua(client, "locks", body, value, kind, pid, f"{first:016x}", f"{last:016x}")


def records(value: bytes) -> list[tuple[int, int, int, int]]:
    return list(RECORD.iter_unpack(value))


# Offsets around which 32-bit halves, doubles and the end of files break.
EDGES = [0, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 53, (1 << 53) + 1, EOF_OFFSET - 40]


class Model:
    """Who holds what, for every one of 40 offsets above an edge."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.held: list[tuple[int, int] | None] = [None] * 41

    def set(self, kind: int, pid: int, first: int, last: int) -> None:
        for offset in range(first, last + 1):
            self.held[offset] = None if kind == UNLOCK else (kind, pid)

    def records(self) -> list[tuple[int, int, int, int]]:
        result = []
        for holder, run in groupby(enumerate(self.held), key=lambda pair: pair[1]):
            offsets = [offset for offset, _ in run]
            if holder is not None:
                result.append((*holder, self.base + offsets[0], self.base + offsets[-1]))
        return result


steps = st.lists(
    st.tuples(
        st.integers(0, 2), st.sampled_from([7, 8]), st.integers(0, 40), st.integers(0, 40)
    ).map(lambda step: (step[0], step[1], min(step[2:]), max(step[2:]))),
    min_size=1,
    max_size=12,
)


@relaxed
@given(base=st.sampled_from(EDGES), steps=steps)
def test_merge_equals_a_map_of_offsets(client, base: int, steps) -> None:
    model, value = Model(base), b""
    for kind, pid, first, last in steps:
        model.set(kind, pid, first, last)
        value = merge(client, value, kind, pid, base + first, base + last)
        assert records(value) == model.records()


def test_merge_of_the_observed_example(client) -> None:
    value = merge(client, b"", 1, 24568, 5, 14)
    value = merge(client, value, 0, 24568, 30, 49)
    assert value.hex() == (
        "0000000100005ff80000000000000005000000000000000e"
        "0000000000005ff8000000000000001e0000000000000031"
    )


def test_merge_to_the_end_of_the_file(client) -> None:
    value = merge(client, b"", 1, 1, 0, EOF_OFFSET)
    value = merge(client, value, UNLOCK, 1, 1 << 33, 1 << 54)
    assert records(value) == [
        (1, 1, 0, (1 << 33) - 1),
        (1, 1, (1 << 54) + 1, EOF_OFFSET),
    ]
    assert merge(client, value, UNLOCK, 1, 0, EOF_OFFSET) == b""


@relaxed
@given(
    st.integers(0, 1), st.integers(0, 1), *(st.sampled_from(EDGES + [e + 1 for e in EDGES]),) * 4
)
def test_conflict_is_overlap_with_a_writer(client, held, wanted, a, b, c, d) -> None:
    start, end, first, last = min(a, b), max(a, b), min(c, d), max(c, d)
    value = RECORD.pack(held, 3, start, end)
    new = "locks.range(tonumber(ARGV[2]), 1, ARGV[3], ARGV[4])"
    body = f"return locks.conflict(ARGV[1], {new}) and 1 or 0"
    found = lua(client, "locks", body, value, wanted, f"{first:016x}", f"{last:016x}")
    overlap = start <= last and first <= end
    assert bool(found) == (overlap and (held == 1 or wanted == 1))


perms = st.integers(0, 7)
named = st.lists(st.tuples(st.integers(0, 0xFFFFFFFE), perms), max_size=3).map(tuple)
rules = st.one_of(
    st.builds(Rule, perms, perms, perms, perms, named, named),
    st.builds(Rule, perms, perms, st.just(UNSET), perms),
)


def stored(client: redis.Redis, rule_id: int) -> Rule | None:
    return Rule.decode(client.hget("acl", str(rule_id))) if rule_id else None


@relaxed
@given(rules, st.integers(0, 0o7777))
def test_inheritance_in_lua_equals_that_in_python(client, rule: Rule, mode: int) -> None:
    client.hset("acl", "1", rule.encode())
    client.set("aclMaxId", 1)
    child_mode, child = lua(client, "acl", "return {acl.inherit('', 1, tonumber(ARGV[1]))}", mode)
    assert (child_mode, stored(client, child)) == inherit(rule, mode)


@relaxed
@given(rules, st.integers(0, 0o7777))
def test_chmod_in_lua_equals_that_in_python(client, rule: Rule, mode: int) -> None:
    client.hset("acl", "1", rule.encode())
    client.set("aclMaxId", 1)
    changed = lua(client, "acl", "return acl.chmod('', 1, tonumber(ARGV[1]))", mode)
    assert stored(client, changed) == rule.after_chmod(mode)


partial = st.one_of(perms, st.just(UNSET))


@relaxed
@given(st.builds(Rule, partial, partial, partial, partial, named, named), st.integers(0, 0o7777))
def test_filling_in_lua_equals_that_in_python(client, rule: Rule, mode: int) -> None:
    filled = lua(client, "acl", "return acl.fill(ARGV[1], tonumber(ARGV[2]))", rule.encode(), mode)
    assert Rule.decode(filled) == rule.filled(mode)


def test_equal_rules_share_an_id_and_ids_are_not_reused(client) -> None:
    insert = "return acl.insert('', ARGV[1])"
    first, second = Rule(7, 5, 7, 5), Rule(7, 5, 5, 5)
    assert [lua(client, "acl", insert, r.encode()) for r in (first, second, first)] == [1, 2, 1]
    client.hset("acl", "3", b"taken by another client")
    assert lua(client, "acl", insert, Rule(1, 1, 1, 1).encode()) == 4


def test_missing_rule_is_nil(client) -> None:
    assert lua(client, "acl", "return acl.inherit('', 9, 511) == nil and 1 or 0") == 1
    assert lua(client, "acl", "return acl.chmod('', 9, 511) == nil and 1 or 0") == 1
