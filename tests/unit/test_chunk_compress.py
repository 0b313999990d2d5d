"""What the objects of each codec look like (format.md §12.3)."""

from __future__ import annotations

import os

import lz4.block
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jfsd.chunk.compress import DamagedDataError, open_codec

CODECS = ["none", "lz4", "zstd"]


def bound(name, length):
    if name == "lz4":
        return length + length // 255 + 16
    if name == "zstd":
        small = (131072 - length) // 2048 if length < 131072 else 0
        return length + length // 256 + small
    return length


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(min_size=1, max_size=5000))
def test_round_trip(name, data):
    codec = open_codec(name)
    stored = bytes(codec.encode(memoryview(data)))
    assert bytes(codec.decode(stored, len(data))) == data


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("length", [1, 100, 65536, 1 << 20])
def test_random_data_stays_inside_the_bound(name, length):
    data = os.urandom(length)
    stored = open_codec(name).encode(data)
    assert 0 < len(stored) <= bound(name, length)


def test_lz4_is_a_raw_block():
    stored = bytes(open_codec("lz4").encode(b"abc" * 100))
    assert lz4.block.decompress(stored, uncompressed_size=300) == b"abc" * 100


def test_zstd_is_a_frame_with_size_and_without_checksum():
    stored = bytes(open_codec("zstd").encode(b"abc" * 100))
    frame = zstandard.get_frame_parameters(stored)
    assert frame.content_size == 300
    assert not frame.has_checksum


def test_zstd_frames_of_others_are_read():
    data = b"abc" * 1000
    for options in ({"level": 19}, {"write_content_size": False}, {"write_checksum": True}):
        stored = zstandard.ZstdCompressor(**options).compress(data)
        assert bytes(open_codec("zstd").decode(stored, 3000)) == data


@pytest.mark.parametrize("name", CODECS)
def test_wrong_length_is_damage(name):
    codec = open_codec(name)
    stored = bytes(codec.encode(b"abc" * 100))
    with pytest.raises(DamagedDataError):
        codec.decode(stored, 301)
    if name != "none":  # there, the excess is ignored
        with pytest.raises(DamagedDataError):
            codec.decode(stored, 299)


@pytest.mark.parametrize("name", ["lz4", "zstd"])
@pytest.mark.parametrize("stored", [b"", b"\xff" * 50, b"garbage"])
def test_garbage_is_damage(name, stored):
    with pytest.raises(DamagedDataError):
        open_codec(name).decode(stored, 100)


def test_frame_that_claims_a_huge_size_is_not_unpacked():
    stored = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(DamagedDataError, match="67108864"):
        open_codec("zstd").decode(stored, 100)


def test_plain_excess_is_ignored():
    assert bytes(open_codec("none").decode(b"abcdef", 3)) == b"abc"


def test_unknown_codec():
    with pytest.raises(ValueError, match="brotli"):
        open_codec("brotli")
