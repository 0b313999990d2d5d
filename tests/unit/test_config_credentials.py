"""Where keys and passwords come from, and which comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jfsd.config.credentials import CREDENTIALS, read_credentials, with_credentials
from jfsd.config.runtime import MountRecord
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.url import parse_meta_url

if TYPE_CHECKING:
    from pathlib import Path

ENVIRON = {"ACCESS_KEY": "env-ak", "SECRET_KEY": "env-sk", "REDIS_PASSWORD": "env-pw"}


@pytest.fixture
def passed(tmp_path: Path) -> dict[str, str]:
    """An environment with every credential passed by the service manager."""
    for name in CREDENTIALS:
        (tmp_path / name).write_text(f"passed-{name}\n")
    return {**ENVIRON, "CREDENTIALS_DIRECTORY": str(tmp_path)}


def test_a_credential_comes_before_the_environment(passed: dict[str, str]) -> None:
    keys = read_credentials(environ=passed)
    assert keys.access_key == "passed-access-key"
    assert keys.secret_key == "passed-secret-key"
    assert keys.session_token == "passed-session-token"
    assert keys.rsa_passphrase == "passed-rsa-passphrase"


def test_a_file_that_an_option_names_comes_before_a_credential(
    passed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("own-ak")
    assert read_credentials(str(tmp_path / "own"), environ=passed).access_key == "own-ak"


def test_what_was_not_passed_comes_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret-key").write_text("passed-sk")
    keys = read_credentials(environ={**ENVIRON, "CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert (keys.access_key, keys.secret_key) == ("env-ak", "passed-sk")
    assert read_credentials(environ=ENVIRON).secret_key == "env-sk"


def test_the_password_of_redis_is_the_credential(passed: dict[str, str]) -> None:
    url = parse_meta_url("redis://h/1", with_credentials(passed))
    assert url.password == "passed-meta-password"
    own = parse_meta_url("redis://:own@h/1", with_credentials(passed))
    assert own.password == "own"
    sentinel = parse_meta_url("redis://m,a,b:26379/1", with_credentials(passed))
    assert sentinel.sentinel_password == "passed-sentinel-password"


def test_the_record_of_a_mount_has_the_password_that_counts(
    passed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    record = MountRecord("/m", "redis://h", "vol", "u", 1)
    assert record.passwords["META_PASSWORD"] == "passed-meta-password"
    assert "REDIS_PASSWORD" not in record.passwords


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
@pytest.mark.promise(16)
def test_a_credential_that_is_no_text_is_refused(content: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "access-key"
    place.mkdir() if content is None else place.write_bytes(content)
    with pytest.raises(RefusedError, match="credential access-key ") as refused:
        with_credentials({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert refused.value.exit_code is ExitCode.USAGE


def test_without_credentials_the_environment_is_as_it_is() -> None:
    assert with_credentials(ENVIRON) == ENVIRON


def test_an_empty_credential_is_none(tmp_path) -> None:
    (tmp_path / "meta-password").write_text("\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "META_PASSWORD": "p"}
    assert with_credentials(environ)["META_PASSWORD"] == "p"
