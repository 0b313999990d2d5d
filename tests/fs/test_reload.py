"""SIGHUP: a served mount goes by its changed configuration, and no program waits or fails."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.configured import Configured
from support.session import run, wait_until

from jfsd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.clients import Jfsd
    from support.session import Session
    from support.volume import Volume

pytestmark = [pytest.mark.promise(17), pytest.mark.jfsd_only]


@pytest.fixture
def served(bed: Session, jfsd: Jfsd, new_volume: Callable[..., Volume]) -> Iterator[Configured]:
    """A mount that can be reloaded."""
    configured = Configured(bed, jfsd, new_volume("file"))
    yield configured
    configured.manager.close()


@pytest.fixture
def cached(bed: Session, jfsd: Jfsd, new_volume: Callable[..., Volume]) -> Iterator[Configured]:
    """The same with objects in S3: beside a store on the same disk there is no cache."""
    configured = Configured(bed, jfsd, new_volume("s3"))
    yield configured
    configured.manager.close()


@contextlib.contextmanager
def busy(path: Path) -> Iterator[list[int]]:
    """Write, read and list in a loop; an error fails the test. Yields the number of rounds."""
    rounds, failures, over = [0], [], threading.Event()

    def work() -> None:
        data = bytes(range(256)) * 64
        try:
            while not over.is_set():
                file = path / f"busy{rounds[0] % 7}"
                file.write_bytes(data)
                assert file.read_bytes() == data
                assert file.name in {each.name for each in path.iterdir()}
                rounds[0] += 1
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield rounds
    finally:
        over.set()
        thread.join(60)
    assert not failures, failures
    assert rounds[0]


def test_every_live_option_is_applied_while_programs_work(served: Configured) -> None:
    with busy(served.path) as rounds:
        status = served.reload(
            attr_cache="30s",
            entry_cache=2,
            dir_entry_cache=3,
            open_cache=1,
            upload_limit=8000,
            download_limit="9G",
            log_level="debug",
            prefetch=3,
            cache_size="2G",
            free_space_ratio=0.2,
            buffer_size="64M",
            heartbeat="3s",
            no_bgjob=True,
            max_readahead="8M",
            max_uploads=3,
            max_downloads=30,
            io_retries=3,
            get_timeout="30s",
            put_timeout="90s",
        )
        done = rounds[0]
        wait_until(lambda: rounds[0] > done + 3, 60, "work goes on")
    assert status.startswith("serving ")
    assert "reload" not in status, status
    now = served.options()
    assert now["attr-cache"] == "30s"
    assert now["buffer-size"] == "64M"
    assert now["no-bgjob"] == "true"
    assert now["download-limit"] == "9000"
    log = served.service.tail(2000)
    assert "--attr-cache 1s -> 30s" in log
    assert "--cache-size 1G -> 2G" in log
    assert served.bdi("read_ahead_kb") == str(8 << 10)
    served.reload(log_level="error")
    assert served.service.tail(2000).count("reloaded: ") == 1
    served.mounted.unmount()
    served.volume.check()


def test_the_kernel_keeps_attributes_as_long_as_the_reload_says(
    served: Configured, jfsd: Jfsd
) -> None:
    served.reload(attr_cache=0, entry_cache=0)
    other = served.volume.mount(client=jfsd)
    (other.path / "f").write_bytes(b"1")
    assert (served.path / "f").stat().st_size == 1
    (other.path / "f").write_bytes(b"22")
    wait_until(lambda: (served.path / "f").stat().st_size == 2, 30, "attributes are asked for")
    served.reload(attr_cache="1h", entry_cache="1h")
    assert (served.path / "f").stat().st_size == 2
    (other.path / "f").write_bytes(b"333")
    assert (served.path / "f").stat().st_size == 2
    other.unmount()


def test_a_cache_is_switched_on_and_moved(cached: Configured, bed: Session) -> None:
    cached.reload(cache_size=0)
    (cached.path / "one").write_bytes(b"x" * 4096)
    assert not list(cached.cache.rglob("*_*_*"))
    new = bed.directory("c")
    cached.reload(cache_dir=str(new))
    (cached.path / "two").write_bytes(b"x" * 4096)
    wait_until(lambda: list(new.rglob("*_*_*")), 30, "blocks are kept in the new directory")
    assert (cached.path / "one").read_bytes() == b"x" * 4096


def test_a_fixed_option_is_named_and_the_rest_applied(served: Configured) -> None:
    status = served.reload(subdir="elsewhere", attr_cache="9s", options=["noexec"])
    assert "refused, fixed while mounted: -o (none) -> noexec, --subdir (none) -> elsewhere" in (
        status
    )
    assert "--attr-cache 1s -> 9s" in status
    now = served.options()
    assert (now["subdir"], now["attr-cache"], now["o"]) == ("", "9s", "")
    (served.path / "works").write_bytes(b"still")
    assert served.reload(attr_cache="9s").startswith("serving ")
    assert "fixed" not in served.reload(attr_cache="9s")


def test_the_command_reloads_and_says_what_came_of_it(served: Configured) -> None:
    env = {**served.mounted.client.env(), "JFSD_RUNTIME_DIR": str(served.runtime)}

    def reload() -> tuple[int, str]:
        binary = served.mounted.client.binary
        done = run([binary, "reload", served.path], env=env, check=False)
        return done.returncode, done.stdout + done.stderr

    assert reload() == (0, "nothing has changed\n")
    served.write(prefetch=4)
    assert reload() == (0, "applied: --prefetch 1 -> 4\n")
    served.write(prefetch=5, subdir="x")
    code, said = reload()
    assert code == ExitCode.NOT_APPLIED
    assert "applied: --prefetch 4 -> 5\nrefused, fixed while mounted: --subdir  -> x\n" in said
    served.config.write_text("quux = 1")
    code, said = reload()
    assert code == ExitCode.USAGE
    assert "quux: is not a key of the configuration" in said
    assert served.options()["prefetch"] == "5"


def test_a_meta_url_waits_for_a_restart(served: Configured) -> None:
    url = served.volume.meta_url
    served.config.write_text(
        served.config.read_text().replace(url, url.replace("unix://", "unix://:pw@"))
    )
    status = served.reload()
    assert "needs a restart: meta unix" in status
    assert "pw" not in status


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("meta = ", "is no TOML"),
        ('meta = "redis://h"\nattr-cash = 1', "did you mean attr-cache?"),
        ('meta = "redis://h"\nattr-cache = "soon"', 'attr-cache = "soon"'),
        (None, "cannot be read"),
    ],
    ids=["no-toml", "unknown-key", "bad-value", "gone"],
)
def test_a_broken_file_changes_nothing(served: Configured, text: str | None, said: str) -> None:
    served.reload(attr_cache="7s")
    before = served.options()
    if text is None:
        served.config.unlink()
    else:
        served.config.write_text(text)
    status = served.reload()
    assert "reload refused: " in status
    assert said in status
    assert served.options() == before
    (served.path / "works").write_bytes(b"still")


def test_a_cache_that_cannot_be_used_is_refused_with_the_reason(cached: Configured) -> None:
    (cached.cache / "file").write_text("")
    status = cached.reload(cache_dir=str(cached.cache / "file"), prefetch=2)
    assert "refused: --cache-dir (" in status
    now = cached.options()
    assert (now["cache-dir"], now["prefetch"]) == (str(cached.cache), "2")


def test_a_hundred_reloads_leave_nothing_behind(served: Configured) -> None:
    fds = Path(f"/proc/{served.service.pid}/fd")
    with busy(served.path):
        for number in range(2):
            served.reload(max_uploads=30 + number, buffer_size=f"{100 + number}M")
        before = len(list(fds.iterdir()))
        for number in range(98):
            if number % 10:
                served.reload()
            else:
                served.reload(
                    max_uploads=10 + number,
                    prefetch=number,
                    buffer_size=f"{100 + number}M",
                    cache_dir=str(served.cache / str(number)),
                )
    wait_until(lambda: len(list(fds.iterdir())) <= before + 12, 60, "files are closed again")
    assert served.options()["prefetch"] == "90"
    threads = Path(f"/proc/{served.service.pid}/status").read_text()
    count = next(line for line in threads.splitlines() if line.startswith("Threads:"))
    assert int(count.split()[1]) < 150, count
    served.mounted.unmount()
    served.volume.check()


@pytest.mark.promise(11)
def test_the_next_server_takes_over_what_a_reload_has_changed(
    bed: Session, jfsd: Jfsd, new_volume: Callable[..., Volume]
) -> None:
    served = Configured(bed, jfsd, new_volume("file"), kept=True)
    served.manager.close()
    with (served.path / "open").open("w+b", buffering=0) as file:
        file.write(b"before")
        served.write(max_readahead="4M", buffer_size="2G")
        os.kill(served.mounted.serving_pid(), signal.SIGHUP)
        served.await_log("reloaded: ")
        volume = served.volume
        jfsd.format(volume.meta_url, volume.name, volume.storage, "--enable-acl")
        for generation, by in ((2, signal.SIGUSR2), (3, signal.SIGKILL)):
            os.kill(served.mounted.serving_pid(), by)
            served.await_log(f"(generation {generation}")
            file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after after"
    served.mounted.unmount()
    served.volume.check()
