"""Keys and passwords from files, credentials and the environment: never from an argument.

Arguments are visible to every user of the machine. The order is: the file that an option
names, the credential that the service manager passed (LoadCredential= in systemd.exec(5)),
the environment, the volume's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from jfsd.config.volume import REMOVED, Volume
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, field, replace

DIRECTORY_VARIABLE = "CREDENTIALS_DIRECTORY"

CREDENTIALS = {
    "meta-password": "META_PASSWORD",
    "sentinel-password": "SENTINEL_PASSWORD",
    "access-key": "ACCESS_KEY",
    "secret-key": "SECRET_KEY",
    "session-token": "SESSION_TOKEN",
    "rsa-passphrase": "JFS_RSA_PASSPHRASE",
}
"""Credentials by their name in the directory, and the variable that each takes the place of."""

_OVERRULED = {"META_PASSWORD": "REDIS_PASSWORD"}
"""A variable that would come before the one that a credential is put into."""

_PASSWORD_IN_URL = re.compile(r"(?:\w+://|(?!\w+://))[^/@:]*:(?P<password>.+)@")


class Credentials(Record):
    """Keys that were given from outside; "" means not given. The repr shows none."""

    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    rsa_passphrase: str | None = field(default=None, repr=False)
    """Passphrase of the volume's RSA key; None if none was given."""

    def over(self, volume: Volume) -> Volume:
        """Return the volume with these keys instead of its own, where given."""
        if not (self.access_key or self.secret_key or self.session_token):
            return volume
        return replace(
            volume,
            access_key=self.access_key or volume.access_key,
            secret_key=self.secret_key or volume.secret_key,
            session_token=self.session_token or ("" if self.access_key else volume.session_token),
        )


def password_of(url: str) -> str:
    """Return the password that stands in a metadata URL, as it stands there; "" if none does."""
    match = _PASSWORD_IN_URL.match(url)
    return match["password"] if match else ""


def with_credentials(environ: Mapping[str, str]) -> Mapping[str, str]:
    """Return the environment, with the credentials that were passed in place of variables.

    Raises:
        RefusedError: A credential cannot be read or is not text.
    """
    directory = environ.get(DIRECTORY_VARIABLE, "")
    if not directory:
        return environ
    changed = dict(environ)
    for name, variable in CREDENTIALS.items():
        path = Path(directory, name)
        secret = read_secret_file(f"credential {name}", str(path)) if path.exists() else ""
        if secret:  # an empty one is the unit's own: nobody gave any
            changed[variable] = secret
            changed.pop(_OVERRULED.get(variable, ""), None)
    return changed


def read_credentials(
    access_key_file: str = "",
    secret_key_file: str = "",
    session_token_file: str = "",
    environ: Mapping[str, str] | None = None,
) -> Credentials:
    """Return the keys from the files where named, else from credentials, else the environment.

    Raises:
        RefusedError: A file cannot be read or holds no single line.
    """
    env = with_credentials(os.environ if environ is None else environ)
    return Credentials(
        access_key=_one("--access-key-file", access_key_file, env.get("ACCESS_KEY", "")),
        secret_key=_one("--secret-key-file", secret_key_file, env.get("SECRET_KEY", "")),
        session_token=_one(
            "--session-token-file", session_token_file, env.get("SESSION_TOKEN", "")
        ),
        rsa_passphrase=env.get("JFS_RSA_PASSPHRASE"),
    )


def read_secret_file(option: str, path: str) -> str:
    """Return the file's text without the newline at its end.

    Raises:
        RefusedError: The file cannot be read or is not text.
    """
    try:
        return Path(path).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RefusedError(
            ExitCode.USAGE, f"{option} {path}", f"cannot be read ({reason})", "name a readable file"
        ) from error


def check_complete(volume: Volume) -> None:
    """Return if no secret of the volume is missing.

    Raises:
        RefusedError: A dump was loaded without its secrets and none was given.
    """
    for option, secret in (
        ("SECRET_KEY", volume.secret_key),
        ("SESSION_TOKEN", volume.session_token),
        ("the encryption key", volume.encrypt_key),
    ):
        if secret == REMOVED:
            raise RefusedError(
                ExitCode.VOLUME_UNSUPPORTED,
                f"volume {volume.name}",
                f"its metadata was loaded from a dump without {option}",
                "set it with `juicefs config`, or give it in the environment",
            )


def _one(option: str, path: str, fallback: str) -> str:
    if not path:
        return fallback
    text = read_secret_file(option, path)
    if not text or "\n" in text:
        raise RefusedError(
            ExitCode.USAGE, f"{option} {path}", "must hold one line", "put the bare key into it"
        )
    return text
