"""Metadata URLs: every form of format.md §2.1, and refusals that never show a password."""

from __future__ import annotations

import contextlib
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.url import Kind, MetaUrl, TlsOptions, parse_duration_s, parse_meta_url, redact


def parse(url: str, **env: str) -> MetaUrl:
    return parse_meta_url(url, env)


@pytest.mark.parametrize(
    ("url", "hosts", "db"),
    [
        ("redis://localhost", (("localhost", 6379),), 0),
        ("redis://localhost/", (("localhost", 6379),), 0),
        ("localhost/1", (("localhost", 6379),), 1),
        ("10.0.0.1:7000/15", (("10.0.0.1", 7000),), 15),
        ("redis://[::1]:6380/2", (("::1", 6380),), 2),
        ("redis://[fe80::1]/2", (("fe80::1", 6379),), 2),
        ("REDIS://h:1?db=3", (("h", 1),), 3),
        ("redis:///4", (("localhost", 6379),), 4),
    ],
)
def test_standalone(url: str, hosts: tuple[tuple[str, int], ...], db: int) -> None:
    parsed = parse(url)
    assert (parsed.kind, parsed.hosts, parsed.db) == (Kind.STANDALONE, hosts, db)
    assert parsed.prefix == ""
    assert parsed.tls is None


def test_unix_socket() -> None:
    parsed = parse("unix://:pw@/run/redis.sock?db=7")
    assert (parsed.kind, parsed.path, parsed.db, parsed.password) == (
        Kind.UNIX,
        "/run/redis.sock",
        7,
        "pw",
    )
    assert parsed.redacted() == "unix://:***@/run/redis.sock?db=7"
    assert parse("unix:///run/a@b.sock").path == "/run/a@b.sock"


def test_sentinel_takes_the_last_port_for_all() -> None:
    parsed = parse("redis://:pw@mymaster,a,b,c:5000/1", SENTINEL_PASSWORD="sp")
    assert parsed.kind is Kind.SENTINEL
    assert parsed.master_name == "mymaster"
    assert parsed.hosts == (("a", 5000), ("b", 5000), ("c", 5000))
    assert parsed.sentinel_password == "sp"
    assert parsed.redacted() == "redis://:***@mymaster,a:5000,b:5000,c:5000/1"


def test_sentinel_default_port() -> None:
    assert parse("redis://m,a:1,b/1").hosts == (("a", 1), ("b", 26379))


@pytest.mark.parametrize("url", ["redis://a,b,c/7", "redis://a:1,b:2/7"])
def test_cluster_prefix(url: str) -> None:
    parsed = parse(url)
    assert parsed.kind is Kind.CLUSTER
    assert parsed.prefix == "{7}"


def test_single_host_that_proves_to_be_a_cluster() -> None:
    assert parse("redis://a/3").as_cluster().prefix == "{3}"


def test_password_comes_from_the_first_place_that_has_one() -> None:
    env = {"REDIS_PASSWORD": "r", "META_PASSWORD": "m", "META_PASSWORD_FILE": "f"}
    read = {"f": "from file\n"}.__getitem__
    assert parse_meta_url("redis://u:p%40ss@h/1", env, read).password == "p@ss"
    assert parse_meta_url("redis://u@h/1", env, read).password == "r"
    del env["REDIS_PASSWORD"]
    assert parse_meta_url("redis://h/1", env, read).password == "m"
    del env["META_PASSWORD"]
    assert parse_meta_url("redis://h/1", env, read).password == "from file"


def test_password_file_missing(tmp_path) -> None:
    with pytest.raises(RefusedError, match=r"META_PASSWORD_FILE=.*cannot be read") as caught:
        parse("redis://h/1", META_PASSWORD_FILE=str(tmp_path / "none"))
    assert caught.value.exit_code is ExitCode.USAGE


def test_tls_options() -> None:
    parsed = parse(
        "rediss://h/1?tls-ca-cert-file=/ca&tls-cert-file=/c&tls-key-file=/k"
        "&tls-server-name=n&insecure-skip-verify=true"
    )
    assert parsed.tls == TlsOptions("/ca", "/c", "/k", "n", insecure_skip_verify=True)
    assert parse("rediss://h/1").tls == TlsOptions()
    assert parsed.scheme == "rediss"


def test_durations_in_both_spellings() -> None:
    parsed = parse("redis://h/1?read-timeout=1m30s&write_timeout=500ms&max-retry-backoff=2")
    assert (parsed.read_timeout_s, parsed.write_timeout_s) == (90.0, 0.5)
    assert (parsed.min_retry_backoff_s, parsed.max_retry_backoff_s) == (0.020, 2.0)
    assert parse("h?route-read=replica&client-cache=true&pool_size=5").route_read == "replica"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h2m", 3720.0), (".5s", 0.5), ("1.5ms", 0.0015), ("", None), ("1x", None)],
)
def test_duration_forms(text: str, seconds: float | None) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("", "is needed"),
        ("mysql://u:secret@(h:1)/db", "Redis only"),
        ("redis://h:secret/1", "a port must be"),
        ("redis://h:0/1", "a port must be"),
        ("redis://h:65536/1", "a port must be"),
        ("redis://:secret@h/one", "database must be"),
        ("redis://:secret@h/1/2", "database must be"),
        ("redis://:secret@h/-1", "database must be"),
        ("redis://:secret@h/1?db=x", "database must be"),
        ("redis://:secret@h/1?what=secret", "'what' is unknown"),
        ("redis://:secret@h/1?read-timeout=soon", "no duration"),
        ("redis://:secret@h/1?read-timeout=-1s", "no duration"),
        ("redis://:secret@h/1?tls-cert-file=/c", "needs TLS"),
        ("rediss://:secret@h/1?tls-cert-file=/c", "needs its key"),
        ("redis://:sec/secret@h/1", "write %2F"),
        ("redis://:sec?secret@h/1", "write %3F"),
        ("redis://:sec#secret@h/1", "write %23"),
        ("redis://:secret%zz@h/1", "write %25"),
        ("redis://:secret%ff@h/1", "UTF-8"),
        ("redis://:secret@h,,b:1/1", "host is empty"),
        ("redis://:secret@,a:1/1", "name of the master"),
        ("redis://:secret@::1/1", "brackets"),
        ("redis://:secret@h/1 ", "no spaces"),
        ("unix://:secret@host/path", "three slashes"),
        ("unix://:secret@", "path of a socket"),
        ("unix:///", "path of a socket"),
    ],
)
def test_refusals_name_the_rule_and_hide_the_password(url: str, rule: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(url)
    message = str(caught.value)
    assert caught.value.exit_code is ExitCode.USAGE
    assert rule in message
    assert "secret" not in message
    assert "\n" not in message


def test_repr_and_redacted_hide_passwords() -> None:
    parsed = parse("redis://u:secret@m,a:1/1?read-timeout=1s", SENTINEL_PASSWORD="secret")
    assert "secret" not in repr(parsed)
    assert parsed.redacted() == "redis://u:***@m,a:1/1"
    assert parse("redis://u@h/1").redacted() == "redis://u@h:6379/1"
    assert parse("redis://[::1]/1").redacted() == "redis://[::1]:6379/1"


@given(st.text(min_size=1))
def test_any_password_survives_quoting(password: str) -> None:
    try:
        quoted = quote(password, safe="")
    except UnicodeEncodeError:
        return
    assert parse(f"redis://u:{quoted}@h/1").password == password


@given(st.text())
def test_any_text_parses_or_is_refused(url: str) -> None:
    with contextlib.suppress(RefusedError):
        parse(url)


@given(
    st.lists(st.sampled_from([*"ab:/?#@,%[].", "://"])).map("".join),
    st.sampled_from(["redis://", "unix://", "x://", ""]),
)
def test_redaction_hides_whatever_stands_before_the_last_at(middle: str, scheme: str) -> None:
    assert "SECRET" not in redact(f"{scheme}u:{middle}SECRET{middle}@h/1")
