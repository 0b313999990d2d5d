"""What the errors of an S3 service and of the client library mean, and what mends them."""

from __future__ import annotations

import ssl

import aiohttp
from botocore import exceptions as boto

from jfsd.object.base import (
    ObjectMissingError,
    StoreError,
    StoreFullError,
    StoreRefusedError,
)
from jfsd.object.s3url import S3Location

FAILURES = (boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, OSError)
"""Everything that a call of the library may raise, besides defects."""

_NO_KEYS = "give --access-key and --secret-key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
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
_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)
_UNUSABLE = (boto.InvalidRegionError, boto.ParamValidationError, ValueError)
_DEEPEST = 8


def code_of(error: BaseException) -> str:
    """Return the service's error code, or "" for an error of another kind."""
    if isinstance(error, boto.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def translate(error: BaseException, what: str, location: S3Location) -> StoreError:
    """Return our error for `error`; its text names the place and holds no secret."""
    if isinstance(error, boto.ClientError):
        return _of_service(error, what, location)
    if isinstance(error, _CREDENTIALS):
        return StoreRefusedError(f"{location}: there are no credentials ({error}); {_NO_KEYS}")
    if isinstance(error, _UNUSABLE):
        return StoreRefusedError(f"{location}: {error}; correct the bucket's URL")
    if _is_certificate(error):
        return StoreRefusedError(
            f"{location}: its certificate is not trusted ({error});"
            " name its authority with ?ca-certs=FILE in the bucket's URL"
        )
    return StoreError(f"{location}: {what}: {error or type(error).__name__}")


def _of_service(error: boto.ClientError, what: str, location: S3Location) -> StoreError:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = str(error.response.get("Error", {}).get("Message", "")).strip()
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


def _is_certificate(error: BaseException | None) -> bool:
    """Say whether a certificate is at the bottom of this."""
    for _ in range(_DEEPEST):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, ssl.SSLCertVerificationError)
