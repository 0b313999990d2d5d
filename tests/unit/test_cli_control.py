"""What the commands that ask a server print, and their exit codes."""

from __future__ import annotations

import pytest
from support.answering import answering

from jfsd.cli import main
from jfsd.daemon.answers import reloading
from jfsd.errors import ExitCode, RefusedError

PLACE = "/mnt/place"


@pytest.fixture(autouse=True)
def _runtime(monkeypatch, tmp_path):
    monkeypatch.setenv("JFSD_RUNTIME_DIR", str(tmp_path / "run"))
    for verb in ("drain", "reload"):
        monkeypatch.setattr(f"jfsd.cli.{verb}.served_place", lambda _: PLACE)


class Report:
    def __init__(self, **parts):
        self.parts = parts

    def as_dict(self):
        return {"applied": [], "needs_restart": [], "refused": [], "failed": [], "error": ""} | (
            self.parts
        )


def change(option, before, after, **more):
    return {"option": option, "before": before, "after": after, **more}


def reload_says(**parts):
    async def reload():
        return Report(**parts)

    with answering(PLACE, reload=reloading(reload)):
        return main(["reload", PLACE])


@pytest.mark.promise(17)
def test_reload_prints_what_took_effect(capfd):
    assert reload_says(applied=[change("--max-uploads", "20", "30")]) == ExitCode.OK
    assert capfd.readouterr().out == "applied: --max-uploads 20 -> 30\n"
    assert reload_says() == ExitCode.OK
    assert capfd.readouterr().out == "nothing has changed\n"


@pytest.mark.promise(17)
def test_reload_names_what_did_not_and_fails(capfd):
    code = reload_says(
        applied=[change("--prefetch", "1", "2")],
        needs_restart=[change("--x", "a", "b")],
        refused=[change("--subdir", "", "/a")],
        failed=[change("--bucket", "/a", "/b", reason="not the volume's")],
    )
    assert code == ExitCode.NOT_APPLIED
    assert capfd.readouterr().out.splitlines() == [
        "applied: --prefetch 1 -> 2",
        "needs a restart: --x a -> b",
        "refused, fixed while mounted: --subdir  -> /a",
        "refused: --bucket /a -> /b (not the volume's)",
    ]


@pytest.mark.parametrize("part", ["needs_restart", "refused", "failed"])
def test_whatever_did_not_take_effect_is_in_the_exit_code(part):
    assert reload_says(**{part: [change("--x", "a", "b")]}) == ExitCode.NOT_APPLIED


@pytest.mark.promise(16)
def test_a_configuration_that_cannot_be_read_is_one_line(capfd):
    assert reload_says(error="/etc/jfs/x.toml: is missing") == ExitCode.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert "/etc/jfs/x.toml: is missing" in line


def test_drain_says_how_far_it_is_and_what_it_has_done(capfd, monkeypatch):
    monkeypatch.setattr("jfsd.cli.drain._LINE_EVERY_S", 0)

    async def drain(call):
        assert call.number("timeout_s") == 90
        for left in (100, 40, 0):
            await call.tell(
                {"files": 2, "slices": left, "bytes": left, "failing_files": left // 100}
            )
        return {}

    with answering(PLACE, drain=drain):
        assert main(["drain", PLACE, "--timeout", "1m30s"]) == ExitCode.OK
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "jfsd: 100 bytes of 2 files left, 1 failing"
    assert lines[1] == "jfsd: 40 bytes of 2 files left"
    assert lines[2].startswith("jfsd: stored 100 bytes in ")


def test_a_drain_that_was_not_done_in_time_has_its_own_code(capfd):
    async def drain(call):
        raise RefusedError(ExitCode.NOT_STORED, "7 bytes", "nothing is lost", "drain again")

    with answering(PLACE, drain=drain):
        assert main(["drain", PLACE, "--timeout", "1"]) == ExitCode.NOT_STORED
    assert capfd.readouterr().err == "jfsd: 7 bytes: nothing is lost; drain again\n"


@pytest.mark.promise(16)
def test_a_wrong_timeout_is_refused_before_anybody_is_asked(capfd):
    assert main(["drain", PLACE, "--timeout", "soon"]) == ExitCode.USAGE
    (line,) = capfd.readouterr().err.splitlines()
    assert "--timeout 'soon'" in line


def test_a_terminal_gets_a_bar(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    async def drain(call):
        for left in (100, 40, 0):
            await call.tell({"files": 1, "slices": left, "bytes": left, "failing_files": 0})
        return {}

    with answering(PLACE, drain=drain):
        assert main(["drain", PLACE]) == ExitCode.OK
    assert "storing" in capfd.readouterr().err
