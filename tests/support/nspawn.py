"""Boots a throw-away copy of this machine in a container, and leaves nothing of it.

usage: python -m support.nspawn DIRECTORY NAME [LOWER] [-- NSPAWN-ARGUMENT...]

The root is an overlay of LOWER (the running system, if none is given) whose changes are in
memory. All its mounts are in a mount namespace of this process and end with it, however it
ends; its control groups are left for the steward to remove.
"""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from support import cgroups, mounts

CLONE_NEWNS = 0x20000
PR_SET_PDEATHSIG = 1
NSPAWN = "/run/systemd/nspawn"
"""Where nspawn makes directories that it does not always remove."""

REBOOT = 133
"""How nspawn ends when the container wants to be booted again."""

MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "man-db.timer",
    "postgresql.service",
    "cron.service",
    "systemd-networkd.service",
    "systemd-networkd-wait-online.service",
    "logrotate.timer",
    "console-getty.service",
    "apache2.service",
    "mysql.service",
    "ssh.service",
]
"""What an installed system would start, and no test needs (Redis is started by those that do)."""

_libc = ctypes.CDLL(None, use_errno=True)


def main(argv: list[str]) -> int:
    """Boot and wait for the end; SIGTERM powers the container off."""
    words, _, extra = " ".join(argv).partition(" -- ")
    top, name, *lower = words.split(" ")
    cgroups.enter(name)
    if _libc.unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for mount in reversed(mounts.below("/")):  # else they would live as long as the container
        mounts.detach(mount.path)
    Path(NSPAWN).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", NSPAWN], check=True)
    root = overlay(Path(top), lower[0] if lower else "/")
    prepare(root)
    command = [
        *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}", f"--machine={name}"),
        *("--register=no", "--keep-unit", "--private-network", "--capability=all"),
        *("--bind=/dev/fuse", "--console=pipe", "--kill-signal=SIGRTMIN+4"),
        *(word for word in extra.split(" ") if word),
    ]
    while (status := boot(command)) == REBOOT:
        pass
    return status


def boot(command: list[str]) -> int:
    """Run the container until it is powered off or wants to be booted again."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),  # noqa: PLW1509
    )
    signal.signal(signal.SIGTERM, lambda *_: child.send_signal(signal.SIGTERM))
    return child.wait()


def overlay(top: Path, lower: str) -> Path:
    """Return the mounted root."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(top)], check=True)
    for part in ("up", "work", "root"):
        (top / part).mkdir()
    (top / "up").chmod(0o755)
    layers = f"lowerdir={lower},upperdir={top}/up,workdir={top}/work"
    root = top / "root"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, str(root)], check=True)
    return root


def prepare(root: Path) -> None:
    """Leave out what takes time at boot; keep the journal over a reboot; forbid no start."""
    etc = root / "etc/systemd/system"
    etc.mkdir(parents=True, exist_ok=True)
    for unit in MASKED:
        with contextlib.suppress(FileExistsError):
            (etc / unit).symlink_to("/dev/null")
    for wants in etc.glob("*.wants/redis*"):
        wants.unlink()
    for stray in [*etc.glob("redis*"), root / "usr/sbin/policy-rc.d"]:
        if stray.is_symlink() or stray.exists():
            stray.unlink()
    shutil.rmtree(root / "var/log/journal", ignore_errors=True)
    (root / "var/log/journal").mkdir(parents=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text("jfsd-test\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
