"""Make, describe and remove a mount: the only code that talks to mount(2).

A mount whose server is away makes every program that looks at it wait. Nothing here
looks *into* a mount point, therefore: what is mounted where is read from
/proc/self/mountinfo, and whether a mount is dead is found out by a child that may hang.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from jfsd.config.fuseopts import FuseOptions
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record

SUBTYPE = "jfsd"
MAX_READ_BYTES = 1 << 20
DEVICE = Path("/dev/fuse")

_MOUNTINFO = Path("/proc/self/mountinfo")
_STATUS = Path("/proc/self/status")
_CAP_SYS_ADMIN = 21
_INIT_BYTES = 8192
_PROBE_S = 2.0
_MAX_LINKS = 40

_FLAGS = {
    "ro": 1 << 0,
    "nosuid": 1 << 1,
    "nodev": 1 << 2,
    "noexec": 1 << 3,
    "sync": 1 << 4,
    "dirsync": 1 << 7,
    "nosymfollow": 1 << 8,
    "noatime": 1 << 10,
    "nodiratime": 1 << 11,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
"""Flags of mount(2); words that name its default have none."""

_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8

_libc = ctypes.CDLL(None, use_errno=True)


class Entry(NamedTuple):
    """One line of mountinfo; `device` is MAJOR:MINOR."""

    path: str
    device: str
    fstype: str
    source: str


class Mounted(Record):
    """A mount that can be served: see jfsd.fuse.session."""

    path: str
    device: str
    fd: int
    init_in: bytes


def mounts() -> list[Entry]:
    """Return what is mounted, in the order of mounting; later ones hide earlier ones."""
    return [_entry(line) for line in _MOUNTINFO.read_text("utf-8", "surrogateescape").splitlines()]


def find(path: str) -> Entry | None:
    """Return the topmost mount on `path` (absolute, without symbolic links)."""
    return next((entry for entry in reversed(mounts()) if entry.path == path), None)


def kept_by(device: str) -> int | None:
    """Return a process in whose mount namespace something of `device` is still mounted.

    None if there is none, or none that this user may see. A mount is not gone before it is
    gone from every namespace: containers keep copies of what was mounted when they started.
    """
    seen = set[str]()
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with suppress(OSError):
            namespace = str((process / "ns/mnt").readlink())
            if namespace not in seen:
                seen.add(namespace)
                text = (process / "mountinfo").read_text("utf-8", "surrogateescape")
                if any(_entry(line).device == device for line in text.splitlines()):
                    return int(process.name)
    return None


def resolve(path: str) -> str:
    """Return `path` absolute and without symbolic links, never looking into its last mount.

    Raises:
        RefusedError: It does not exist, or is not reachable.
    """
    points = {entry.path for entry in mounts()}
    todo = list(reversed(os.path.abspath(path).split("/")[1:]))  # noqa: PTH100 - keeps links
    done, links = "/", 0
    while todo:
        part = todo.pop()
        if part in {"", "."}:
            continue
        if part == "..":
            done = os.path.dirname(done)  # noqa: PTH120
            continue
        here = os.path.join(done, part)  # noqa: PTH118
        if here in points or not (target := _link_target(here, path)):
            done = here
            continue
        links += 1
        if links > _MAX_LINKS:
            _refuse_mountpoint(path, os.strerror(errno.ELOOP), "give its real path")
        todo.extend(reversed(target.split("/")))
        done = "/" if target.startswith("/") else done
    return done


def mount(path: str, volume_name: str, options: FuseOptions) -> Mounted:
    """Mount on directory `path`; the kernel has sent INIT, and nobody serves yet.

    The caller owns the descriptor. Programs that look at the mount wait until it is
    served; when the last duplicate of the descriptor is closed they get an error.

    Raises:
        RefusedError: The directory cannot be used, is a mount already, or we may not.
    """
    place = resolve(path)
    check_mountpoint(place, nonempty=options.nonempty)
    fd = open_device()
    try:
        _mount(place, fd, volume_name, options)
        entry = find(place)
        if entry is None:
            _refuse_mountpoint(place, "vanished while it was being mounted on", "try again")
        return Mounted(place, entry.device, fd, os.read(fd, _INIT_BYTES))
    except BaseException:
        os.close(fd)
        raise


def check_mountpoint(place: str, *, nonempty: bool = False) -> None:
    """Return if `place` can be mounted on; a dead mount of ours is detached first.

    Raises:
        RefusedError: It cannot.
    """
    entry = find(place)
    if entry is not None:
        if not (entry.fstype.startswith("fuse") and is_dead(place)):
            raise RefusedError(
                ExitCode.ALREADY_MOUNTED,
                place,
                f"is a mount already ({entry.source}, {entry.fstype})",
                f"unmount it first: jfsd umount {place}",
            )
        umount(place, lazy=True)
        check_mountpoint(place, nonempty=nonempty)
        return
    status = _lstat(place, place)
    if not stat.S_ISDIR(status.st_mode):
        _refuse_mountpoint(place, "is not a directory", "give a directory")
    with os.scandir(place) as entries:
        if not nonempty and any(entries):
            _refuse_mountpoint(place, "is not empty", "give an empty one or -o nonempty")


def open_device(device: Path = DEVICE) -> int:
    """Return a new descriptor of /dev/fuse, not inherited by children.

    Raises:
        RefusedError: There is none, or we may not.
    """
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise RefusedError(
            ExitCode.NO_PRIVILEGE, str(device), "may not be opened by this user", "run as root"
        ) from error
    except OSError as error:
        raise RefusedError(
            ExitCode.NO_PRIVILEGE,
            str(device),
            f"cannot be opened ({error.strerror})",
            "load the kernel's fuse module (modprobe fuse), or pass the device into the container",
        ) from error


def may_mount() -> bool:
    """Return whether the kernel will let this process call mount(2)."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return True


def is_dead(place: str) -> bool:
    """Return whether the mount has lost its server for good.

    A mount that does not answer in time is alive: its server may be on its way.
    """
    probe = subprocess.Popen(  # noqa: S603 - one argument, after "--"
        ["stat", "--file-system", "--format=%t", "--", place],  # noqa: S607
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, said = probe.communicate(timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        probe.kill()
        with suppress(subprocess.TimeoutExpired):  # it may hang in the kernel like any other
            probe.communicate(timeout=1)
        return False
    return os.strerror(errno.ENOTCONN).encode() in said


def umount(path: str, *, force: bool = False, lazy: bool = False) -> None:
    """Remove the topmost mount on `path`.

    Args:
        path: The mount point.
        force: Abort requests in flight with an error.
        lazy: Detach now; the mount ends when the last program has left it.

    Raises:
        RefusedError: Files are open (and neither `force` helped nor `lazy` was given),
            nothing of ours is mounted there, or we may not.
    """
    place = resolve(path)
    entry = find(place)
    if entry is None or not entry.fstype.startswith("fuse"):
        what = "is not a mount" if entry is None else f"is a mount of type {entry.fstype}"
        raise RefusedError(ExitCode.NOT_MOUNTED, place, what, "give the path of a jfsd mount")
    flags = _UMOUNT_NOFOLLOW | (_MNT_FORCE if force else 0) | (_MNT_DETACH if lazy else 0)
    if _libc.umount2(os.fsencode(place), flags) != 0:
        _refuse_umount(place, ctypes.get_errno())


def set_readahead(device: str, length_bytes: int) -> bool:
    """Let the kernel read ahead up to `length_bytes` on the mount of `device`.

    Returns:
        False if we may not; the mount works, with the kernel's usual 128 KiB.
    """
    knob = Path("/sys/class/bdi", device, "read_ahead_kb")
    try:
        knob.write_text(f"{length_bytes >> 10}\n")
    except OSError:
        return False
    return True


# -- mountinfo and paths ----------------------------------------------------------------------


def _entry(line: str) -> Entry:
    """Parse a line of proc(5) mountinfo; optional fields end with a lone "-"."""
    fields = line.split(" ")
    rest = fields[fields.index("-", 6) + 1 :]
    return Entry(_unescape(fields[4]), fields[2], rest[0], _unescape(rest[1]))


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes of blanks and backslashes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), field)


def _lstat(place: str, shown: str) -> os.stat_result:
    try:
        return os.lstat(place)
    except OSError as error:
        missing = error.errno == errno.ENOENT
        mend = "create it" if missing else "give another path"
        rule = "does not exist" if missing else f"cannot be used ({error.strerror})"
        _refuse_mountpoint(shown, rule, mend)


def _link_target(place: str, shown: str) -> str:
    """Return where the symbolic link `place` points, "" if it is none."""
    if not stat.S_ISLNK(_lstat(place, shown).st_mode):
        return ""
    return os.readlink(place)  # noqa: PTH115


def _refuse_mountpoint(place: str, rule: str, mend: str) -> NoReturn:
    raise RefusedError(ExitCode.MOUNTPOINT_UNUSABLE, place, rule, mend)


# -- mount(2) and umount2(2) --------------------------------------------------------------------


def _mount(place: str, fd: int, volume_name: str, options: FuseOptions) -> None:
    source = options.valued.get("fsname", f"JuiceFS:{volume_name}")
    subtype = options.valued.get("subtype", SUBTYPE)
    flags = _FLAGS["ro"] if options.read_only else 0
    for word in options.kernel:
        flags |= _FLAGS.get(word, 0)
    words = _kernel_options(fd, options)
    done = _libc.mount(
        os.fsencode(source),
        os.fsencode(place),
        os.fsencode(f"fuse.{subtype}"),
        ctypes.c_ulong(flags),
        words.encode(),
    )
    if done != 0:
        _refuse_mount(place, ctypes.get_errno())


def _kernel_options(fd: int, options: FuseOptions) -> str:
    allow_other = options.allow_other
    if allow_other is None:
        allow_other = os.geteuid() == 0
    words = [
        f"fd={fd}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.geteuid()}",
        f"group_id={os.getegid()}",
        f"max_read={options.valued.get('max_read', MAX_READ_BYTES)}",
        "default_permissions",
    ]
    words += ["allow_other"] if allow_other else []
    with suppress(KeyError):
        words.append(f"context={options.valued['context']}")
    return ",".join(words)


def _refuse_mount(place: str, code: int) -> NoReturn:
    if code in (errno.EPERM, errno.EACCES):
        raise RefusedError(
            ExitCode.NO_PRIVILEGE, place, "may not be mounted on by this user", "run as root"
        )
    if code == errno.ENODEV:
        raise RefusedError(
            ExitCode.NO_PRIVILEGE, place, "the kernel has no FUSE", "load it: modprobe fuse"
        )
    _refuse_mountpoint(place, f"mount(2) failed ({os.strerror(code)})", "see dmesg")


def _refuse_umount(place: str, code: int) -> NoReturn:
    if code == errno.EBUSY:
        raise RefusedError(
            ExitCode.BUSY, place, "files are open", "close them, or detach with --force"
        )
    if code in (errno.EPERM, errno.EACCES):
        raise RefusedError(
            ExitCode.NO_PRIVILEGE, place, "may not be unmounted by this user", "run as root"
        )
    if code in (errno.EINVAL, errno.ENOENT):
        raise RefusedError(
            ExitCode.NOT_MOUNTED, place, "is not a mount", "give the path of a jfsd mount"
        )
    raise RefusedError(ExitCode.FAILURE, place, f"umount(2) failed ({os.strerror(code)})", "retry")
