"""What an error reply means, whichever release of the server words it."""

from __future__ import annotations

import errno

import pytest

from jfsd.meta.wire import ReplyError, pack


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("ERR unknown command", "ERR"),
        ("NOSCRIPT No matching script. Please use EVAL.", "NOSCRIPT"),
        ("MOVED 3999 127.0.0.1:6381", "MOVED"),
        (
            "READONLY You can't write against a read only replica. script: ab, on @user_script:3.",
            "READONLY",
        ),
        (
            "ERR Error running script (call to f_ab): @user_script:3: -READONLY You can't write",
            "READONLY",
        ),
        ("user_script:9: Script attempted to access a field", "ERR"),
        ("", "ERR"),
    ],
)
def test_code(text, code) -> None:
    error = ReplyError(text)
    assert (error.code, error.errno, error.strerror) == (code, errno.EIO, text)


@pytest.mark.parametrize(
    "text",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "ERR Error running script (call to f_ab): @user_script:3: -OOM command not allowed",
    ],
)
def test_full_memory_is_no_space(text) -> None:
    assert ReplyError(text).errno == errno.ENOSPC


def test_commands_are_packed_as_bytes() -> None:
    assert pack(("SET", b"\0\xff", 7)) == b"*3\r\n$3\r\nSET\r\n$2\r\n\0\xff\r\n$1\r\n7\r\n"
