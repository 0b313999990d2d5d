"""What `jfsd stats` and `jfsd profile` print."""

from __future__ import annotations

import itertools

import pytest
from support.answering import answering

from jfsd.cli import main
from jfsd.cli import stats as stats_module
from jfsd.cli.profile import table
from jfsd.cli.stats import FUSE, GROUPS, META, Change, head, row, size
from jfsd.errors import ExitCode

pytestmark = pytest.mark.promise(20)
PLACE = "/mnt/place"


@pytest.fixture(autouse=True)
def _runtime(monkeypatch, tmp_path):
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / "run"))
    for verb in ("stats", "profile"):
        monkeypatch.setattr(f"jfsd.cli.{verb}.served_place", lambda _: PLACE)


def numbers(ops, generation=1):
    return {
        "jfsd_generation": generation,
        f"{FUSE}_total": ops,
        f"{FUSE}_sum": ops * 0.002,
        "juicefs_memory": 100 << 20,
        "juicefs_cpu_usage": ops / 1000,
    }


def cells(line, group):
    names = list(GROUPS)
    return line.split("|")[names.index(group)].split()


def test_a_row_shows_rates_and_means():
    line = row(Change(numbers(100), numbers(300), 2.0))
    assert cells(line, "fuse")[:2] == ["100", "2.00"]
    assert cells(line, "usage")[:2] == ["10%", "100M"]
    assert cells(line, "meta") == ["0", "0.00"]


def test_another_server_has_begun_at_zero():
    line = row(Change(numbers(1000), numbers(50, generation=2), 1.0))
    assert cells(line, "fuse")[0] == "50"


def test_head_and_rows_are_as_wide():
    titles = head()
    line = row(Change({}, numbers(5), 1.0))
    assert len(titles[0]) == len(titles[1]) == len(line)
    assert [len(part) for part in titles[1].split("|")] == [len(p) for p in line.split("|")]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (9999, "9999"), (10_240, "10K"), (300 << 20, "300M"), (1 << 60, "1048576T")],
)
def test_sizes_are_short(number, shown):
    assert size(number) == shown


def test_stats_prints_as_many_lines_as_asked_for(capfd, monkeypatch):
    ticks = itertools.count()
    clock = itertools.count(100.0, 0.1)
    monkeypatch.setattr(stats_module.time, "sleep", lambda _: None)
    monkeypatch.setattr(stats_module.time, "monotonic", lambda: next(clock))

    async def stats(call):
        return {"numbers": {**numbers(next(ticks)), f"{META}_total": 5}}

    with answering(PLACE, stats=stats):
        assert main(["stats", PLACE, "--count", "3", "--interval", "100ms"]) == ExitCode.OK
    first, second, *rows = capfd.readouterr().out.splitlines()
    assert [first, second] == head()
    assert len(rows) == 3


def test_profile_shows_first_what_took_longest():
    lines = table({"read": [100, 0.1], "lookup": [4, 0.3], "getattr": [1, 0.0]})
    assert lines[0].split() == ["Operation", "Count", "Average(us)", "Total(us)", "Percent(%)"]
    assert lines[1].split() == ["lookup", "4", "75000", "300000", "75.0"]
    assert lines[2].split() == ["read", "100", "1000", "100000", "25.0"]
    assert [line.split()[0] for line in lines[1:]] == ["lookup", "read", "getattr"]
    assert len({len(line) for line in lines}) == 1
    assert len(table({})) == 1


def test_profile_asks_for_whom_and_ends_after_count(capfd):
    heard = []

    async def profile(call):
        heard.append(call.request)
        while True:
            await call.tell({"methods": {"write": [3, 0.003]}})

    argv = ["profile", PLACE, "--count", "2", "--uid", "7", "--interval", "3s"]
    with answering(PLACE, profile=profile):
        assert main(argv) == ExitCode.OK
    (request,) = heard
    assert (request["uid"], request["pid"], request["interval_s"]) == (7, None, 3.0)
    assert capfd.readouterr().out.count("write") == 2


@pytest.mark.promise(16)
@pytest.mark.parametrize("verb", ["stats", "profile"])
@pytest.mark.parametrize("interval", ["soon", "0", "1h"])
def test_a_wrong_interval_is_refused_before_anybody_is_asked(capfd, verb, interval):
    assert main([verb, PLACE, "--interval", interval]) == ExitCode.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert f"--interval '{interval}'" in line
