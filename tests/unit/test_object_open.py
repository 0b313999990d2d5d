"""From a setting to a store."""

from __future__ import annotations

import pytest
from support.chunk_fakes import FakeStore

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import ObjectDamagedError
from jfsd.object.encrypt import EncryptedStore
from jfsd.object.limit import LimitedStore
from jfsd.object.local import LocalStore
from jfsd.object.open import check_volume, open_store, retune, write_uuid
from jfsd.object.retry import RetryingStore
from jfsd.object.s3 import S3Store, content_type
from jfsd.object.shards import ShardedStore

UUID = "0f8e6f5e-3a53-4a6e-8d2c-0b9a1c2d3e4f"


def layers(store):
    found = []
    while store is not None:
        found.append(store)
        store = getattr(store, "inner", None)
    return found


async def test_layers():
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    store = open_store("file", "/data%d/", shards=2, encrypt_key=pem.decode())
    kinds = [type(layer) for layer in layers(store)]
    assert kinds == [EncryptedStore, LimitedStore, RetryingStore, ShardedStore]
    assert [part.root for part in layers(store)[-1].shards] == ["/data0/", "/data1/"]
    await store.close()
    assert isinstance(layers(open_store("S3", "http://h/bkt", "a", "b"))[-1], S3Store)


@pytest.mark.parametrize(("retries", "deadline_s"), [(0, 0), (1, 12), (10, 120), (None, 0)])
async def test_the_number_of_retries_decides_how_long_a_store_is_waited_for(retries, deadline_s):
    _, retrying, _ = layers(open_store("file", "/data/", io_retries=retries))
    assert (retrying.policy.retries, retrying.policy.deadline_s) == (retries, deadline_s)
    assert retrying.policy.gives_up(0, 0.0) is (retries == 0)


async def test_what_is_live_can_be_changed():
    store = open_store("file", "/data/", io_retries=1, upload_limit_mbps=8)
    limited, retrying, _ = layers(store)
    assert limited.upload.rate == 1_000_000
    retune(
        store,
        get_timeout_s=1,
        put_timeout_s=2,
        io_retries=None,
        retry_deadline_s=3,
        upload_limit_mbps=0,
        download_limit_mbps=16,
    )
    assert (limited.upload.rate, limited.download.rate) == (0, 2_000_000)
    policy = retrying.policy
    assert (policy.retries, policy.deadline_s) == (None, 3)
    assert (policy.get_timeout_s, policy.put_timeout_s) == (1, 2)
    await store.close()


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    ("storage", "bucket", "code"),
    [
        ("oss", "x", ExitCode.VOLUME_UNSUPPORTED),
        ("", "x", ExitCode.VOLUME_UNSUPPORTED),
        ("file", "relative/", ExitCode.USAGE),
        ("s3", "ftp://x", ExitCode.USAGE),
        ("minio", "http://host", ExitCode.USAGE),
    ],
)
def test_what_cannot_be_opened_is_refused(storage, bucket, code):
    with pytest.raises(RefusedError) as refused:
        open_store(storage, bucket)
    assert refused.value.exit_code == code


def test_minio_keys_of_the_environment():
    environ = {"MINIO_ACCESS_KEY": "ak", "MINIO_SECRET_KEY": "sk"}
    credentials = layers(open_store("minio", "http://h/bkt", environ=environ))[-1]._credentials
    assert (credentials.access_key, credentials.secret_key) == ("ak", "sk")
    given = layers(open_store("minio", "http://h/bkt", "own", "key", environ=environ))[-1]
    assert given._credentials.access_key == "own"


@pytest.mark.promise(16)
def test_secrets_are_never_shown():
    store = open_store("s3", "http://h/bkt", "AKSECRET", "SKSECRET", "TOSECRET")
    for layer in layers(store):
        assert "SECRET" not in repr(layer) + str(layer)
    assert "SECRET" not in repr(layers(store)[-1]._credentials)


@pytest.mark.promise(16)
async def test_a_bucket_of_another_volume_is_refused():
    store = FakeStore()
    assert await check_volume(store, "v", UUID) is False
    await write_uuid(store, "v", UUID)
    assert store.objects == {"v/juicefs_uuid": UUID.encode()}
    assert await check_volume(store, "v", UUID) is True
    store.objects["v/juicefs_uuid"] = b"another\n"
    with pytest.raises(RefusedError) as refused:
        await check_volume(store, "v", UUID)
    assert refused.value.exit_code == ExitCode.STORE_REFUSED
    assert UUID in str(refused.value)
    assert "another" in str(refused.value)


@pytest.mark.promise(16)
async def test_a_bucket_with_another_key_is_refused():
    class Sealed(FakeStore):
        async def get(self, key, offset=0, length=None):
            raise ObjectDamagedError(f"object {key} cannot be decrypted")

    with pytest.raises(RefusedError, match="encryption key") as refused:
        await check_volume(Sealed(), "v", UUID)
    assert refused.value.exit_code == ExitCode.STORE_REFUSED


def test_content_types():
    assert content_type("v/chunks/0/0/1_0_5") == "application/octet-stream"
    assert content_type("v.json/chunks") == "application/octet-stream"
    assert content_type("v/meta/dump-2026.json.gz") == "application/gzip"
    assert content_type("v/a.txt") == "text/plain"


def test_local_store_has_a_plain_repr():
    assert repr(LocalStore("/x/")) == "<LocalStore /x/>"
