"""From a volume's setting to a store: which kind, and what is wrapped around it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeAlias

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.base import ObjectDamagedError, ObjectMissingError, ObjectStore
from jfsd.object.limit import LimitedStore, RateLimit, mbps
from jfsd.object.local import LocalStore
from jfsd.object.retry import RetryingStore, RetryPolicy
from jfsd.object.shards import ShardedStore, shard_buckets

STORAGES = ("file", "s3", "minio")
UUID_OBJECT = "juicefs_uuid"
PATIENCE_PER_RETRY_S = 12.0
"""A call is tried at least so long for each of its retries: two minutes for the usual ten."""

_MAX_THREADS = 32

_Keys: TypeAlias = tuple[str, str, str]
"""Access key, secret key, session token."""


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
    retry_deadline_s: float | None = None,
    max_uploads: int = 20,
    max_downloads: int = 200,
    upload_limit_mbps: float = 0,
    download_limit_mbps: float = 0,
    environ: Mapping[str, str] = os.environ,
) -> ObjectStore:
    """Return the store of a volume; nothing is connected before the first call.

    From the outside in: encryption (once, whatever is repeated below), limits of bandwidth
    (their wait is no part of a timeout), retries, shards, the store itself.

    Raises:
        RefusedError: A storage that is not implemented, a bucket or key that does not parse.
    """
    keys = (access_key, secret_key, session_token)
    connections = max_uploads + max_downloads
    timeout_s = max(get_timeout_s, put_timeout_s)
    stores = [
        _open_one(storage.lower(), each, keys, connections, timeout_s, environ)
        for each in shard_buckets(bucket, shards)
    ]
    store: ObjectStore = stores[0] if len(stores) == 1 else ShardedStore(stores)
    deadline_s = _deadline_s(io_retries, retry_deadline_s)
    policy = RetryPolicy(io_retries, deadline_s, get_timeout_s, put_timeout_s)
    store = RetryingStore(store, policy)
    upload, download = mbps(upload_limit_mbps), mbps(download_limit_mbps)
    store = LimitedStore(store, RateLimit(upload), RateLimit(download))
    if encrypt_key:
        from jfsd.object.encrypt import EncryptedStore  # noqa: PLC0415 - not every volume
        from jfsd.object.envelope import Envelope  # noqa: PLC0415

        store = EncryptedStore(store, Envelope(encrypt_key, passphrase, encrypt_algo))
    return store


def retune(
    store: ObjectStore,
    *,
    get_timeout_s: float,
    put_timeout_s: float,
    io_retries: int | None,
    retry_deadline_s: float | None = None,
    upload_limit_mbps: float,
    download_limit_mbps: float,
) -> None:
    """Change what can change while the store of `open_store` is used; calls under way obey."""
    layer: object = store
    while layer is not None:
        if isinstance(layer, LimitedStore):
            layer.upload.rate = mbps(upload_limit_mbps)
            layer.download.rate = mbps(download_limit_mbps)
        elif isinstance(layer, RetryingStore):
            policy = layer.policy
            policy.retries = io_retries
            policy.deadline_s = _deadline_s(io_retries, retry_deadline_s)
            policy.get_timeout_s, policy.put_timeout_s = get_timeout_s, put_timeout_s
        layer = getattr(layer, "inner", None)


def _deadline_s(io_retries: int | None, asked_s: float | None) -> float:
    """Return how long a call is tried at least: as asked, else by the number of its retries."""
    return (io_retries or 0) * PATIENCE_PER_RETRY_S if asked_s is None else asked_s


async def write_uuid(store: ObjectStore, volume_name: str, uuid: str) -> None:
    """Mark the bucket as that of the volume."""
    await store.put(f"{volume_name}/{UUID_OBJECT}", uuid.encode())


async def check_volume(store: ObjectStore, volume_name: str, uuid: str) -> bool:
    """Return True if the bucket is the volume's, False if it does not say whose it is.

    Raises:
        RefusedError: It belongs to another volume, or to one with another key (STORE_REFUSED).
        StoreError: The mark cannot be read.
    """
    mark = f"{volume_name}/{UUID_OBJECT}"
    try:
        found = (await store.get(mark)).decode("ascii", "replace").strip()
    except ObjectMissingError:
        return False
    except ObjectDamagedError as error:
        raise RefusedError(
            ExitCode.STORE_REFUSED,
            mark,
            "it does not open with the volume's encryption key",
            "correct the volume's bucket or its key",
        ) from error
    if found != uuid:
        raise RefusedError(
            ExitCode.STORE_REFUSED,
            f"{mark} {found[:40]!r}",
            f"the bucket belongs to another volume, this one is {uuid}",
            "correct the volume's bucket, or mount the volume that it belongs to",
        )
    return True


def _open_one(
    storage: str,
    bucket: str,
    keys: _Keys,
    connections: int,
    timeout_s: float,
    environ: Mapping[str, str],
) -> ObjectStore:
    if storage == "file":
        return _open_directory(bucket, connections)
    # Only for such a volume: it is a part of the pause of a restart.
    from jfsd.object.s3 import Credentials, S3Store  # noqa: PLC0415
    from jfsd.object.s3url import parse_minio, parse_s3  # noqa: PLC0415

    if storage == "s3":
        place = parse_s3(bucket, environ)
    elif storage == "minio":
        place = parse_minio(bucket, environ)
        keys = _minio_keys(keys, environ)
    else:
        raise RefusedError(
            ExitCode.VOLUME_UNSUPPORTED,
            f"storage {storage!r}",
            f"jfsd knows {', '.join(STORAGES)}",
            "use juicefs for this volume",
        )
    return S3Store(place, Credentials(*keys), connections=connections, timeout_s=timeout_s)


def _open_directory(bucket: str, connections: int) -> LocalStore:
    if not bucket.startswith("/"):
        raise RefusedError(
            ExitCode.USAGE,
            f"bucket {bucket!r}",
            "with storage file it must be an absolute directory",
            "begin it with /",
        )
    return LocalStore(bucket, threads=min(connections, _MAX_THREADS))


def _minio_keys(given: _Keys, environ: Mapping[str, str]) -> _Keys:
    if given[0]:
        return given
    return environ.get("MINIO_ACCESS_KEY", ""), environ.get("MINIO_SECRET_KEY", ""), given[2]
