"""`jfsd version`: what is installed."""

from __future__ import annotations

import os
import sys

import click

from jfsd import __version__
from jfsd.config.version import JUICEFS_LEVEL


@click.command(
    "version",
    epilog="Example: jfsd version",
)
def command() -> None:
    """Show the versions of jfsd and what it runs on."""
    click.echo(f"jfsd {__version__}")
    click.echo(f"JuiceFS compatibility {JUICEFS_LEVEL}")
    click.echo(f"Python {sys.version.split()[0]}")
    click.echo(f"pyfuse3 {_version_of('pyfuse3')}")
    click.echo(f"libfuse {_libfuse_version()}")


def _version_of(distribution: str) -> str:
    """Return the installed version, from the name of its directory.

    The library for this costs more time to import than all the rest of this command.
    """
    head, tail = f"{distribution}-", ".dist-info"
    for folder in filter(os.path.isdir, sys.path):
        for name in os.listdir(folder):  # noqa: PTH208 (pathlib is slow to import)
            if name.startswith(head) and name.endswith(tail):
                return name[len(head) : -len(tail)]
    return "not installed"


def _libfuse_version() -> str:
    """Return what the library says of itself; loading it costs less than importing pyfuse3."""
    import ctypes  # noqa: PLC0415

    try:
        library = ctypes.CDLL("libfuse3.so.3")
    except OSError:
        return "not installed"
    library.fuse_pkgversion.restype = ctypes.c_char_p
    return str(library.fuse_pkgversion().decode())
