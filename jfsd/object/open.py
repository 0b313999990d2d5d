"""From a volume's setting to a store: which kind, and what is wrapped around it."""

from __future__ import annotations

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import ObjectMissingError, ObjectStore
from jfsd.object.limit import LimitedStore, RateLimit, mbps
from jfsd.object.local import LocalStore
from jfsd.object.retry import RetryingStore, RetryPolicy
from jfsd.object.shards import ShardedStore, shard_buckets

UUID_OBJECT = "juicefs_uuid"


def open_store(
    storage: str,
    bucket: str,
    access_key: str = "",
    secret_key: str = "",
    session_token: str = "",
    *,
    shards: int = 0,
    encrypt_key: str = "",
    encrypt_algo: str = "",
    passphrase: str | None = None,
    get_timeout_s: float = 60.0,
    put_timeout_s: float = 60.0,
    io_retries: int | None = 10,
    retry_deadline_s: float = 120.0,
    max_uploads: int = 20,
    max_downloads: int = 200,
    upload_limit_mbps: float = 0,
    download_limit_mbps: float = 0,
) -> ObjectStore:
    """Return the store of a volume; nothing is connected before the first call.

    From the outside in: encryption (once, whatever is repeated below), retries, limits
    of bandwidth (each attempt pays), shards, the store itself.

    Raises:
        RefusedError: A storage that is not implemented, a bucket or key that does not parse.
    """
    stores = [_open_one(storage, each) for each in shard_buckets(bucket, shards)]
    store: ObjectStore = stores[0] if len(stores) == 1 else ShardedStore(stores)
    if upload_limit_mbps or download_limit_mbps:
        upload, download = mbps(upload_limit_mbps), mbps(download_limit_mbps)
        store = LimitedStore(store, RateLimit(upload), RateLimit(download))
    policy = RetryPolicy(io_retries, retry_deadline_s, get_timeout_s, put_timeout_s)
    store = RetryingStore(store, policy)
    if encrypt_key:
        from jfsd.object.encrypt import EncryptedStore  # noqa: PLC0415 - not every volume
        from jfsd.object.envelope import Envelope  # noqa: PLC0415

        store = EncryptedStore(store, Envelope(encrypt_key, passphrase, encrypt_algo))
    return store


async def write_uuid(store: ObjectStore, volume_name: str, uuid: str) -> None:
    """Mark the bucket as that of the volume."""
    await store.put(f"{volume_name}/{UUID_OBJECT}", uuid.encode())


async def check_volume(store: ObjectStore, volume_name: str, uuid: str) -> None:
    """Return if the bucket is the volume's, or does not say whose it is.

    Raises:
        RefusedError: It belongs to another volume (STORE_REFUSED).
    """
    try:
        found = (await store.get(f"{volume_name}/{UUID_OBJECT}")).decode("ascii", "replace").strip()
    except ObjectMissingError:
        return
    if found != uuid:
        raise RefusedError(
            ExitCode.STORE_REFUSED,
            f"{volume_name}/{UUID_OBJECT} {found[:40]!r}",
            f"the bucket belongs to another volume, this one is {uuid}",
            "correct the bucket with `juicefs config`, or mount the volume it belongs to",
        )


def _open_one(storage: str, bucket: str) -> ObjectStore:
    if storage == "file":
        return LocalStore(bucket)
    raise RefusedError(
        ExitCode.VOLUME_UNSUPPORTED,
        f"storage {storage!r}",
        "is not one of file, s3, minio",
        "use a client that implements it",
    )
