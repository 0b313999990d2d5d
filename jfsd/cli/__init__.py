"""The commands, one file per verb. `main` is what `jfsd` runs."""

from jfsd.cli.entry import main

__all__ = ["main"]
