"""Encrypted objects (format.md §12.4)."""

from __future__ import annotations

import functools

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chunk_fakes import FakeStore

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import ObjectDamagedError
from jfsd.object.encrypt import EncryptedStore
from jfsd.object.envelope import Envelope

ALGORITHMS = ("", "aes256gcm-rsa", "chacha20-rsa")


@functools.cache
def rsa_key(number=0):
    return rsa.generate_private_key(65537, 2048)


def pem(key=None, form=PrivateFormat.PKCS8, protection=None):
    protection = protection or NoEncryption()
    key = key or rsa_key()
    return key.private_bytes(serialization.Encoding.PEM, form, protection).decode()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@settings(max_examples=20, deadline=None)
@given(content=st.binary(max_size=300))
def test_what_is_sealed_opens_again(algorithm, content):
    envelope = Envelope(pem(), None, algorithm)
    sealed = envelope.seal(memoryview(content))
    assert len(sealed) == len(content) + envelope.overhead
    assert envelope.open(sealed, "k") == content
    assert len(content) < 8 or content not in bytes(sealed)


def test_layout():
    envelope = Envelope(pem(), None, "")
    assert envelope.overhead == 3 + 256 + 12 + 16
    sealed = envelope.seal(b"hello")
    assert sealed[:3] == b"\x01\x00\x0c"
    again = envelope.seal(b"hello")
    assert sealed[3:259] != again[3:259]
    assert sealed[259:271] != again[259:271]


@pytest.mark.parametrize("at", [0, 1, 2, 3, 100, 259, 270, 271, 275, -1])
def test_any_changed_byte_is_noticed(at):
    envelope = Envelope(pem(), None, "")
    sealed = envelope.seal(b"some content")
    sealed[at] ^= 1
    with pytest.raises(ObjectDamagedError, match="v/key"):
        envelope.open(sealed, "v/key")


@pytest.mark.parametrize("length", [0, 1, 2, 3, 200, 271, 286])
def test_a_cut_object_is_noticed(length):
    envelope = Envelope(pem(), None, "")
    with pytest.raises(ObjectDamagedError):
        envelope.open(envelope.seal(b"x")[:length], "v/key")


def test_another_key_does_not_open_it():
    sealed = Envelope(pem(), None, "").seal(b"x")
    with pytest.raises(ObjectDamagedError, match="another key"):
        Envelope(pem(rsa_key(1)), None, "").open(sealed, "v/key")
    with pytest.raises(ObjectDamagedError):
        Envelope(pem(), None, "chacha20-rsa").open(sealed, "v/key")


@pytest.mark.parametrize("form", [PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8])
@pytest.mark.parametrize("protected", [False, True])
def test_forms_of_keys(form, protected):
    sealed = Envelope(pem(), None, "").seal(b"x")
    protection = BestAvailableEncryption(b"pass") if protected else NoEncryption()
    text = pem(form=form, protection=protection)
    assert Envelope(text, "pass", "").open(sealed, "k") == b"x"


@pytest.mark.promise(16)
@pytest.mark.parametrize("form", [PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8])
@pytest.mark.parametrize(
    ("passphrase", "word"), [(None, "environment"), ("", "environment"), ("no", "correct")]
)
def test_a_missing_or_wrong_passphrase_is_refused(form, passphrase, word):
    text = pem(form=form, protection=BestAvailableEncryption(b"pass"))
    with pytest.raises(RefusedError, match="JFS_RSA_PASSPHRASE") as refused:
        Envelope(text, passphrase, "")
    assert word in str(refused.value)


@pytest.mark.promise(16)
def test_other_keys_and_algorithms_are_refused():
    with pytest.raises(RefusedError, match="not a private key"):
        Envelope("nonsense", None, "")
    with pytest.raises(RefusedError, match="not an RSA key"):
        Envelope(pem(ec.generate_private_key(ec.SECP256R1())), None, "")
    for algorithm in ("sm4gcm", "rot13"):
        with pytest.raises(RefusedError, match=algorithm) as refused:
            Envelope(pem(), None, algorithm)
        assert refused.value.exit_code == ExitCode.VOLUME_UNSUPPORTED


async def test_store_gives_ranges_and_sizes_of_the_plaintext():
    inner = FakeStore()
    store = EncryptedStore(inner, Envelope(pem(), None, ""))
    await store.put("v/a", memoryview(b"0123456789"))
    assert b"0123456789" not in inner.objects["v/a"]
    assert await store.get("v/a") == b"0123456789"
    assert await store.get("v/a", 3, 4) == b"3456"
    assert await store.get("v/a", 8, 40) == b"89"
    assert await store.get("v/a", 5) == b"56789"
    assert await store.get("v/a", 50, 5) == b""
    assert (await store.head("v/a")).size == 10
    assert [found.size async for found in store.list("v/")] == [10]
    text = repr(store.envelope)
    assert "PRIVATE" not in text
    assert len(text) < 200
