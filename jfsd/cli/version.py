"""`jfsd version`: what is installed."""

from __future__ import annotations

import platform
from importlib import metadata

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
    click.echo(f"Python {platform.python_version()}")
    click.echo(f"pyfuse3 {_version_of('pyfuse3')}")
    click.echo(f"libfuse {_libfuse_version()}")


def _version_of(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
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
