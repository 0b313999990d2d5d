"""The command line: one line per error, documented exit codes, quick to start."""

import importlib
import json
import logging
import resource
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from jfsd import __version__
from jfsd.cli import main
from jfsd.cli.group import VERBS, jfsd
from jfsd.cli.options import flag_options, given_options
from jfsd.config.credentials import password_of
from jfsd.config.document import EXIT_CODES
from jfsd.config.flags import MOUNT_FLAGS
from jfsd.config.settings import MountSettings, settings_from
from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import StoreRefusedError

PYTHON = sys.executable


def run(*arguments, **environment):
    """Run the command in a process of its own."""
    code = "import sys; from jfsd.cli import main; sys.exit(main())"
    return subprocess.run(
        [PYTHON, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def parse(*arguments):
    """Return the settings that mount options on a command line make."""
    found = []

    @click.command()
    @flag_options(MOUNT_FLAGS)
    def command(**parameters):
        found.append(settings_from(given_options(parameters)))

    command.main(list(arguments), standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_module_whose_help_shows_examples(verb):
    command = importlib.import_module(f"jfsd.cli.{verb}").command
    shown = CliRunner().invoke(command, ["--help"]).output
    assert "Example" in shown
    assert f"jfsd {verb}" in shown


def test_the_help_lists_every_verb():
    shown = CliRunner().invoke(jfsd, ["--help"]).output
    assert all(f"  {verb}" in shown for verb in VERBS)


def test_without_a_verb_the_help_is_shown_in_its_lines(capfd):
    assert main([]) == ExitCode.USAGE
    shown = capfd.readouterr().err
    assert all(f"\n  {verb}" in shown for verb in VERBS)


def test_the_log_level_before_the_verb_counts_for_a_mount(monkeypatch, tmp_path):
    levels = []
    monkeypatch.setattr("jfsd.log.configure", lambda level, *_: levels.append(level))
    for arguments in (["--log-level", "debug", "mount"], ["mount", "--log-level", "error"]):
        main([*arguments, "redis://h", str(tmp_path / "none")])
    main(["--log-level", "debug", "mount", "--log-level", "error", "redis://h", f"{tmp_path}/none"])
    assert levels == ["debug", "debug", "error", "debug", "error"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["mont"], "mont: is not a command; did you mean mount?"),
        (["quux"], "quux: is not a command; see jfsd --help"),
        (["--quux"], "--quux: is not an option; see --help of the command"),
        (
            ["mount", "--bufer-size", "1G"],
            "--bufer-size: is not an option; did you mean --buffer-size?",
        ),
        (["mount"], "Missing argument 'META-URL'; see --help of the command"),
        (["umount"], "Missing argument 'MOUNTPOINT'; see --help of the command"),
        (
            ["mount", "redis://h", "/m", "--buffer-size", "5X"],
            (
                "--buffer-size '5X': is not a size (a number and one of B K M G T P);"
                " give 16M to 1T (default 300M)"
            ),
        ),
        (
            ["mount", "redis://h", "/m", "--read-only", "-o", "rw"],
            "--read-only and -o rw: contradict each other; drop one of them",
        ),
        (
            ["mount", "redis://h", "/m", "--backup-meta", "1h"],
            (
                "--backup-meta 3600s: the mount does not back up metadata;"
                " give 0 or leave it out, and run `juicefs dump` from a timer"
            ),
        ),
    ],
)
@pytest.mark.promise(16)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, line, capfd):
    assert main(arguments) == ExitCode.USAGE
    captured = capfd.readouterr()
    assert captured.err == f"jfsd: {line}\n"
    assert captured.out == ""


def test_an_error_of_the_program_is_one_line_and_its_own_exit_code(monkeypatch, capfd):
    def refuse(**_):
        raise RefusedError(ExitCode.BUSY, "/m\nnt", "is in use", "close it")

    monkeypatch.setattr(importlib.import_module("jfsd.cli.umount").command, "callback", refuse)
    assert main(["umount", "/mnt"]) == ExitCode.BUSY
    assert capfd.readouterr().err == "jfsd: /m nt: is in use; close it\n"


def test_an_error_of_the_store_gets_its_mend(monkeypatch, capfd):
    def fail(**_):
        raise StoreRefusedError("bucket b: forbidden")

    monkeypatch.setattr(importlib.import_module("jfsd.cli.umount").command, "callback", fail)
    assert main(["umount", "/mnt"]) == ExitCode.STORE_REFUSED
    shown = capfd.readouterr().err
    assert (
        shown == "jfsd: bucket b: forbidden; mend the bucket's name, its permissions or the keys\n"
    )


def test_something_unforeseen_is_one_line_and_exit_code_1(monkeypatch, capfd):
    def fail(**_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(importlib.import_module("jfsd.cli.umount").command, "callback", fail)
    assert main(["umount", "/mnt"]) == ExitCode.FAILURE
    assert capfd.readouterr().err.startswith("jfsd: ZeroDivisionError: oh; unforeseen")


def test_debug_shows_the_traceback_of_something_unforeseen(monkeypatch, capfd):
    def fail(**_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(importlib.import_module("jfsd.cli.umount").command, "callback", fail)
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        assert main(["--log-level", "debug", "umount", "/mnt"]) == ExitCode.FAILURE
        assert "Traceback" in capfd.readouterr().err
    finally:
        root.handlers[:], root.level = before


def test_ctrl_c_is_exit_code_130_without_a_word(monkeypatch, capfd):
    def interrupt(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("jfsd.cli.umount").command, "callback", interrupt)
    assert main(["umount", "/mnt"]) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_a_verb_returns_its_exit_code(monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("jfsd.cli.umount").command, "callback", lambda **_: 7
    )
    assert main(["umount", "/mnt"]) == 7


def test_no_options_are_the_default_settings():
    assert parse() == MountSettings()


def test_options_become_settings():
    arguments = ["-o", "noatime,nosuid", "-o", "ro", "--buffer-size", "1G", "--no-enable-xattr"]
    assert parse(*arguments, "--cache-dir", "/a:/b", "--no-bgjob") == MountSettings(
        fuse_options=("noatime", "nosuid", "ro"),
        buffer_size_bytes=1 << 30,
        enable_xattr=False,
        cache_dirs=("/a", "/b"),
        no_bgjob=True,
    )


def test_enable_xattr_may_be_given_as_in_the_reference():
    assert parse("--enable-xattr") == MountSettings()


def test_version_says_what_is_installed_and_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("version")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stdout.splitlines()[:2] == [f"jfsd {__version__}", "JuiceFS compatibility 1.4.2"]
    assert "libfuse 3." in done.stdout
    assert "not installed" not in done.stdout
    # 0.1 s on an idle machine; processor time does not count what others do.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4


def test_version_imports_nothing_heavy():
    code = (
        "import sys, json; from jfsd.cli import main; main(['version']);"
        " print(json.dumps(sorted(sys.modules)))"
    )
    shown = subprocess.check_output([PYTHON, "-c", code], text=True, timeout=30)
    loaded = set(json.loads(shown.splitlines()[-1]))
    heavy = {
        "asyncio",
        "redis",
        "pyfuse3",
        "aioboto3",
        "cryptography",
        "uvloop",
        "jfsd.config.flags",
    }
    assert not loaded & heavy


def test_output_that_nobody_reads_is_no_traceback():
    code = "import sys; from jfsd.cli import main; sys.exit(main())"
    command = f"{PYTHON} -c '{code}' --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_comes_with_the_program(shell):
    done = run(_JFSD_COMPLETE=f"{shell}_source")
    assert done.returncode == 0
    assert "_JFSD_COMPLETE" in done.stdout


def test_completion_knows_verbs_options_and_choices():
    def complete(words):
        done = run(
            _JFSD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" "))
        )
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert complete("jfsd ") == set(VERBS)
    assert "--buffer-size" in complete("jfsd mount --buf")
    assert complete("jfsd mount --log-level d") == {"debug"}


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("redis://:pw@host/1", "pw"),
        ("redis://user:p@ss:w@host:6379/1", "p@ss:w"),
        ("unix://:pw@/run/r.sock?db=1", "pw"),
        ("user:pw@host/1", "pw"),
        ("redis://host:6379/1", ""),
        ("redis://user@host/1", ""),
        ("unix:///run/r.sock", ""),
    ],
)
def test_the_password_of_a_url_is_found(url, password):
    assert password_of(url) == password


@pytest.mark.promise(16)
def test_secrets_disappear_from_the_process_list():
    code = (
        "import sys; from jfsd.cli.argv import hide;"
        "from jfsd.config.credentials import password_of;"
        "hide([password_of(sys.argv[1]), sys.argv[2], '']);"
        "sys.stdout.write(open('/proc/self/cmdline').read())"
    )
    arguments = ["redis://u:geheim@h/1", "key\u00e4", "mount"]
    shown = subprocess.check_output([PYTHON, "-c", code, *arguments], text=True, timeout=30)
    # The program's own text mentions no secret, so every trace of one would be an argument's.
    assert shown.split("\0")[3:] == ["redis://u:xxxxxx@h/1", "xxxxx", "mount", ""]


def test_every_exit_code_is_documented_once():
    assert set(EXIT_CODES) == set(ExitCode)
