"""Signatures of S3 requests (AWS Signature Version 4), bodies unsigned.

The body is left out as the client library is told to do it, over plain HTTP too: hashing it
would be the third pass over a block, and its CRC-32C travels with it.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Mapping

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = "UNSIGNED-PAYLOAD"


class Signer:
    """Signs requests for one region with the keys of one account."""

    def __init__(
        self,
        region: str,
        access_key: str,
        secret_key: str,
        session_token: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._region = region
        self._access_key = access_key
        self._secret_key = secret_key
        self._token = session_token
        self._clock = clock
        self._second = -1
        self._moment = ""
        self._scope = ""
        self._key = b""

    def __repr__(self) -> str:
        return f"<Signer {self._region}>"

    def sign(
        self, method: str, path: str, query: str, headers: Mapping[str, str]
    ) -> dict[str, str]:
        """Return `headers` and those that sign the request.

        Args:
            method: GET, PUT, ...
            path: The path as it is sent, encoded once.
            query: The query as it is sent, encoded and in order of the names.
            headers: Names in small letters, `host` among them; all of them are signed.
        """
        self._tell_time()
        signed = {**headers, "x-amz-content-sha256": _UNSIGNED, "x-amz-date": self._moment}
        if self._token:
            signed["x-amz-security-token"] = self._token
        names = sorted(signed)
        lines = "\n".join(f"{name}:{' '.join(signed[name].split())}" for name in names)
        listed = ";".join(names)
        request = f"{method}\n{path}\n{query}\n{lines}\n\n{listed}\n{_UNSIGNED}"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"{_ALGORITHM}\n{self._moment}\n{self._scope}\n{digest}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        signed["authorization"] = (
            f"{_ALGORITHM} Credential={self._access_key}/{self._scope},"
            f" SignedHeaders={listed}, Signature={signature}"
        )
        return signed

    def _tell_time(self) -> None:
        """Set what depends on the time: the moment each second, the key each day."""
        second = int(self._clock())
        if second == self._second:
            return
        self._second = second
        self._moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        scope = f"{self._moment[:8]}/{self._region}/s3/aws4_request"
        if scope != self._scope:
            key = f"AWS4{self._secret_key}".encode()
            for part in scope.split("/"):
                key = hmac.digest(key, part.encode(), "sha256")
            self._scope, self._key = scope, key
