"""`mount.jfsd`: what mount(8) runs for a line of fstab(5) of type jfsd.

    mount.jfsd SPEC DIR [-sfnv] [-o OPTIONS]

SPEC is a metadata URL, an instance (its file in /etc/jfs says the rest), the path of a
configuration file, or `none` for the file of DIR. Options of `jfsd mount` are given by their
long name; what fstab(5), mount(8) and systemd know is theirs.
"""

from __future__ import annotations

import contextlib
import difflib
import getopt
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from jfsd.cli.source import absolute, configured, is_url
from jfsd.config.file import SUFFIX
from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Flag, Kind
from jfsd.config.fuseopts import parse_fuse_options
from jfsd.errors import ExitCode, JfsdError, RefusedError

USAGE = "usage: mount.jfsd META-URL|INSTANCE|FILE|none DIR [-sfnv] [-o OPTIONS]"
WRONG_CALL, FAILED = 1, 32
"""Exit codes as in mount(8)."""

_PLACEHOLDERS = frozenset(("none", "jfsd"))
_NOT_OURS = frozenset(
    (
        *("defaults", "auto", "noauto", "nofail", "_netdev", "rw", "comment"),
        *("user", "nouser", "users", "nousers", "group", "nogroup", "owner", "noowner"),
    )
)
"""Words for those who read fstab; `rw` is what mount(8) says when nothing else is said."""

_BY_WORD = {flag.opposite.removeprefix("--"): flag for flag in MOUNT_FLAGS if flag.opposite} | {
    name: flag for name, flag in BY_NAME.items() if len(name) > 1
}


@dataclass(slots=True)
class Request:
    """What mount(8) asks for."""

    spec: str
    directory: str
    words: list[str] = field(default_factory=list)
    sloppy: bool = False
    fake: bool = False
    verbose: bool = False


def main(args: Sequence[str] | None = None) -> int:
    """Mount in the background; return an exit code of mount(8)."""
    try:
        request = parse(sys.argv[1:] if args is None else args)
        command = mount_command(request)
        if request.fake or _is_served(request.directory, command):
            return 0
    except getopt.GetoptError as error:
        sys.stderr.write(f"mount.jfsd: {error}; {USAGE}\n")
        return WRONG_CALL
    except JfsdError as error:
        sys.stderr.write(f"mount.jfsd: {' '.join(str(error).split())}\n")
        return WRONG_CALL if error.exit_code == ExitCode.USAGE else FAILED
    from jfsd.cli.entry import main as jfsd  # noqa: PLC0415 - only what is wrong needs none of it

    said = sys.stdout if request.verbose else io.StringIO()
    with contextlib.redirect_stdout(said):
        code = jfsd(command)
    return {ExitCode.OK: 0, ExitCode.USAGE: WRONG_CALL}.get(ExitCode(code), FAILED)


def parse(args: Sequence[str]) -> Request:
    """Return what the arguments ask for.

    Raises:
        GetoptError: They are not as mount(8) gives them.
    """
    options, words = getopt.gnu_getopt(list(args), "sfnvo:t:N:")
    if len(words) != 2:
        raise getopt.GetoptError(f"{len(words)} arguments instead of SPEC and DIR")
    request = Request(words[0], absolute(words[1]))
    for option, value in options:
        request.sloppy |= option == "-s"
        request.fake |= option == "-f"
        request.verbose |= option == "-v"
        if option == "-o":
            request.words += [word for word in value.split(",") if word]
    return request


def mount_command(request: Request) -> list[str]:
    """Return the command line of jfsd that does what is asked for.

    Raises:
        RefusedError: A word is unknown or has a wrong value, or there is no configuration.
    """
    arguments, kernel, config = [], [], ""
    for word in request.words:
        name, _, value = word.partition("=")
        if name.startswith("x-") or name in _NOT_OURS:
            continue
        if name == "config":
            config = absolute(value)
        elif flag := _flag(name):
            arguments.append(_argument(flag, word))
        elif _is_kernels(word, sloppy=request.sloppy):
            kernel.append(word)
    if kernel:
        arguments.append(BY_NAME["o"].argument(tuple(kernel)))
    command = ["mount", "-d", *arguments]
    if is_url(request.spec):
        config_option = [f"--config={config}"] if config else []
        return [*command, *config_option, request.spec, request.directory]
    return [*command, f"--config={config or _config(request)}", request.directory]


def _config(request: Request) -> str:
    if request.spec in _PLACEHOLDERS:
        return configured(request.directory)
    if request.spec.endswith(SUFFIX) and "/" in request.spec:
        return absolute(request.spec)
    return configured(request.spec)


def _flag(name: str) -> Flag | None:
    """Return the option of this name, or the switch that it takes back."""
    return _BY_WORD.get(name)


def _argument(flag: Flag, word: str) -> str:
    name, given, value = word.partition("=")
    if flag.kind is Kind.SWITCH:
        return flag.argument((name == flag.name) == bool(flag.parse(value or "true")))
    if not given:
        raise RefusedError(ExitCode.USAGE, f"-o {name}", "needs a value", f"give {name}=...")
    return flag.argument(flag.parse(value))


def _is_kernels(word: str, *, sloppy: bool) -> bool:
    """Return whether a word is a mount option; False for one that may be passed over.

    Raises:
        RefusedError: It is none, and nobody said `-s`.
    """
    name = word.partition("=")[0]
    if name == "remount":
        raise RefusedError(
            ExitCode.USAGE,
            "-o remount",
            "is not how a mount of jfsd changes",
            "change its configuration and reload it, or unmount it and mount it again",
        )
    try:
        parse_fuse_options([word])
    except RefusedError as error:
        if sloppy:
            return False
        near = difflib.get_close_matches(name.replace("_", "-"), BY_NAME, n=1, cutoff=0.7)
        if not near:
            raise
        mend = f"did you mean {near[0]}?"
        raise RefusedError(ExitCode.USAGE, error.value, error.rule, mend) from None
    return True


def _is_served(directory: str, command: Sequence[str]) -> bool:
    """Return whether this is mounted there already, as when `mount -a` comes again.

    Raises:
        RefusedError: Something else is.
    """
    from jfsd.cli.source import source_of  # noqa: PLC0415
    from jfsd.config.runtime import find  # noqa: PLC0415
    from jfsd.fuse import mount as mounting  # noqa: PLC0415

    place = mounting.resolve(directory)
    entry = mounting.find(place)
    if entry is None or mounting.is_dead(place):
        return False
    record = find(place)
    words = [word for word in command[2:] if not word.startswith("-")]
    config = next((word[9:] for word in command if word.startswith("--config=")), None)
    if record is None or source_of(words, config, {}).load().meta_url != record.meta_url:
        raise RefusedError(
            ExitCode.ALREADY_MOUNTED,
            place,
            f"is a mount already ({entry.source}, {entry.fstype})",
            f"unmount it first: umount {place}",
        )
    return True
