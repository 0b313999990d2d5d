"""`mount.jfsd`: lines of fstab become command lines of jfsd."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jfsd.cli import fstab
from jfsd.cli.fstab import FAILED, WRONG_CALL, main, mount_command, parse
from jfsd.config.flags import MOUNT_FLAGS, Kind
from jfsd.errors import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

URL = "redis://h/1"


def command(*args: str) -> list[str]:
    return mount_command(parse(args))


def test_a_line_of_fstab_becomes_a_mount_in_the_background() -> None:
    words = "rw,_netdev,nofail,x-systemd.automount,x-systemd.requires=redis.service"
    assert command(URL, "/mnt/jfs", "-o", f"{words},cache-size=20G,noatime,noexec") == [
        *("mount", "-d", "--cache-size=20G", "-onoatime,noexec", URL, "/mnt/jfs"),
    ]


def test_mount_8_gives_options_before_and_after_and_more_than_once() -> None:
    expected = ["mount", "-d", "--prefetch=3", "-oro", URL, "/m"]
    assert command("-o", "prefetch=3", URL, "/m", "-n", "-o", "ro", "-t", "jfsd") == expected


@pytest.mark.parametrize("flag", MOUNT_FLAGS, ids=lambda flag: flag.name)
def test_every_option_has_its_long_name(flag) -> None:
    if flag.name == "o":
        return
    text = flag.default or (flag.choices or ("word",))[-1]
    if flag.kind is Kind.SWITCH:
        for word in (flag.option.lstrip("-"), flag.opposite.lstrip("-")):
            assert command(URL, "/m", "-o", word)[2] == f"--{word}"
        assert command(URL, "/m", "-o", f"{flag.name}=no")[2] == flag.opposite
    else:
        found = command(URL, "/m", "-o", f"{flag.name}={text}")[2]
        option, _, value = found.partition("=")
        assert option == flag.option
        assert flag.parse(value) == flag.parse(text)


def test_an_instance_a_file_and_a_place_name_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JFSD_CONFIG_DIR", str(tmp_path))
    for name in ("team", "mnt-jfs"):
        (tmp_path / f"{name}.toml").write_text("")
    assert command("team", "/m") == ["mount", "-d", f"--config={tmp_path}/team.toml", "/m"]
    by_place = ["mount", "-d", f"--config={tmp_path}/mnt-jfs.toml", "/mnt/jfs"]
    assert command("none", "/mnt/jfs") == by_place
    assert command("jfsd", "/mnt/jfs", "-o", "defaults") == by_place
    file = str(tmp_path / "other.toml")
    assert command(file, "/m") == ["mount", "-d", f"--config={file}", "/m"]
    assert command(URL, "/m", "-o", f"config={file}")[2:] == [f"--config={file}", URL, "/m"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("cache-sise=1G", "-o cache-sise=1G: is not a known mount option; did you mean cache-size"),
        ("cache_size=1G", "did you mean cache-size?"),
        ("noatim", "did you mean noatime?"),
        ("cache-size", "-o cache-size: needs a value; give cache-size=..."),
        ("cache-size=lots", "--cache-size 'lots': is not a size"),
        ("remount", "change its configuration and reload it"),
        ("writeback_cache", "is not implemented"),
    ],
)
@pytest.mark.promise(16)
def test_a_wrong_word_is_refused(words, said, capsys) -> None:
    assert main([URL, "/m", "-o", words]) == WRONG_CALL
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("mount.jfsd: ")
    assert error.count("\n") == 1


def test_sloppy_passes_over_what_is_unknown_but_not_over_wrong_values() -> None:
    assert command("-s", URL, "/m", "-o", "quux,noatime")[2:] == ["-onoatime", URL, "/m"]
    with pytest.raises(RefusedError):
        command("-s", URL, "/m", "-o", "cache-size=lots")


@pytest.mark.parametrize("args", [[], [URL], [URL, "/m", "x"], ["-z", URL, "/m"]])
def test_a_wrong_call_shows_the_usage(args, capsys) -> None:
    assert main(args) == WRONG_CALL
    assert "usage: mount.jfsd " in capsys.readouterr().err


def test_fake_mounts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fstab, "_is_served", lambda *_: pytest.fail("is not to be looked at"))
    assert main(["-f", URL, str(tmp_path)]) == 0


def test_what_jfsd_cannot_do_is_a_failed_mount(tmp_path: Path, capsys) -> None:
    assert main([URL, str(tmp_path / "none")]) == FAILED
    assert "does not exist" in capsys.readouterr().err
