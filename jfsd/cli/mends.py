"""One line of an error for a person, with what to do about it."""

from __future__ import annotations

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
