"""Mount settings: contradictions are refused, differences are told."""

import os

import pytest

from jfsd.config.flags import Change
from jfsd.config.fuseopts import check_allow_other, parse_fuse_options
from jfsd.config.settings import MountSettings, diff, settings_from
from jfsd.errors import ExitCode, RefusedError


def refusal(**fields):
    with pytest.raises(RefusedError) as refused:
        MountSettings(**fields)
    return refused.value


def test_o_ro_is_read_only():
    assert MountSettings(fuse_options=("ro",)).read_only
    assert not MountSettings(fuse_options=("rw",)).read_only


def test_read_only_may_have_limits_that_only_matter_for_writing():
    assert MountSettings(read_only=True, upload_limit_mbps=10).upload_limit_mbps == 10


@pytest.mark.parametrize(
    "words",
    [("ro", "rw"), ("suid", "nosuid"), ("noexec", "exec"), ("allow_other", "no_allow_other")],
)
def test_contradicting_words_are_refused(words):
    assert refusal(fuse_options=words).rule == "contradict each other"


def test_read_only_and_rw_contradict_each_other():
    assert refusal(read_only=True, fuse_options=("rw",)).rule == "contradict each other"


def test_an_unknown_word_is_refused_with_the_nearest_known_one():
    error = refusal(fuse_options=("allow_othr",))
    assert error.exit_code is ExitCode.USAGE
    assert str(error) == ("-o allow_othr: is not a known mount option; did you mean allow_other?")


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("writeback_cache", "is not implemented"),
        ("debug", "is not a mount option here"),
        ("fsname", "needs a value"),
        ("fsname=", "needs a value"),
        ("max_read=lots", "is not a number"),
        ("ro=1", "is not a known mount option"),
        ("quux", "is not a known mount option"),
    ],
)
def test_a_word_that_cannot_be_honoured_is_refused(word, rule):
    assert refusal(fuse_options=(word,)).rule.startswith(rule)


def test_words_of_fstab_are_accepted_and_go_nowhere():
    options = parse_fuse_options(["defaults", "_netdev", "nofail", "x-systemd.automount", "rw"])
    assert options == parse_fuse_options([])


def test_nobody_gets_privileges_from_the_volume_unless_asked_for():
    assert parse_fuse_options(()).kernel == ("nodev", "nosuid")
    assert parse_fuse_options(("suid",)).kernel == ("nodev", "suid")
    assert parse_fuse_options(("dev", "suid")).kernel == ("dev", "suid")


def test_words_for_the_kernel_and_words_with_values_are_told_apart():
    options = parse_fuse_options(["nosuid", "noatime", "nosuid", "fsname=a=b", "nonempty"])
    assert options.kernel == ("noatime", "nodev", "nosuid")
    assert options.valued == {"fsname": "a=b"}
    assert options.nonempty


def test_allow_other_is_as_in_the_reference_on_for_root():
    assert MountSettings().allow_other is (os.geteuid() == 0)
    assert MountSettings(fuse_options=("no_allow_other",)).allow_other is False
    assert MountSettings(fuse_options=("allow_other",)).allow_other is True


@pytest.mark.parametrize("conf", ["", "# user_allow_other\n", "mount_max = 10\n"])
def test_allow_other_is_refused_to_users_unless_the_machine_allows_it(conf):
    options = parse_fuse_options(["allow_other"])
    with pytest.raises(RefusedError) as refused:
        check_allow_other(options, 1000, conf)
    assert refused.value.exit_code is ExitCode.NO_PRIVILEGE
    check_allow_other(options, 0, conf)
    check_allow_other(options, 1000, conf + "\nuser_allow_other\n")
    check_allow_other(parse_fuse_options([]), 1000, conf)


def test_a_subdir_is_cleaned_and_keeps_bytes_that_are_no_text():
    settings = MountSettings(subdir="//a/" + os.fsdecode(b"\xff") + "/")
    assert settings.subdir_names == (b"a", b"\xff")


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("a/../b", "contains '..'"),
        ("./a", "contains '.'"),
        ("a/" + "n" * 256, "has a name over 255 bytes"),
        ("ä" * 128, "has a name over 255 bytes"),
        ("/".join(["n" * 250] * 20), "is over 4095 bytes"),
    ],
)
def test_a_bad_subdir_is_refused(path, rule):
    assert refusal(subdir=path).rule == rule


def test_a_name_of_255_bytes_is_allowed():
    assert MountSettings(subdir="n" * 255).subdir_names == (b"n" * 255,)


@pytest.mark.parametrize("dirs", [(), ("memory", "/a"), ("relative",)])
def test_bad_cache_directories_are_refused(dirs):
    assert refusal(cache_dirs=dirs).value.startswith("--cache-dir")


def test_memory_is_a_cache():
    assert MountSettings(cache_dirs=("memory",)).memory_cache
    assert not MountSettings().memory_cache


def test_backup_of_metadata_is_refused_with_the_way_out():
    error = refusal(backup_meta_s=3600.0)
    assert "juicefs dump" in error.mend
    assert MountSettings(backup_meta_s=0.0)


def test_settings_are_made_from_names_and_none_is_the_default():
    settings = settings_from({"buffer-size": 1 << 30, "prefetch": None, "o": ("ro",)})
    assert settings == MountSettings(
        buffer_size_bytes=1 << 30, fuse_options=("ro",), read_only=True
    )


def test_an_unknown_name_is_refused():
    with pytest.raises(RefusedError, match="is not an option of mount"):
        settings_from({"writeback": True})


def test_equal_settings_have_no_difference():
    assert diff(MountSettings(), MountSettings()) == []


def test_differences_name_option_values_and_when_they_take_effect():
    after = MountSettings(prefetch=3, subdir="x", heartbeat_s=5.0)
    assert diff(MountSettings(), after) == [
        ("--subdir", "", "x", Change.FIXED),
        ("--heartbeat", "12s", "5s", Change.LIVE),
        ("--prefetch", "1", "3", Change.LIVE),
    ]
