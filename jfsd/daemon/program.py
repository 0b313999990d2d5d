"""How this program starts modules of its own again, wherever it is installed.

A checkout or a virtual environment has an interpreter that finds them. A package has a
program instead, which finds the version that is current by then.
"""

from __future__ import annotations

import os
import sys

PROGRAM_VARIABLE = "JFSD_PROGRAM"
"""The program that starts the installed version, if it is not the interpreter that runs."""


def module_command(module: str) -> tuple[str, ...]:
    """Return the words that run a module as a program; its arguments follow."""
    program = os.environ.get(PROGRAM_VARIABLE)
    return (*((program,) if program else (sys.executable, "-P")), "-m", module)
