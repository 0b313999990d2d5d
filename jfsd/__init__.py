"""jfsd: a file system daemon for JuiceFS-format volumes that is never seen to restart."""

__version__ = "0.1.0"
