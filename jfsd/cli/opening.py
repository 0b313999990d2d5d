"""Metadata and object store of a volume, for commands that end soon."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from jfsd import log
from jfsd.config.credentials import check_complete, read_credentials, with_credentials
from jfsd.config.volume import Volume
from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.connection import Connection
from jfsd.meta.url import parse_meta_url
from jfsd.object.base import ObjectStore

DEADLINE_S = 20.0
"""A command waits so long for an answer; a mount waits longer."""


def be_quiet() -> None:
    """Log errors only, unless --log-level was given: what is tried again is for those who ask."""
    if not logging.getLogger().handlers:
        log.configure("error")


@contextlib.asynccontextmanager
async def opened_meta(
    meta_url: str, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Connection]:
    """Yield a connection to the metadata; it is closed at the end.

    Raises:
        RefusedError: The URL is wrong (USAGE), or the server does not answer
            (META_UNREACHABLE).
    """
    be_quiet()
    url = parse_meta_url(meta_url, with_credentials(environ))
    connection = Connection(url, deadline_s=DEADLINE_S)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def opened_store(volume: Volume, *, create: bool = True) -> AsyncIterator[ObjectStore]:
    """Yield the volume's object store, which exists and can be reached.

    A directory is created if it is not there, unless `create` is false.

    Raises:
        RefusedError: The directory cannot be made, or the address does not parse.
        StoreError: The store does not answer, or refuses us.
    """
    from jfsd.object.open import open_store  # noqa: PLC0415 (half a second for S3)
    from jfsd.object.shards import shard_buckets  # noqa: PLC0415

    check_complete(volume)
    if volume.storage == "file" and create:
        for directory in shard_buckets(volume.bucket, volume.shards):
            _make_directory(directory)
    store = open_store(
        volume.storage,
        volume.bucket,
        volume.access_key,
        volume.secret_key,
        volume.session_token,
        shards=volume.shards,
        encrypt_key=volume.encrypt_key,
        encrypt_algo=volume.encrypt_algo,
        passphrase=read_credentials().rsa_passphrase,
        io_retries=2,
        retry_deadline_s=10,
    )
    try:
        await store.check()
        yield store
    finally:
        await store.close()


def _make_directory(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RefusedError(
            ExitCode.STORE_REFUSED,
            f"--bucket {path}",
            f"cannot be created ({error.strerror})",
            "take another directory or mend its parent's mode",
        ) from error
