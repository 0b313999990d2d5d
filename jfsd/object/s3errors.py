"""What the errors of an S3 service mean, and what mends them.

One table for both ways to the service: the lean one, and that through the client library.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from jfsd.object.base import (
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from jfsd.object.s3url import S3Location

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

BEYOND_END = frozenset(("InvalidRange", "416"))
"""Codes for a range that begins behind the object's end."""

_CHECK_KEYS = "correct the access key and the secret key"
_REGION = "name the bucket's region in its URL"
_EXPIRED = "give fresh credentials"

_REFUSED = {
    "NoSuchBucket": ("it does not exist", "create the bucket or correct its name"),
    "InvalidBucketName": ("no bucket can have this name", "correct the bucket's name"),
    "AccessDenied": ("access is denied", "allow this account to list, read and write it"),
    "Forbidden": ("access is denied", "allow this account to list, read and write it"),
    "403": ("access is denied", "allow this account to list, read and write it"),
    "AllAccessDisabled": ("all access is disabled", "ask the owner of the bucket"),
    "AccountProblem": ("the account has a problem", "ask the provider"),
    "InvalidAccessKeyId": ("the access key is unknown", _CHECK_KEYS),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", _CHECK_KEYS),
    "InvalidToken": ("the session token is not valid", _EXPIRED),
    "ExpiredToken": ("the session token has expired", _EXPIRED),
    "ExpiredTokenException": ("the session token has expired", _EXPIRED),
    "RequestTimeTooSkewed": ("the clocks differ too much", "set this machine's clock"),
    "AuthorizationHeaderMalformed": ("it is in another region", _REGION),
    "IllegalLocationConstraintException": ("it is in another region", _REGION),
    "PermanentRedirect": ("it is in another region", _REGION),
    "301": ("it is in another region", _REGION),
}
_MISSING = frozenset(("NoSuchKey", "NoSuchVersion", "NotFound", "404"))
_FULL = frozenset(("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"))
_PASSING = frozenset(
    (
        "BadDigest",
        "IncompleteBody",
        "OperationAborted",
        "RequestTimeout",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    )
)
_TOO_MANY = 429
_DEEPEST = 8


def of_service(status: int, code: str, text: str, what: str, location: S3Location) -> StoreError:
    """Return our error for an answer; its text names the place and holds no secret."""
    text = " ".join(text.split())
    if code in _REFUSED:
        rule, mend = _REFUSED[code]
        return StoreRefusedError(f"{location}: {rule} ({what}: {code}); {mend}")
    if code in _MISSING:
        return ObjectMissingError(f"{location}: {what}: no such object")
    shown = f"{location}: {what}: {code} {text}".rstrip()
    if code in _FULL:
        return StoreFullError(shown)
    passing = code in _PASSING or status == _TOO_MANY or status >= 500 or status < 400
    return StoreError(shown, retryable=passing)


def of_connection(error: BaseException, what: str, location: S3Location) -> StoreError:
    """Return our error for a call that got no answer."""
    text = " ".join(str(error).split()) or type(error).__name__
    if _is_certificate(error):
        return StoreRefusedError(
            f"{location}: its certificate is not trusted ({text});"
            " name its authority with ?ca-certs=FILE in the bucket's URL"
        )
    return StoreError(f"{location}: {what}: {text}")


def read_error(status: int, body: bytes) -> tuple[str, str]:
    """Return code and text of an error's answer, by its status where the body tells nothing.

    A body of XML that is no error of S3's is that of a proxy or a gateway, whatever its
    status: the code is "" then, which means nothing but failure.
    """
    plain = str(status), _phrase(status)
    body = body.strip()
    if not body or (status >= 500 and body.startswith(b"<html>")):
        return plain
    from xml.etree import ElementTree as ET  # noqa: PLC0415 - rarely needed

    try:
        root = ET.fromstring(body)  # noqa: S314 - libexpat bounds what entities grow to
    except ET.ParseError:
        return plain
    found = {_name(each.tag): each for each in root}
    if _name(root.tag) != "Error":
        error = found.get("Error")
        if error is None:
            return "", ""
        found = {_name(each.tag): each for each in error}
    return _text(found.get("Code")), _text(found.get("Message"))


def _phrase(status: int) -> str:
    import http  # noqa: PLC0415 - rarely needed

    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return ""


def _name(tag: str) -> str:
    return tag.rpartition("}")[2]


def _text(element: Element | None) -> str:
    return (element.text or "").strip() if element is not None else ""


def _is_certificate(error: BaseException | None) -> bool:
    """Say whether a certificate is at the bottom of this."""
    for _ in range(_DEEPEST):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, ssl.SSLCertVerificationError)
