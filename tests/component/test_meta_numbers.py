"""64-bit numbers in Lua, which has none: the helpers of lib/number.lua and lib/attr.lua."""

from __future__ import annotations

import random
from importlib import resources

import pytest

from jfsd.meta.scripts import assemble
from jfsd.types import TRASH_INO, a4k

EDGES = sorted(
    {0, 1, 9, 10, 999999, 10**6, 10**15, 10**16 - 1, 10**16, TRASH_INO, TRASH_INO - 1}
    | {TRASH_INO + n for n in (1, 2, 999999)}
    | {(1 << bits) + delta for bits in (31, 32, 33, 52, 53, 54, 57, 62, 63) for delta in (-1, 0, 1)}
)


def library(name: str) -> str:
    folder = resources.files("jfsd.meta") / "scripts" / "lib"
    texts = {
        file.name.removesuffix(".lua"): file.read_text()
        for file in folder.iterdir()
        if file.name.endswith(".lua")
    }
    return assemble(f"local P, NOW, call = '', '', redis.call\n--@include {name}", texts)


@pytest.fixture(name="lua")
def fixture_lua(redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        yield lambda lib, body, *args: client.eval(library(lib) + body, 0, *args)


def numbers() -> list[int]:
    chance = random.Random(1)
    return EDGES + [chance.randrange(1 << chance.randrange(1, 64)) for _ in range(3000)]


def test_decimal_and_octets(lua) -> None:
    body = """
        local out = {}
        for i = 1, #ARGV do out[i] = decimal(ARGV[i]) end
        return out"""
    values = numbers()
    assert lua("number", body, *(n.to_bytes(8, "big") for n in values)) == [
        b"%d" % n for n in values
    ]
    body = body.replace("decimal", "octets")
    assert lua("number", body, *values) == [n.to_bytes(8, "big") for n in values]


def test_space_is_exact(lua) -> None:
    body = """
        local out = {}
        for i = 1, #ARGV do
          local hi, lo = struct.unpack('>I4I4', ARGV[i])
          out[i] = whole(space(hi, lo))
        end
        return out"""
    values = [n for n in numbers() if n < 1 << 57]
    assert lua("attr", body, *(n.to_bytes(8, "big") for n in values)) == [
        b"%d" % a4k(n) for n in values
    ]


def test_what_is_trash(lua) -> None:
    body = """
        local out = {}
        for i = 1, #ARGV do
          local a = string.rep('x', 63) .. ARGV[i]
          out[i] = (is_trash(ARGV[i]) and 2 or 0) + (in_trash(a) and 1 or 0)
        end
        return out"""
    values = [n for n in EDGES if n < 1 << 63]
    assert lua("attr", body, *(n.to_bytes(8, "big") for n in values)) == [
        2 * (n >= TRASH_INO) + (n > TRASH_INO) for n in values
    ]


def test_chunks_of_offsets(lua) -> None:
    body = """
        local out = {}
        for i = 1, #ARGV do
          local hi, lo = struct.unpack('>I4I4', ARGV[i])
          local index, pos = chunk_of(hi, lo)
          out[i] = whole(index) .. ' ' .. whole(pos)
        end
        return out"""
    values = [n for n in numbers() if n < 1 << 57]
    assert lua("holes", body, *(n.to_bytes(8, "big") for n in values)) == [
        b"%d %d" % divmod(n, 1 << 26) for n in values
    ]
