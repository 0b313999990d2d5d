"""One row per option: parsing, ranges, and what a refusal says."""

import pytest

from jfsd.config.flags import BY_NAME, MOUNT_FLAGS, Flag, Kind
from jfsd.config.formatflags import FORMAT_FLAGS
from jfsd.config.settings import MountSettings
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import names


@pytest.mark.parametrize("flag", [*MOUNT_FLAGS, *FORMAT_FLAGS], ids=lambda flag: flag.option)
def test_every_default_is_a_value_of_its_own_option(flag):
    flag.parse(flag.default)


@pytest.mark.parametrize("flag", [*MOUNT_FLAGS, *FORMAT_FLAGS], ids=lambda flag: flag.option)
def test_every_help_is_a_sentence(flag):
    assert flag.help[0].isupper()
    assert flag.help.endswith(".")


@pytest.mark.parametrize("flag", MOUNT_FLAGS, ids=lambda flag: flag.option)
def test_the_settings_have_the_rows_fields_with_the_rows_defaults(flag):
    assert getattr(MountSettings(), flag.field) == flag.default_value
    assert type(getattr(MountSettings(), flag.field)) is type(flag.default_value)


def test_there_is_no_setting_without_a_row():
    fields = set(names(MountSettings))
    assert fields == {flag.field for flag in MOUNT_FLAGS}


def test_a_switch_can_be_taken_back():
    switches = {flag.option: flag.opposite for flag in MOUNT_FLAGS if flag.opposite}
    assert switches == {
        "--read-only": "--no-read-only",
        "--enable-xattr": "--no-enable-xattr",
        "--no-bgjob": "--bgjob",
        "--no-syslog": "--syslog",
    }
    assert BY_NAME["no-bgjob"].argument(False) == "--bgjob"


@pytest.mark.parametrize("flags", [MOUNT_FLAGS, FORMAT_FLAGS], ids=["mount", "format"])
def test_no_name_and_no_field_is_used_twice(flags):
    assert len({flag.name for flag in flags}) == len(flags)
    assert len({flag.field for flag in flags}) == len(flags)


@pytest.mark.parametrize("flag", [*MOUNT_FLAGS, *FORMAT_FLAGS], ids=lambda flag: flag.option)
def test_a_number_has_its_unit_in_the_name_of_its_field(flag):
    ends = {Kind.BYTES: "_bytes", Kind.SECONDS: "_s", Kind.MBPS: "_mbps"}
    assert flag.field.endswith(ends.get(flag.kind, ""))


def test_the_options_of_the_reference_have_its_defaults():
    defaults = {
        "buffer-size": 300 << 20,
        "cache-size": 100 << 30,
        "free-space-ratio": 0.1,
        "attr-cache": 1,
        "entry-cache": 1,
        "dir-entry-cache": 1,
        "open-cache": 0,
        "max-uploads": 20,
        "max-downloads": 200,
        "prefetch": 1,
        "max-readahead": 32 << 20,
        "io-retries": 10,
        "get-timeout": 60,
        "put-timeout": 60,
        "heartbeat": 12,
    }
    assert {name: BY_NAME[name].default_value for name in defaults} == defaults


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("buffer-size", "15M", "is out of range 16M to 1T"),
        ("buffer-size", "lots", "is not a size"),
        ("heartbeat", "500ms", "is out of range 1s to 10m"),
        ("heartbeat", "601", "is out of range 1s to 10m"),
        ("max-uploads", "0", "is out of range 1 to 1000"),
        ("max-uploads", "-1", "is not a whole number"),
        ("max-uploads", "1" * 30, "is not a whole number"),
        ("io-retries", "2.5", "is not a whole number"),
        ("free-space-ratio", "1.1", "is out of range 0 to 1"),
        ("free-space-ratio", "nan", "is not a number"),
        ("log-level", "loud", "is not one of debug, info, warning, error"),
        ("storage", "ftp", "is not one of file, s3, minio"),
        ("read-only", "perhaps", "is not true or false"),
        ("upload-limit", "fast", "is not a bandwidth"),
        ("attr-cache", "1y", "is not a time"),
    ],
)
@pytest.mark.promise(16)
def test_a_refusal_names_value_rule_and_mend(name, text, rule):
    with pytest.raises(RefusedError) as refused:
        BY_NAME[name].parse(text)
    assert refused.value.exit_code is ExitCode.USAGE
    assert str(refused.value).startswith(f"--{name} {text!r}: {rule}")
    assert refused.value.mend.startswith("give ")


def test_a_long_bad_value_is_cut():
    with pytest.raises(RefusedError) as refused:
        BY_NAME["buffer-size"].parse("9" * 5000 + "Z")
    assert len(str(refused.value)) < 250


def test_the_limits_themselves_are_in_range():
    assert BY_NAME["heartbeat"].parse("10m") == 600
    assert BY_NAME["buffer-size"].parse("16M") == 16 << 20
    assert BY_NAME["buffer-size"].parse("1T") == 1 << 40


def test_a_one_letter_option_has_one_dash():
    assert BY_NAME["o"].option == "-o"


def test_words_and_paths_are_split():
    flag = Flag("p", "p", Kind.PATHS, "", help="", group="")
    assert flag.parse("/a:/b:") == ("/a", "/b")
    assert BY_NAME["o"].parse("ro,,noatime") == ("ro", "noatime")
