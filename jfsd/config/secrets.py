"""How secrets lie in a volume's setting (format.md §13.4).

This is obfuscation: the key is made from the UUID that stands beside the secret.
"""

from __future__ import annotations

import base64
import binascii
import os

_NONCE_BYTES = 12
_TAG_BYTES = 16


def seal(secret: str, uuid: str) -> str:
    """Return the stored form of a secret, different at every call; "" stays ""."""
    # The cipher costs 30 ms to import, and most volumes have no secret.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    if not secret:
        return ""
    nonce = os.urandom(_NONCE_BYTES)
    sealed = nonce + AESGCM(_key(uuid)).encrypt(nonce, secret.encode(), None)
    return base64.b64encode(sealed).decode()


def unseal(stored: str, uuid: str) -> str:
    """Return the secret of a stored form; "" stays "".

    Raises:
        ValueError: Damaged, or sealed for another UUID.
    """
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    if not stored:
        return ""
    try:
        sealed = base64.b64decode(stored, validate=True)
    except binascii.Error as error:
        raise ValueError("is not base64") from error
    if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
        raise ValueError("is too short")
    try:
        plain = AESGCM(_key(uuid)).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
    except InvalidTag as error:
        raise ValueError("does not decrypt with this volume's UUID") from error
    return plain.decode()


def _key(uuid: str) -> bytes:
    import hashlib  # noqa: PLC0415 - loads OpenSSL's, and most volumes have no secret

    return hashlib.md5(uuid.encode(), usedforsecurity=False).digest()
