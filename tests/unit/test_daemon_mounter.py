"""The mounter's decisions, beside a systemctl that is a script; mounting is tests/system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jfsd.daemon import mounter
from jfsd.errors import FINAL, ExitCode
from jfsd.systemd import unit

UNIT = "jfs@mnt-x.service"
UNITS = Path(__file__).parents[2] / "units"


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """A function that says what systemctl prints; its arguments are in a file."""
    program = tmp_path / "systemctl"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def says(text: str, status: int = 0) -> Path:
        program.write_text(
            f"#!/bin/sh\necho \"$@\" >>{tmp_path}/asked\ncat <<'X'\n{text}\nX\nexit {status}\n"
        )
        program.chmod(0o755)
        return tmp_path / "asked"

    return says


def test_what_is_kept_is_asked_of_the_manager(systemctl) -> None:
    asked = systemctl("NFileDescriptorStore=3")
    assert unit.kept(UNIT) == 3
    assert asked.read_text() == f"show --no-pager --property=NFileDescriptorStore -- {UNIT}\n"
    systemctl("")
    assert unit.kept(UNIT) == 0


def test_a_property_may_hold_anything(systemctl) -> None:
    systemctl("A=b=c\nB=\nnot a property")
    assert unit.properties(UNIT, "A", "B") == {"A": "b=c", "B": ""}


@pytest.mark.parametrize(
    ("listed", "kind"),
    [
        (f"12 {UNIT} stop running", "stop"),
        (f"12 {UNIT} restart running\n13 other.service stop waiting", "restart"),
        (f"12 x{UNIT} stop running", ""),
        ("", ""),
    ],
)
def test_the_job_tells_a_stop_from_a_restart(systemctl, listed: str, kind: str) -> None:
    systemctl(listed)
    assert unit.job(UNIT) == kind


def test_a_manager_that_does_not_answer_is_an_error(systemctl) -> None:
    systemctl("", status=1)
    with pytest.raises(OSError, match="status 1"):
        unit.job(UNIT)


def test_a_live_mount_is_left_alone_without_a_look_at_anything(systemctl) -> None:
    systemctl("NFileDescriptorStore=2")
    assert mounter.main(["start", UNIT, "/nonexistent", "/nonexistent.toml"]) == 0


def test_a_restart_unmounts_nothing(systemctl) -> None:
    systemctl(f"1 {UNIT} restart running")
    assert mounter.main(["stop", UNIT, "/nonexistent", "/nonexistent.toml"]) == 0


def test_wrong_words_are_refused(capsys) -> None:
    assert mounter.main(["start", UNIT]) == 2
    assert "usage" in capsys.readouterr().err


def test_the_path_of_a_restart_imports_almost_nothing(systemctl) -> None:
    """Its imports are a part of the pause of every restart and of every crash."""
    systemctl("NFileDescriptorStore=3")
    code = (
        "import sys; before = set(sys.modules); from jfsd.daemon.mounter import main;"
        f"main(['start', '{UNIT}', '/x', '/x']); print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {
        *("jfsd", "jfsd.daemon", "jfsd.daemon.mounter", "jfsd.systemd", "jfsd.systemd.unit"),
        *("__future__", "typing", "collections.abc", "_typing", "re", "functools", "operator"),
        *("_operator", "collections", "itertools", "keyword", "reprlib", "contextlib", "types"),
        *("enum", "copyreg", "re._casefix", "re._compiler", "re._constants", "re._parser", "_sre"),
        *("_collections", "_functools", "heapq", "_heapq", "warnings", "typing.io", "typing.re"),
    }


def test_only_the_process_that_was_started_is_a_units(monkeypatch) -> None:
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    assert unit.under_systemd()
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "1")
    assert not unit.under_systemd()


def settings_of_unit(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_gives_up_only_where_trying_again_is_of_no_use() -> None:
    unit_file = settings_of_unit("jfs@.service")
    final = {int(code) for code in FINAL} | {ExitCode.BUSY, ExitCode.NOT_MOUNTED}
    (prevent,) = unit_file["RestartPreventExitStatus"]
    assert {int(word) for word in prevent.split()} == final
    assert str(int(ExitCode.NOT_MOUNTED)) in unit_file["SuccessExitStatus"][0].split()


def test_nothing_in_the_unit_can_make_the_manager_look_at_the_mount() -> None:
    unit_file = settings_of_unit("jfs@.service")
    for key, values in unit_file.items():
        assert not key.startswith(("Condition", "Assert")), key
        assert key not in {"Requires", "BindsTo", "Requisite", "WorkingDirectory"}, key
        if "Paths" in key or "Mounts" in key:
            assert not any("%f" in value or "%i" in value for value in values), key
    assert unit_file["StartLimitIntervalSec"] == ["0"]
    assert unit_file["Restart"] == ["always"]


def test_a_unit_that_is_started_again_is_not_cleared_up(systemctl, capsys) -> None:
    systemctl("ActiveState=activating")
    assert mounter.main(["clear", UNIT, "/mnt/x", "/etc/jfs/mnt-x.toml"]) == 0
    assert capsys.readouterr().err == ""
