"""What a check makes of a served mount, its record and its server's answers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from support.answering import answering

from jfsd import __version__
from jfsd.cli import main
from jfsd.config.runtime import MountRecord, escape, register
from jfsd.config.settings import MountSettings
from jfsd.config.source import Source
from jfsd.daemon import check
from jfsd.daemon.state import LAYOUT
from jfsd.errors import ExitCode, RefusedError
from jfsd.fuse.mount import Entry

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.promise(11)


class Bench:
    """A mount that only its record and the list of mounts know of."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = str(tmp_path / "m")
        (tmp_path / "m").mkdir()
        self.config = tmp_path / "c.toml"
        self.entries = [Entry(self.place, "0:99", "fuse.jfsd", "JuiceFS:vol")]
        self.keeper = "holder"
        monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / "run"))
        monkeypatch.setattr("jfsd.fuse.mount.mounts", lambda: self.entries)
        monkeypatch.setattr(check, "_check_volume", self._no_volume)
        monkeypatch.setattr(check, "SERVER_PATIENCE_S", 0.1)
        self.write()
        self.register()

    async def _no_volume(self, *_: object) -> None:
        """Leave Redis and store out."""

    def write(self, *lines: str, meta: str = "redis://h/1") -> None:
        text = [f'meta = "{meta}"', f'mountpoint = "{self.place}"', 'cache-dir = "memory"', *lines]
        self.config.write_text("\n".join(text))

    def register(self, **fields: object) -> MountRecord:
        self.record = MountRecord(
            self.place,
            "redis://h/1",
            "vol",
            "u",
            os.getpid(),
            **{
                "options": MountSettings(cache_dirs=("memory",)).as_texts(),
                "source": Source(str(self.config)).as_dict(),
                "version": __version__,
                "layout": LAYOUT,
                **fields,
            },
        )
        register(self.record)
        return self.record

    def examine(self) -> check.Verdict:
        async def status(_: object) -> dict:
            return {"mount": {"Pid": 7, "Phase": "serving", "Keeper": self.keeper}}

        source = Source.from_dict(self.record.source, self.record.meta_url)
        with answering(self.place, status=status):
            return check.examine(source, check.live_mount(source))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def changes(verdict: check.Verdict) -> list[str]:
    return [f"{each.change.value} {each}" for each in verdict.changes]


def test_a_mount_as_configured_differs_in_nothing(bench: Bench) -> None:
    verdict = bench.examine()
    assert (verdict.smooth, verdict.changes, verdict.problems) == (True, [], [])
    assert verdict.server == {
        "version": __version__,
        "layout": LAYOUT,
        "pid": 7,
        "phase": "serving",
        "keeper": "holder",
    }


def test_what_a_restart_brings_about_is_smooth(bench: Bench) -> None:
    bench.register(version="0.0.9")
    bench.write("prefetch = 7", 'options = ["_netdev"]', meta="redis://g/1")
    verdict = bench.examine()
    assert changes(verdict) == [
        "restart meta redis://h/1 -> redis://g/1",
        "live --prefetch 1 -> 7",
        f"restart version 0.0.9 -> {__version__}",
    ]
    assert verdict.smooth


@pytest.mark.parametrize("line", ['subdir = "x"', "read-only = true", 'options = ["sync"]'])
def test_what_is_fixed_is_not(bench: Bench, line: str) -> None:
    bench.write(line)
    verdict = bench.examine()
    assert len(verdict.changes) == 1
    assert not verdict.smooth


def test_another_layout_of_the_state_needs_an_unmount(bench: Bench) -> None:
    bench.register(layout=LAYOUT + 1)
    verdict = bench.examine()
    assert changes(verdict) == [f"fixed layout of the state {LAYOUT + 1} -> {LAYOUT}"]
    assert not verdict.smooth


def test_another_mount_point_is_seen_as_that_of_the_same_file(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    bench.config.write_text(bench.config.read_text().replace(bench.place, f"{tmp_path}/n"))
    verdict = bench.examine()
    assert changes(verdict) == [f"fixed mountpoint {bench.place} -> {tmp_path}/n"]
    assert verdict.mountpoint == bench.place


def test_options_of_the_running_command_line_still_count(bench: Bench) -> None:
    live = MountSettings(cache_dirs=("memory",), prefetch=3)
    source = Source(str(bench.config), "", "", {"prefetch": 3})
    bench.register(options=live.as_texts(), source=source.as_dict())
    bench.write("prefetch = 9")
    assert bench.examine().changes == []


def test_a_mount_that_nobody_keeps_ends_with_a_restart(bench: Bench) -> None:
    bench.keeper = ""
    (problem,) = bench.examine().problems
    assert "it ends with its server; reload it" in str(problem)


def test_a_server_that_is_away_is_in_the_way(bench: Bench) -> None:
    source = Source(str(bench.config))
    (problem,) = check.examine(source, bench.record).problems
    assert problem.exit_code == ExitCode.NO_SERVER


def test_options_that_this_version_does_not_know_are_no_obstacle(bench: Bench) -> None:
    bench.register(options={**bench.record.options, "writeback": "true"})
    assert bench.examine().smooth
    bench.register(options={**bench.record.options, "prefetch": "many"})
    (problem,) = bench.examine().problems
    assert "--prefetch 'many'" in str(problem)


def test_a_record_without_a_mount_is_no_mount(bench: Bench) -> None:
    bench.entries.clear()
    assert check.live_mount(Source(str(bench.config))) is None


def test_a_mount_without_a_record_is_told(bench: Bench) -> None:
    (problem,) = check.examine(Source(str(bench.config)), None).problems
    assert "of which this user finds no record" in str(problem)


@pytest.mark.parametrize("below", ["", "/etc/c.toml"])
def test_nothing_on_a_mount_is_looked_at(bench: Bench, below: str, capfd) -> None:
    with pytest.raises(RefusedError, match="lies on a mount of jfsd"):
        check.refuse_path_on_mount(bench.place + below, "x")
    check.refuse_path_on_mount(bench.place + "x", "x")
    bench.write()
    text = bench.config.read_text().replace('"memory"', f'"{bench.place}/cache"')
    bench.config.write_text(text)
    (problem,) = bench.examine().problems
    assert f"--cache-dir {bench.place}/cache: lies on a mount of jfsd" in str(problem)
    assert main(["check", "--config", f"{bench.place}/c.toml"]) == ExitCode.USAGE
    assert "lies on a mount" in capfd.readouterr().err


def test_the_secrets_of_the_service_are_used(bench: Bench, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("jfsd.cli.check._CREDENTIALS", tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "")  # its undoing takes away what is set here
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    seen = []
    verdict = check.Verdict(bench.place, mounted=True)

    def examine(*_: object) -> check.Verdict:
        seen.append(os.environ.get("CREDENTIALS_DIRECTORY"))
        return verdict

    monkeypatch.setattr(check, "examine", examine)
    assert main(["check", bench.place]) == ExitCode.OK
    directory = tmp_path / f"jfs@{escape(bench.place)}.service"
    directory.mkdir()
    assert main(["check", bench.place]) == ExitCode.OK
    assert seen == [None, str(directory)]
