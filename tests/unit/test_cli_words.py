"""What is read without click is what click reads; everything else is left to it."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.cli import words
from jfsd.cli.mount import command
from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Kind
from jfsd.errors import RefusedError

TEXTS = {
    Kind.COUNT: ["7", "x", "1e3"],
    Kind.RATIO: ["0.5", "2"],
    Kind.BYTES: ["1G", "64", "-1"],
    Kind.SECONDS: ["2s", "1m30s", "1"],
    Kind.MBPS: ["10", "1.5"],
    Kind.TEXT: ["", "x=y", "127.0.0.1:0"],
    Kind.CHOICE: ["debug", "file", "S3", ""],
    Kind.PATHS: ["/a:/b", "", "/c"],
    Kind.WORDS: ["ro,noatime", "x-a=b", "", ",", "=", "-x"],
}


def click_reads(arguments):
    """Return what click makes of the words; None if it complains."""
    found = []

    def serve(where, config, background, overrides):
        found.append((where, config, background, overrides))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jfsd.cli.mount.serve", serve)
        try:
            command.main(list(arguments), standalone_mode=False)
        except (click.ClickException, RefusedError):
            return None
    return found[0] if found else None


@st.composite
def option(draw):
    """Words of one option, right or not quite."""
    flag = draw(st.sampled_from(MOUNT_FLAGS))
    if flag.kind is Kind.SWITCH:
        return [draw(st.sampled_from([flag.option, flag.opposite, f"{flag.option}=true"]))]
    text = draw(st.sampled_from(TEXTS[flag.kind]))
    glue = "" if len(flag.option) == 2 else "="
    return draw(st.sampled_from([[flag.option, text], [f"{flag.option}{glue}{text}"]]))


OTHER = [
    ["-d"],
    ["--background"],
    ["--config", "/x.toml"],
    ["--config=/y.toml"],
    ["--config="],
    ["-do", "ro"],
    ["--help"],
    ["--"],
    ["-"],
    [""],
    ["--buffer"],
    ["-x"],
    ["redis://h/1"],
    ["/mnt"],
    ["mnt"],
]

LINES = st.lists(option() | st.sampled_from(OTHER), max_size=6)


@given(LINES, st.sampled_from([[], ["mnt"], ["redis://h/1", "/mnt"]]))
def test_what_is_read_without_click_is_what_click_reads(options, where):
    arguments = [word for part in options for word in part] + where
    plain = words.read(arguments)
    if plain is not None:
        assert tuple(plain) == click_reads(arguments)


def test_what_programs_write_is_plain():
    values = {flag.name: flag.default_value for flag in MOUNT_FLAGS}
    values |= {"o": ("ro", "context=x"), "cache-dir": ("/a", "/b"), "no-bgjob": True}
    arguments = [BY_NAME[name].argument(value) for name, value in values.items()]
    asked = words.read(["--config=/f.toml", *arguments, "redis://h/1", "/mnt"])
    assert asked == (("redis://h/1", "/mnt"), "/f.toml", False, values)
    assert words.read(["-d", "--config", "/f.toml", "/mnt"]) is not None


@pytest.mark.parametrize("wrong", [[], ["redis://h"], ["a", "b", "c"], ["--help"], ["--heartbeat"]])
def test_the_rest_is_left_to_click(wrong):
    assert words.read(wrong) is None


def test_nothing_is_read_for_a_shell_that_completes(monkeypatch):
    monkeypatch.setenv("_JFSD_COMPLETE", "bash_complete")
    assert words.read(["redis://h/1", "/mnt"]) is None


def test_a_server_starts_without_click_and_without_what_it_needs_later(tmp_path):
    """Each of these is a hundredth of the pause of a restart, or ten."""
    code = (
        "import sys\n"
        "from jfsd.cli import main\n"
        "import jfsd.cli.serving as serving\n"
        "def stop(*_, **__):\n"
        "    import jfsd.daemon.app\n"
        "    print(*sys.modules)\n"
        "serving._check_place = stop\n"
        "main(sys.argv[1:])\n"
    )
    shown = subprocess.check_output(
        [sys.executable, "-c", code, "mount", "redis://h/1", str(tmp_path)], text=True, timeout=30
    )
    loaded = set(shown.split())
    assert "jfsd.daemon.app" in loaded
    late = {
        *("click", "crc32c", "importlib.metadata", "argparse", "difflib", "email.message"),
        *("aioboto3", "botocore", "cryptography", "trio", "zstandard", "lz4", "tomllib"),
        *("jfsd.object.s3", "platform", "uuid", "gettext"),
    }
    assert not loaded & late
