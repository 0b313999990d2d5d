"""One line for a person: an error with what to do about it, or what was done."""

from __future__ import annotations

import sys
from io import StringIO
from typing import TextIO

from jfsd.errors import ExitCode, JfsdError, RefusedError

_MENDS = {
    ExitCode.STORE_UNREACHABLE: "start the store, or mend the address of the bucket",
    ExitCode.STORE_REFUSED: "mend the bucket's name, its permissions or the keys",
}
"""What to do about errors of a library, which say only what is wrong."""


def mend_of(error: JfsdError) -> str:
    """Return what to do about an error."""
    if isinstance(error, RefusedError):
        return error.mend
    return _MENDS.get(error.exit_code, "try again")


def line_of(error: JfsdError) -> str:
    """Return the error with its mend, on one line."""
    text = str(error) if isinstance(error, RefusedError) else f"{error}; {mend_of(error)}"
    return " ".join(text.split())


def say(line: str, *, err: bool = True) -> None:
    """Write a line to stderr, or else to stdout, whatever names of files are in it."""
    stream: TextIO | None = sys.stderr if err else sys.stdout
    if stream is None:  # closed by whoever started us
        return
    if isinstance(stream, StringIO):
        stream.write(f"{line}\n")
        return
    stream.flush()
    stream.buffer.write(line.encode(errors="surrogateescape") + b"\n")
    stream.flush()
