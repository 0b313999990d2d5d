"""The words after `-o`: which of them exist, which contradict, what they ask for."""

from __future__ import annotations

from collections.abc import Iterable

from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, field

_PAIRS = {
    "ro": "rw",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "atime": "noatime",
    "diratime": "nodiratime",
    "allow_other": "no_allow_other",
}
"""Words that say the opposite of each other."""

_KERNEL = frozenset(
    {
        *("nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "dirsync", "nosymfollow"),
        *("noatime", "atime", "nodiratime", "diratime", "relatime", "strictatime", "lazytime"),
    }
)
"""Words that mount(2) knows and that we pass on as they are."""

_USUAL = frozenset({"nosuid", "nodev", "exec", "atime", "diratime", "relatime"})
"""Of these, what is so without the word."""

_OURS = frozenset({"ro", "rw", "nonempty", "allow_other", "no_allow_other"})
_SILENT = frozenset(
    {
        *("defaults", "_netdev", "nofail", "auto", "noauto", "user", "nouser", "users", "remount"),
        *("default_permissions", "async_dio", "big_writes"),
    }
)
"""Words for mount(8) and fstab, and what is always the case anyway."""

_ABSENT = {
    "writeback_cache": "is not implemented (the kernel would hide writes of other clients)",
    "debug": "is not a mount option here",
    "allow_root": "is not implemented",
    "auto_unmount": "is not implemented",
}
_MENDS = {
    "debug": "use --log-level debug",
    "allow_root": "use allow_other",
    "auto_unmount": "use jfsd umount",
}
_VALUED = frozenset({"fsname", "subtype", "max_read", "context"})


class FuseOptions(Record):
    """What `-o` asked for, checked and without contradictions."""

    read_only: bool = False
    nonempty: bool = False
    allow_other: bool | None = None
    """None: as the reference, on for root and off for others."""
    kernel: tuple[str, ...] = ()
    """Words for mount(2), sorted, each once."""
    valued: dict[str, str] = field(default_factory=dict)
    """Words of the form name=value: fsname, subtype, max_read, context."""


def parse_fuse_options(words: Iterable[str]) -> FuseOptions:
    """Return what the words ask for.

    Raises:
        RefusedError: A word is unknown, not implemented, or contradicts another.
    """
    seen = list(dict.fromkeys(word.strip() for word in words if word.strip()))
    plain = {word for word in seen if "=" not in word and not word.startswith("x-")}
    for word in seen:
        _check_known(word)
    for one, other in _PAIRS.items():
        if one in plain and other in plain:
            raise RefusedError(
                ExitCode.USAGE, f"-o {one},{other}", "contradict each other", "give one of them"
            )
    kernel = plain & _KERNEL
    # As fusermount does for the reference: what others put into the volume gets no privilege.
    kernel |= {f"no{word}" for word in ("suid", "dev") if word not in plain}
    return FuseOptions(
        read_only="ro" in plain,
        nonempty="nonempty" in plain,
        allow_other=True if "allow_other" in plain else _off(plain),
        kernel=tuple(sorted(kernel)),
        valued=dict(_split(word) for word in seen if "=" in word and not word.startswith("x-")),
    )


def effective_words(words: Iterable[str]) -> tuple[str, ...]:
    """Return what the words come to, in one form: two that are equal make the same mount.

    Order, repetition, and words without effect on a mount that is there do not matter. `ro`
    is not in it: `--read-only` is the same.

    Raises:
        RefusedError: As `parse_fuse_options`.
    """
    options = parse_fuse_options(words)
    found = set(options.kernel) - _USUAL
    if options.allow_other is not None:
        found.add("allow_other" if options.allow_other else "no_allow_other")
    found.update(f"{name}={value}" for name, value in options.valued.items())
    return tuple(sorted(found))


def check_allow_other(options: FuseOptions, euid: int, fuse_conf: str) -> None:
    """Return if this user may ask for `allow_other`.

    Args:
        options: What `-o` asked for.
        euid: Effective user id of the process.
        fuse_conf: Content of /etc/fuse.conf, "" if there is none.

    Raises:
        RefusedError: Only root may, unless the file says `user_allow_other`.
    """
    if euid == 0 or not options.allow_other:
        return
    if "user_allow_other" not in (line.strip() for line in fuse_conf.splitlines()):
        raise RefusedError(
            ExitCode.NO_PRIVILEGE,
            "-o allow_other",
            "is allowed to root only",
            "mount as root or add user_allow_other to /etc/fuse.conf",
        )


def _off(plain: set[str]) -> bool | None:
    return False if "no_allow_other" in plain else None


def _split(word: str) -> tuple[str, str]:
    name, _, value = word.partition("=")
    return name, value


def _check_known(word: str) -> None:
    name, value = _split(word)
    if word.startswith("x-"):
        return
    if "=" in word and name in _VALUED and value:
        if name == "max_read" and not (value.isascii() and value.isdecimal()):
            raise RefusedError(
                ExitCode.USAGE, f"-o {word}", "is not a number", "give max_read=1048576"
            )
        return
    if "=" not in word and name in _OURS | _KERNEL | _SILENT:
        return
    if name in _ABSENT:
        mend = _MENDS.get(name, "leave it out")
        raise RefusedError(ExitCode.USAGE, f"-o {name}", _ABSENT[name], mend)
    if name in _VALUED:
        raise RefusedError(ExitCode.USAGE, f"-o {name}", "needs a value", f"give {name}=VALUE")
    import difflib  # noqa: PLC0415 - for the message of an error

    near = difflib.get_close_matches(name, sorted(_OURS | _KERNEL | _SILENT | _VALUED), n=1)
    mend = f"did you mean {near[0]}?" if near else "leave it out"
    raise RefusedError(ExitCode.USAGE, f"-o {word}", "is not a known mount option", mend)
