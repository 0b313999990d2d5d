"""Logging set-up; library code gets its logger from the standard module and never configures it."""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")
FORMAT = "%(asctime)s jfsd[%(process)d] <%(levelname)s>: %(message)s [%(name)s]"


def configure(level: str = "info") -> None:
    """Send records of `level` and above to stderr, one line each."""
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
