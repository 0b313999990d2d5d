"""The encrypted form of an object (format.md §12.4).

wrapped key length (2) ‖ nonce length (1) ‖ wrapped key ‖ nonce ‖ ciphertext ‖ tag (16).
Every object has its own data key, wrapped with the volume's RSA key. Pure CPU work that
releases the GIL; run it in a thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TypeAlias

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import ObjectDamagedError
from jfsd.types import ReadableBuffer

Aead: TypeAlias = AESGCM | ChaCha20Poly1305

_HEAD = struct.Struct(">HB")
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_CIPHERS: dict[str, Callable[[bytes], Aead]] = {
    "": AESGCM,
    "aes256gcm-rsa": AESGCM,
    "chacha20-rsa": ChaCha20Poly1305,
}
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"keys")


class Envelope:
    """Seals and opens objects with one RSA key. Holds the key in memory, shows it nowhere.

    Raises (on construction):
        RefusedError: Unknown algorithm, unreadable key, or missing or wrong passphrase.
    """

    def __init__(self, pem: str, passphrase: str | None, algorithm: str) -> None:
        if algorithm not in _CIPHERS:
            raise RefusedError(
                ExitCode.VOLUME_UNSUPPORTED,
                f"encryption {algorithm!r}",
                "jfsd knows aes256gcm-rsa and chacha20-rsa",
                "use juicefs for this volume",
            )
        self.algorithm = algorithm or "aes256gcm-rsa"
        self._cipher = _CIPHERS[algorithm]
        self._private = load_rsa_key(pem, passphrase)
        self._public = self._private.public_key()
        wrapped_bytes = self._private.key_size // 8
        self._body_at = _HEAD.size + wrapped_bytes + _NONCE_BYTES
        self._head = _HEAD.pack(wrapped_bytes, _NONCE_BYTES)

    def __repr__(self) -> str:
        return f"<Envelope {self.algorithm} RSA-{self._private.key_size}>"

    @property
    def overhead(self) -> int:
        """How many bytes longer than its content an object of ours is."""
        return self._body_at + _TAG_BYTES

    def seal(self, content: ReadableBuffer) -> bytearray:
        """Return `content` as an encrypted object."""
        key, nonce = os.urandom(_KEY_BYTES), os.urandom(_NONCE_BYTES)
        sealed = bytearray(len(content) + self.overhead)
        head = self._head + self._public.encrypt(key, _OAEP) + nonce
        sealed[: self._body_at] = head
        with memoryview(sealed) as whole, whole[self._body_at :] as body:
            self._cipher(key).encrypt_into(nonce, content, None, body)
        return sealed

    def open(self, sealed: ReadableBuffer, name: str) -> bytes:
        """Return the content of an encrypted object; `name` is for the error.

        Raises:
            ObjectDamagedError: Too short, altered, or sealed with another key.
        """
        view = memoryview(sealed)
        try:
            wrapped_bytes, nonce_bytes = _HEAD.unpack_from(view)
            nonce_at = _HEAD.size + wrapped_bytes
            body_at = nonce_at + nonce_bytes
            if len(view) < body_at + _TAG_BYTES:
                raise _damaged(name)
            key = self._private.decrypt(bytes(view[_HEAD.size : nonce_at]), _OAEP)
            return self._cipher(key).decrypt(bytes(view[nonce_at:body_at]), view[body_at:], None)
        except (struct.error, ValueError, InvalidTag) as error:
            raise _damaged(name) from error


def load_rsa_key(pem: str, passphrase: str | None) -> rsa.RSAPrivateKey:
    """Return the RSA key in `pem`: PKCS#1 or PKCS#8, plain or encrypted with `passphrase`.

    A passphrase that the key does not need is ignored.

    Raises:
        RefusedError: Not such a key, or the passphrase is missing or wrong.
    """
    encrypted = "ENCRYPTED" in pem
    if encrypted and not passphrase:
        raise _key_refused(
            "it is protected by a passphrase", "give it in the environment as JFS_RSA_PASSPHRASE"
        )
    password = passphrase.encode() if encrypted and passphrase else None
    try:
        key = serialization.load_pem_private_key(pem.encode(), password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise _key_refused(
                "it does not open with this passphrase", "correct JFS_RSA_PASSPHRASE"
            ) from error
        raise _key_refused("it is not a private key in PEM form", "give an RSA key") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise _key_refused("it is not an RSA key", "give an RSA key")
    return key


def _key_refused(rule: str, mend: str) -> RefusedError:
    return RefusedError(ExitCode.USAGE, "the volume's encryption key", rule, mend)


def _damaged(name: str) -> ObjectDamagedError:
    return ObjectDamagedError(
        f"object {name} cannot be decrypted: it is damaged or was written with another key"
    )
