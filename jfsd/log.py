"""Logging set-up; library code gets its logger from the standard module and never configures it."""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s jfsd[%(process)d] <%(levelname)s>: %(message)s [%(name)s]"


_about: dict[str, str] = {}


def about(**names: str) -> dict[str, str]:
    """Note what this process is about (mount point, volume); return all that is known."""
    _about.update(names)
    return _about


def configure(level: str = "info", handler: logging.Handler | None = None) -> None:
    """Send records of `level` and above to `handler`; by default to stderr, one line each."""
    if handler is None:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    logging.getLogger("aiobotocore").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Let records of `level` and above through from now on."""
    logging.getLogger().setLevel(level.upper())
