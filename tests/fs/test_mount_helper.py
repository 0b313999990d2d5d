"""`mount.jfsd` as mount(8) calls it: in the background, once, by URL and by configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import mounts
from support.held import Held, HeldJfsd
from support.session import program, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(17), pytest.mark.jfsd_only, pytest.mark.timeout(180)]


@pytest.mark.parametrize("by", ["url", "instance"])
def test_it_mounts_once_and_again_does_nothing(
    bed: Session, new_volume: Callable[..., Volume], by: str
) -> None:
    volume, client = new_volume("file"), HeldJfsd(bed)
    path, conf = bed.directory("m"), bed.directory("e")
    config = conf / "team.toml"
    config.write_text(f'meta = "{volume.meta_url}"\nread-only = false\nprefetch = 2\n')
    spec = volume.meta_url if by == "url" else "team"
    options = f"rw,_netdev,noexec,cache-size=1G,cache-dir={bed.directory('c')}"
    env = {**client.env(), "JFSD_CONFIG_DIR": str(conf)}

    def mount() -> None:
        done = run([program("mount.jfsd"), spec, path, "-n", "-o", options], env=env, limit_s=90)
        assert (done.stdout, done.stderr) == ("", "")

    mount()
    held = Held(client, path, None, [])
    volume.mounted.append(held)
    (path / "file").write_bytes(b"x")
    (entry,) = mounts.at(path)
    assert "noexec" in entry.options
    server = held.serving_pid()
    mount()
    assert held.serving_pid() == server
    assert len(mounts.at(path)) == 1
    other = run([program("mount.jfsd"), "redis://else/1", path], env=env, check=False)
    assert other.returncode == 32
    assert "is a mount already" in other.stderr
    held.unmount()
    volume.check()
