"""Where requests for the objects of a bucket go, as far as that can be said without the library.

The client library reads configuration files, environment variables, and a hundred rules about
AWS's hosts. Where none of that plays a part the answer is known here, and no request has to
wait until the library is loaded; in all other cases it is asked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from jfsd.object.s3url import DEFAULT_REGION, S3Location

CA_BUNDLE = "AWS_CA_BUNDLE"
"""Names a file of authorities for TLS."""

_COMMON_REGION = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z]+-\d")
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_NUMERIC_HOST = re.compile(r"[\d.]+|.*:.*")
_OTHER_KINDS = re.compile(r"--[a-z0-9]+-s3$")
"""Names of directory buckets, access points and so on, which have rules of their own."""
_HARMLESS = frozenset(
    (
        CA_BUNDLE,
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
    )
)
_FILES = (
    ("AWS_CONFIG_FILE", "~/.aws/config"),
    ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
)
_FILE_NAMES = frozenset(name for name, _ in _FILES)


class Target(NamedTuple):
    """Where the objects of a bucket are: `prefix` comes before the `/` of a key's path."""

    secure: bool
    host: str
    prefix: str
    region: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to."""
        parts = urlsplit(f"//{self.host}")
        return parts.hostname or "", parts.port or self._usual_port

    @property
    def named_host(self) -> str:
        """The host as requests name it: without a port that goes without saying."""
        return self.host.removesuffix(f":{self._usual_port}")

    @property
    def _usual_port(self) -> int:
        return 443 if self.secure else 80


def is_ordinary(location: S3Location) -> bool:
    """Say whether the bucket is one whose requests are signed in the ordinary way."""
    return not _OTHER_KINDS.search(location.bucket)


def plain_target(location: S3Location, environ: Mapping[str, str]) -> Target | None:
    """Return the place to send requests to; None if only the client library can tell."""
    region, bucket = location.region, location.bucket
    if region is None or not is_ordinary(location) or _is_configured(environ):
        return None
    if not (location.endpoint or "").isascii():
        return None
    if location.endpoint:
        parts = urlsplit(location.endpoint)
        host, secure = parts.netloc, parts.scheme == "https"
        if not location.virtual_host:
            return Target(secure, host, f"/{bucket}", region)
        if not _NUMERIC_HOST.fullmatch(parts.hostname or "") and _HOST_LABEL.fullmatch(bucket):
            return Target(secure, f"{bucket}.{host}", "", region)
        return None
    if not _COMMON_REGION.fullmatch(region) or not _HOST_LABEL.fullmatch(bucket):
        return None
    middle = "" if region == DEFAULT_REGION else f".{region}"
    return Target(location.secure, f"{bucket}.s3{middle}.amazonaws.com", "", region)


def target_of(url: str, path: str, region: str) -> Target | None:
    """Return the target to which `url`, whose path ends in `path`, was addressed."""
    parts = urlsplit(url)
    if not parts.path.endswith(path) or parts.query:
        return None
    prefix = parts.path.removesuffix(path).rstrip("/")
    return Target(parts.scheme == "https", parts.netloc, prefix, region)


def _is_configured(environ: Mapping[str, str]) -> bool:
    """Say whether there is a proxy, or anything that the library would go by."""
    for name, value in environ.items():
        if value and name.lower().endswith("_proxy") and name.lower() != "no_proxy":
            return True
        if name.startswith("AWS_") and name not in _HARMLESS and name not in _FILE_NAMES:
            return True
    files = (environ.get(name) or usual for name, usual in _FILES)
    return any(os.path.exists(os.path.expanduser(path)) for path in files)  # noqa: PTH110, PTH111
