"""What `jfsd check` foresees of a served mount, and that a restart then does just that."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from support import mounts
from support.configured import Configured
from support.held import mount_held
from support.session import run, wait_until

from jfsd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.clients import Jfsd
    from support.session import Session
    from support.volume import Volume

pytestmark = pytest.mark.jfsd_only


@pytest.mark.promise(17)
def test_a_check_foresees_what_a_reload_and_a_restart_do(
    bed: Session, jfsd: Jfsd, new_volume: Callable[..., Volume]
) -> None:
    served = Configured(bed, jfsd, new_volume("file"), kept=True)
    served.manager.close()

    def check(*words: object) -> tuple[int, str]:
        env = {**jfsd.env(), "JFSD_RUNTIME_DIR": str(served.runtime)}
        done = run([jfsd.binary, "check", *words], env=env, check=False)
        return done.returncode, done.stdout + done.stderr

    assert check(served.path) == (0, "nothing differs\n")
    assert check("--config", served.config) == (0, "nothing differs\n")
    served.write(prefetch=4)
    assert check(served.path) == (0, "takes effect at a reload: --prefetch 1 -> 4\n")
    elsewhere = served.config.with_suffix(".new")
    elsewhere.write_text(served.config.read_text() + '\nsubdir = "y"\n')
    elsewhere.chmod(0o600)
    code, said = check("--config", elsewhere, served.path)
    assert (code, "needs an unmount: --subdir (none) -> y\n" in said) == (17, True)

    served.write(subdir="x", options=["noexec", "_netdev"], read_only=True)
    code, said = check("--json", served.path)
    assert code == ExitCode.NOT_SMOOTH, said
    found = json.loads(said)
    assert {each["option"]: each["takes"] for each in found["changes"]} == dict.fromkeys(
        ("-o", "--read-only", "--subdir"), "unmount"
    )
    assert (found["problems"], found["server"]["keeper"]) == ([], "another")

    before = mounts.at(served.path)
    with (served.path / "open").open("w+b", buffering=0) as file:
        file.write(b"before")
        os.kill(served.mounted.serving_pid(), signal.SIGUSR2)
        served.await_log("(generation 2")
        served.await_log("fixed while mounted: -o (none) -> noexec,_netdev, --read-only false")
        file.write(b" after")
        (served.path / "new").write_bytes(b"it is not read-only")
    assert mounts.at(served.path) == before
    assert served.options()["read-only"] == "false"

    wait_until(lambda: mounts.waiting(served.path) == 0, 30, "answers")
    os.kill(served.mounted.serving_pid(), signal.SIGSTOP)
    try:  # whoever looks at the mount hangs now
        code, said = check("--config", served.config)
        assert (code, mounts.waiting(served.path)) == (17, 0)
        assert "no server of it answers" in said
    finally:
        os.kill(served.mounted.serving_pid(), signal.SIGCONT)
    served.write()
    assert check(served.path) == (0, "nothing differs\n")
    served.mounted.unmount()
    served.volume.check()


@pytest.mark.promise(11)
def test_a_file_may_ask_for_what_a_command_line_may_not(
    bed: Session, new_volume: Callable[..., Volume]
) -> None:
    config = bed.root / f"{bed.directory('m').name}.toml"
    config.write_text("prefetch = 2\n")
    held = mount_held(new_volume("file"), f"--config={config}")
    former = held.serving_pid()
    config.write_text('prefetch = 3\nsubdir = "x"\noptions = ["nofail"]\n')
    refused = held.mount_again("--read-only", check=False)
    assert refused.returncode == ExitCode.ALREADY_MOUNTED
    assert "--read-only was false, is true" in refused.stderr
    assert "--subdir" not in refused.stderr
    assert held.serving_pid() == former
    good = config.read_text()
    for text, said in (
        ("prefetch =", "is no TOML"),
        (f'bucket = "{bed.root}/none/"', f"{bed.root}/none"),
    ):  # a running server is not given up for a file that could not be used
        config.write_text(text)
        refused = held.mount_again(check=False)
        assert (refused.returncode != 0, said in refused.stderr) == (True, True)
        assert held.serving_pid() == former
    config.write_text(good)
    done = held.mount_again()
    assert done.stderr == "jfsd: --subdir (none) -> x: takes effect after umount and a new mount\n"
    assert held.replaced(former)
    (held.path / "file").write_bytes(b"served")
    held.unmount()


@pytest.mark.promise(1)
@pytest.mark.promise(11)
def test_a_mount_outlives_a_file_that_became_unusable(
    bed: Session, jfsd: Jfsd, new_volume: Callable[..., Volume]
) -> None:
    served = Configured(bed, jfsd, new_volume("file"), kept=True)
    served.manager.close()
    served.write(prefetch=7)
    os.kill(served.mounted.serving_pid(), signal.SIGHUP)
    served.await_log("reloaded: --prefetch 1 -> 7")

    def replaced(generation: int, words: str) -> None:
        os.kill(served.mounted.serving_pid(), signal.SIGKILL)
        served.await_log(f"(generation {generation}")
        served.await_log(words)
        file.write(b"+")

    wrong = bed.directory("w")
    with (served.path / "open").open("w+b", buffering=0) as file:
        served.config.write_text("prefetch = ")
        replaced(2, f"the former options are used: {served.config}: is no TOML")
        assert served.options()["prefetch"] == "7"
        served.config.unlink()
        replaced(3, f"the former options are used: {served.config}: cannot be read")
        (wrong / "vol").mkdir()
        served.write(prefetch=8, bucket=f"{wrong}/none/")
        replaced(4, "the former store is used: ")
        served.write(prefetch=9, mountpoint="/nowhere")
        replaced(5, f"mountpoint {served.path} -> /nowhere")
        served.write(prefetch=9, meta=new_volume("file").meta_url)
        replaced(6, "is not the one that is mounted, ")
        served.write(prefetch=9, meta="unix:")
        replaced(7, "the former metadata URL is used: ")
        file.seek(0)
        assert file.read() == b"++++++"
    assert (served.options()["prefetch"], served.options()["bucket"]) == ("9", "")
    served.mounted.unmount()
    assert not any(path.is_file() for path in wrong.rglob("*"))
    served.volume.check()
