"""Other releases of Debian: a small system of each, and the package as built on it.

Both are made once and kept in JFSD_TEST_CACHE (/var/cache/jfsd-tests): systems for good,
packages as long as what they are built from stays the same. Everything comes from where apt
and pip of this machine get it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from support.session import MissingPartError, run

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("JFSD_TEST_CACHE", "/var/cache/jfsd-tests"))

SYSTEM = "systemd,systemd-sysv,dbus,ca-certificates,python3,redis-server,fuse3"
BUILD = (
    "gcc libc6-dev python3-dev python3-venv libfuse3-dev libsystemd-dev pkg-config binutils"
    " dpkg-dev make"
)

_INSIDE = f"""
export DEBIAN_FRONTEND=noninteractive HOME=/root
apt-get update -q
apt-get install -q -y --no-install-recommends {BUILD}
cd /src
python3 -m venv .venv
packaging/build-deb "$1" none
"""

_OUTSIDE = """
set -eu
lower=$1 top=$2 version=$3 out=$4
mount --make-rprivate /
awk '$3 ~ "^fuse[.]" { print $2 }' /proc/mounts | xargs -r -n 1 umount -l  # else they are pinned
mount -t tmpfs tmpfs "$top"
mkdir "$top/up" "$top/work" "$top/root" "$top/src"
tar -x -C "$top/src"
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$top/up,workdir=$top/work" "$top/root"
cd "$top/root"
mkdir src
mv ../src/* src/
for place in proc dev opt; do mount --rbind "/$place" $place; done
for file in /etc/resolv.conf /etc/pip.conf /etc/xdg/pip/* /etc/ssl/certs/ca-certificates.crt; do
    [ ! -f "$file" ] || { mkdir -p ".${file%/*}"; cp -L "$file" ".$file"; }
done
printf '#!/bin/sh\nexit 101\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . sh -euc "$5" sh "$version"
cp src/dist/*.deb "$out"
"""


def system(suite: str) -> Path:
    """Return the root of a small system of a release, which nobody may change."""
    root = CACHE / suite
    if not root.is_dir():
        if not shutil.which("debootstrap"):
            raise MissingPartError("debootstrap: not installed; run `make test-system`")
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"{suite}.new"
        shutil.rmtree(new, ignore_errors=True)
        words = ["--variant=minbase", f"--include={SYSTEM}", suite, str(new), _mirror()]
        run(["debootstrap", *words], limit_s=900)
        new.rename(root)
    return root


def package(suite: str, version: str, scratch: Path) -> Path:
    """Return the package, built on that release."""
    names = run(["git", "-C", REPOSITORY, "ls-files", "-co", "--exclude-standard"], limit_s=20)
    files = [name for name in names.stdout.splitlines() if (REPOSITORY / name).is_file()]
    parts = [
        name
        for name in files
        if not name.startswith(("tests/", ".")) and (REPOSITORY / name).is_file()
    ]
    digest = hashlib.sha256(version.encode())
    for name in sorted(parts):
        digest.update(name.encode() + b"\0" + (REPOSITORY / name).read_bytes())
    built = CACHE / f"jfsd-{suite}-{digest.hexdigest()[:16]}.deb"
    if not built.exists():
        for old in CACHE.glob(f"jfsd-{suite}-*.deb"):
            old.unlink()
        tar = subprocess.run(
            ["tar", "-c", "-C", REPOSITORY, "--", *parts], check=True, stdout=subprocess.PIPE
        )
        words = [str(system(suite)), str(scratch), version, str(built), _INSIDE]
        run(
            ["unshare", "-m", "sh", "-euc", _OUTSIDE, "sh", *words],
            limit_s=900,
            stdin=tar.stdout,
        )
    return built


def _mirror() -> str:
    """Return where apt gets Debian from."""
    form = "$(COMPONENT) $(REPO_URI) $(CODENAME)"
    for line in run(["apt-get", "indextargets", "--format", form], limit_s=60).stdout.splitlines():
        component, uri, codename = line.split()
        if component == "main" and codename == "bookworm":
            return uri
    raise MissingPartError("apt is not configured for Debian: there is nothing to bootstrap from")
