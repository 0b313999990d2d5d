"""A reload: what is applied, what is refused, and what is said about it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from jfsd.config.flags import MOUNT_FLAGS, Change
from jfsd.config.settings import MountSettings
from jfsd.config.source import Source, Wanted
from jfsd.daemon.reload import Reload, Step, Tuner
from jfsd.errors import ExitCode, RefusedError

if TYPE_CHECKING:
    from pathlib import Path


class Manager:
    """What the service manager is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def reloading(self) -> None:
        self.told.append("reloading")

    def ready(self, status: str) -> None:
        self.told.append(status)


class Parts:
    """A mount whose options are three; steps may fail or wait."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, MountSettings]] = []
        self.failing: dict[str, Exception] = {}
        self.keys_error: Exception | None = None
        self.gate: asyncio.Event | None = None
        names = (("prefetch",), ("attr-cache", "entry-cache"), ("cache-dir", "cache-size"))
        self.steps = tuple(Step(group, self._applier(group[0])) for group in names)

    def _applier(self, name: str):
        async def apply(_: MountSettings, new: MountSettings) -> None:
            if self.gate is not None:
                await self.gate.wait()
            if name in self.failing:
                raise self.failing[name]
            self.calls.append((name, new))

        return apply

    async def refresh(self) -> None:
        if self.keys_error is not None:
            raise self.keys_error


class Bench:
    def __init__(self, tmp_path: Path) -> None:
        self.config = tmp_path / "c.toml"
        self.place = tmp_path / "m"
        self.place.mkdir()
        self.manager, self.parts = Manager(), Parts()
        self.changes: list[MountSettings] = []
        self.write()
        source = Source(str(self.config))
        self.reload = Reload(
            source,
            source.load(),
            self.parts,
            self.manager,
            status="serving vol",
            on_change=self.changes.append,
        )

    def write(self, *lines: str, meta: str = "redis://h/1") -> None:
        text = [f'meta = "{meta}"', f'mountpoint = "{self.place}"', *lines]
        self.config.write_text("\n".join(text))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def refused(why: str) -> RefusedError:
    return RefusedError(ExitCode.STORE_REFUSED, "bucket", why, "mend it")


async def test_what_differs_is_applied_and_told(bench: Bench) -> None:
    bench.write("prefetch = 3", 'entry-cache = "2s"')
    report = await bench.reload.run()
    assert [name for name, _ in bench.parts.calls] == ["prefetch", "attr-cache"]
    assert str(report) == "reloaded: --prefetch 1 -> 3, --entry-cache 1s -> 2s"
    assert report.complete
    assert bench.changes == [MountSettings(prefetch=3, entry_cache_s=2.0)]
    assert bench.manager.told == ["reloading", "serving vol"]
    assert bench.reload.last is report


async def test_nothing_changed_is_nothing_done(bench: Bench) -> None:
    report = await bench.reload.run()
    assert str(report) == "reloaded: nothing has changed"
    assert (bench.parts.calls, bench.changes) == ([], [])
    assert bench.manager.told == ["reloading", "serving vol"]


async def test_fixed_options_are_refused_and_the_rest_applied(bench: Bench) -> None:
    bench.write("prefetch = 3", 'subdir = "x"', "read-only = true", meta="redis://h/2")
    report = await bench.reload.run()
    assert str(report) == (
        "reloaded: --prefetch 1 -> 3; needs a restart: meta redis://h/1 -> redis://h/2;"
        " refused, fixed while mounted: --read-only false -> true, --subdir (none) -> x"
    )
    assert bench.changes == [MountSettings(prefetch=3)]
    assert bench.manager.told[-1] == f"serving vol; {report}"
    again = await bench.reload.run()
    assert (again.applied, again.refused) == ([], report.refused)
    bench.write("prefetch = 3")
    assert (await bench.reload.run()).complete
    assert bench.manager.told[-1] == "serving vol"


async def test_another_mount_point_is_fixed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bench.place)
    bench.config.write_text(f'meta = "redis://h/1"\nmountpoint = "{tmp_path}/link"')
    assert (await bench.reload.run()).complete
    (tmp_path / "other").mkdir()
    bench.config.write_text(f'meta = "redis://h/1"\nmountpoint = "{tmp_path}/other"')
    (difference,) = (await bench.reload.run()).refused
    assert difference == ("mountpoint", str(bench.place), f"{tmp_path}/other", Change.FIXED)


async def test_a_step_that_fails_keeps_the_old_values(bench: Bench) -> None:
    bench.parts.failing["cache-dir"] = refused("is full")
    bench.write('cache-dir = "/c"', "cache-size = 1", "prefetch = 2")
    report = await bench.reload.run()
    assert "reloaded: --prefetch 1 -> 2; refused: --cache-dir (bucket: is full; mend it)" in str(
        report
    )
    assert bench.reload.settings == MountSettings(prefetch=2)
    bench.parts.failing.clear()
    report = await bench.reload.run()
    assert [each.option for each in report.applied] == ["--cache-dir", "--cache-size"]
    assert bench.reload.settings.cache_dirs == ("/c",)


async def test_a_system_that_refuses_is_told_too(bench: Bench) -> None:
    bench.parts.failing["prefetch"] = OSError("no memory")
    bench.write("prefetch = 2")
    assert "refused: --prefetch (no memory)" in str(await bench.reload.run())


@pytest.mark.parametrize("text", ["meta =", "quux = 1", 'meta = "redis://h"\nprefetch = 999'])
async def test_a_broken_file_changes_nothing(bench: Bench, text: str) -> None:
    bench.config.write_text(text)
    report = await bench.reload.run()
    assert str(report).startswith(f"reload refused: {bench.config}")
    assert not report.complete
    assert (bench.parts.calls, bench.changes) == ([], [])
    assert bench.manager.told == ["reloading", f"serving vol; {report}"]


async def test_keys_that_do_not_open_the_store_are_told(bench: Bench) -> None:
    bench.parts.keys_error = refused("forbidden")
    report = await bench.reload.run()
    assert "refused: keys of the store (bucket: forbidden; mend it)" in str(report)
    assert not report.complete


async def test_a_bug_in_a_step_leaves_the_service_ready(bench: Bench, caplog) -> None:
    bench.parts.failing["prefetch"] = ZeroDivisionError()
    bench.write("prefetch = 2")
    bench.reload.request()
    async with asyncio.timeout(20):
        while "the reload failed" not in caplog.text:
            await asyncio.sleep(0.001)
        while "the reload failed" not in caplog.text:
            await asyncio.sleep(0.001)
    assert bench.manager.told[0] == "reloading"
    assert bench.manager.told[1].startswith("serving vol")
    await bench.reload.close()


async def test_requests_during_a_reload_are_followed_by_one_more(bench: Bench) -> None:
    bench.parts.gate = asyncio.Event()
    bench.write("prefetch = 2")
    bench.reload.request()
    async with asyncio.timeout(20):
        while bench.manager.told != ["reloading"]:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    bench.write("prefetch = 4")
    for _ in range(5):
        bench.reload.request()
    bench.parts.gate.set()
    async with asyncio.timeout(20):
        while bench.reload.settings.prefetch != 4 or len(bench.manager.told) < 4:
            await asyncio.sleep(0.001)
    await bench.reload.close()
    assert bench.manager.told == ["reloading", "serving vol"] * 2


async def test_the_end_of_the_server_ends_a_reload(bench: Bench) -> None:
    bench.parts.gate = asyncio.Event()
    bench.write("prefetch = 2")
    bench.reload.request()
    await asyncio.sleep(0.05)
    await bench.reload.close()
    assert bench.reload.settings.prefetch == 1


async def test_a_report_can_be_json(bench: Bench) -> None:
    bench.parts.failing["cache-dir"] = refused("is full")
    bench.write('cache-dir = "/c"', "prefetch = 2", 'subdir = "x"')
    report = json.loads(json.dumps((await bench.reload.run()).as_dict()))
    assert report == {
        "applied": [{"option": "--prefetch", "before": "1", "after": "2"}],
        "needs_restart": [],
        "refused": [{"option": "--subdir", "before": "", "after": "x"}],
        "failed": [
            {
                "option": "--cache-dir",
                "before": "/var/cache/jfsd",
                "after": "/c",
                "reason": "bucket: is full; mend it",
            }
        ],
        "error": "",
    }


def test_every_live_option_has_one_step_and_no_other_has() -> None:
    none = dict.fromkeys(("vfs", "path", "store", "session", "jobs", "exporter"))
    steps = Tuner(**none, device="0:1").steps
    named = [name for step in steps for name in step.names]
    live = [flag.name for flag in MOUNT_FLAGS if flag.change is Change.LIVE]
    assert sorted(named) == sorted(live)


def test_a_mount_without_a_file_can_be_reloaded(tmp_path: Path) -> None:
    source = Source("", "redis://h", str(tmp_path), {"prefetch": 2})
    wanted = Wanted("redis://h", str(tmp_path), MountSettings(prefetch=2))
    parts, manager = Parts(), Manager()
    reload = Reload(source, wanted, parts, manager, status="s", on_change=print)
    assert asyncio.run(reload.run()).complete
