"""Scripts are assembled from their libraries, and names of keys are those of the format."""

from __future__ import annotations

import hashlib

import pytest

from jfsd.meta.keyspace import Keys
from jfsd.meta.scripts import SCRIPTS, assemble

LIBRARIES = {"a": "--@include b\nlocal a = b", "b": "-- says b\nlocal b = 1"}


def test_libraries_come_once_and_in_order() -> None:
    text = "-- head\n--@include a\n--@include b\n\nreturn a + b"
    assert assemble(text, LIBRARIES) == "local b = 1\nlocal a = b\nreturn a + b\n"


def test_an_unknown_library_is_an_error() -> None:
    with pytest.raises(KeyError):
        assemble("--@include nothing", LIBRARIES)


def test_comments_in_the_line_stay() -> None:
    assert assemble("local s = '--' -- x", {}) == "local s = '--' -- x\n"


def test_digests_are_those_of_the_server() -> None:
    assert {"mknod", "unlink", "rename", "write", "claim"} <= SCRIPTS.keys()
    for script in SCRIPTS.values():
        assert script.digest.decode() == hashlib.sha1(script.source).hexdigest()
        assert b"--@include" not in script.source


def test_no_mutation_walks_over_keys() -> None:
    for script in SCRIPTS.values():
        for word in (b"'KEYS'", b"'SCAN'", b"'FLUSHDB'"):
            assert word not in script.source


def test_names_of_keys() -> None:
    keys = Keys("{7}")
    assert keys.attr(9223372032828243969) == b"{7}i9223372032828243969"
    assert keys.directory(1) == b"{7}d1"
    assert keys.parents(5) == b"{7}p5"
    assert keys.chunk(1025, 31) == b"{7}c1025_31"
    assert keys.symlink(5) == b"{7}s5"
    assert keys.xattrs(5) == b"{7}x5"
    assert keys.sustained(3) == b"{7}session3"
    assert keys.locked(3) == b"{7}locked3"
    assert keys.flocks(3) == b"{7}lockf3"
    assert keys.plocks(3) == b"{7}lockp3"
    assert keys.operations("m") == b"{7}jfsdm"
    plain = Keys()
    assert (plain.next_inode, plain.next_chunk, plain.next_trash) == (
        b"nextinode",
        b"nextchunk",
        b"nextTrash",
    )


def test_no_key_starts_like_one_that_reference_tools_act_on() -> None:
    """format.md §5: our own key must not be taken for an i, d, c, s, x, p or k key."""
    assert Keys().operations("m")[:1] not in b"idcsxpk"
