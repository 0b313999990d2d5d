"""The object store of one mount: what the volume says, what the mount's options say otherwise.

It follows the volume's setting, and other options, while it is used: limits at once, another
bucket or other keys as soon as the store that they name has been found to be the volume's.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import NamedTuple

from jfsd.config.credentials import Credentials, check_complete, read_credentials
from jfsd.config.settings import MountSettings
from jfsd.config.volume import Volume, shown_bucket
from jfsd.errors import JfsdError
from jfsd.object.base import ObjectStore
from jfsd.object.open import check_volume, open_store, retune
from jfsd.object.switch import SwitchedStore
from jfsd.record import replace

log = logging.getLogger(__name__)


_RETRY_S = 30.0
_TRIAL_S = 10.0
_TRIAL_RETRIES = 1


class VolumeStore(SwitchedStore):
    """The store of a mounted volume. `follow` is told of each change of the setting."""

    def __init__(self, volume: Volume, settings: MountSettings) -> None:
        """Open the store; nothing is connected before the first call.

        Raises:
            RefusedError: Options or setting name no store that we can use.
        """
        self._volume = volume
        self._settings = settings
        self._address = _address(volume, settings)
        self._room = _Room.of(settings)
        self._switching: asyncio.Task[None] | None = None
        super().__init__(_open(volume, settings))

    @property
    def shown(self) -> str:
        """Kind and address of the store for people, without secrets."""
        storage, bucket, *_ = self._address
        return f"{storage} {shown_bucket(bucket)}"

    @property
    def settings(self) -> MountSettings:
        """The options that it goes by."""
        return self._settings

    async def check_ours(self, volume: Volume) -> None:
        """Return if the store answers and is the volume's.

        Raises:
            RefusedError: It belongs to another volume.
            StoreError: It does not answer, or refuses us.
        """
        await _check(self.inner, volume)

    def follow(self, volume: Volume) -> None:
        """Obey a changed setting: limits now, another store once it has been tried."""
        self._volume, settings = volume, self._settings
        retune(
            self.inner,
            get_timeout_s=settings.get_timeout_s,
            put_timeout_s=settings.put_timeout_s,
            io_retries=settings.io_retries,
            upload_limit_mbps=settings.upload_limit_mbps or volume.upload_limit_mbps,
            download_limit_mbps=settings.download_limit_mbps or volume.download_limit_mbps,
        )
        if self._switching is not None:
            self._switching.cancel()
        self._switching = asyncio.get_running_loop().create_task(
            self._follow(volume), name="store-switch"
        )

    def limit(self, settings: MountSettings) -> None:
        """Obey other limits, times and numbers of requests; address and keys stay."""
        self._settings = settings.taking(_ADDRESS, self._settings)
        self.follow(self._volume)

    async def move(self, settings: MountSettings) -> None:
        """Use the store that other options, or files of keys, name.

        Raises:
            RefusedError: It belongs to another volume, or an option makes no sense.
            StoreError: It does not answer, or refuses us. Nothing was changed.
        """
        volume, wanted = self._volume, self._settings.taking(_ADDRESS, settings)
        address = await asyncio.to_thread(_address, volume, wanted)
        if address != self._address:
            store = await _tried(volume, wanted)
            self._use(store, address, wanted)
        self._settings = wanted
        self.follow(self._volume)

    async def close(self) -> None:
        """Close all stores."""
        if self._switching is not None:
            self._switching.cancel()
            with suppress(asyncio.CancelledError):
                await self._switching
        await super().close()

    async def _follow(self, volume: Volume) -> None:
        """Go over to the store of a changed setting; stay with the old one until it answers."""
        while True:
            try:
                settings = self._settings
                address = await asyncio.to_thread(_address, volume, settings)
                if address == self._address and self._room.covers(_Room.of(settings)):
                    return
                store = await _tried(volume, settings)
            except JfsdError as error:
                log.error("the volume's new store is not used: %s", error)  # noqa: TRY400
                await asyncio.sleep(_RETRY_S)
                continue
            self._use(store, address, settings)
            return

    def _use(self, store: ObjectStore, address: tuple[str, ...], settings: MountSettings) -> None:
        if address[1] != self._address[1]:
            log.info("objects are in %s from now on", address[1])
        self._address, self._room = address, _Room.of(settings)
        self.switch(store)


_ADDRESS = ("storage", "bucket", "access-key-file", "secret-key-file", "session-token-file")
"""Options that make a store another one."""


def same_address(one: MountSettings, other: MountSettings) -> bool:
    """Return whether both name the same store; what is in files of keys does not count."""
    return one.taking(_ADDRESS, other) == one


def with_address(settings: MountSettings, other: MountSettings) -> MountSettings:
    """Return the settings with the store that `other` names."""
    return settings.taking(_ADDRESS, other)


async def try_store(volume: Volume, settings: MountSettings) -> None:
    """Return if the store that the settings name is the volume's; an answer comes soon.

    Raises:
        RefusedError: It belongs to another volume, or an option makes no sense.
        StoreError: It does not answer, or refuses us.
    """
    quick = replace(
        settings,
        io_retries=min(settings.io_retries, _TRIAL_RETRIES),
        get_timeout_s=min(settings.get_timeout_s, _TRIAL_S),
        put_timeout_s=min(settings.put_timeout_s, _TRIAL_S),
    )
    await (await _tried(volume, quick)).close()


class _Room(NamedTuple):
    """What a client of a store is made for: so many requests, so long an answer."""

    requests: int
    timeout_s: float

    @classmethod
    def of(cls, settings: MountSettings) -> _Room:
        return cls(
            settings.max_uploads + settings.max_downloads,
            max(settings.get_timeout_s, settings.put_timeout_s),
        )

    def covers(self, other: _Room) -> bool:
        """Return whether a client made for this is enough for `other`."""
        return other.requests <= self.requests and other.timeout_s <= self.timeout_s


def _address(volume: Volume, settings: MountSettings) -> tuple[str, ...]:
    """Return what makes a store another one: kind, bucket, keys."""
    volume = _credentials(settings).over(volume)
    keys = (volume.access_key, volume.secret_key, volume.session_token)
    return (settings.storage or volume.storage, settings.bucket or volume.bucket, *keys)


def _credentials(settings: MountSettings) -> Credentials:
    return read_credentials(
        settings.access_key_file, settings.secret_key_file, settings.session_token_file
    )


def _open(volume: Volume, settings: MountSettings) -> ObjectStore:
    credentials = _credentials(settings)
    volume = credentials.over(volume)
    check_complete(volume)
    return open_store(
        *_address(volume, settings),
        shards=volume.shards,
        encrypt_key=volume.encrypt_key,
        encrypt_algo=volume.encrypt_algo,
        passphrase=credentials.rsa_passphrase,
        get_timeout_s=settings.get_timeout_s,
        put_timeout_s=settings.put_timeout_s,
        io_retries=settings.io_retries,
        max_uploads=settings.max_uploads,
        max_downloads=settings.max_downloads,
        upload_limit_mbps=settings.upload_limit_mbps or volume.upload_limit_mbps,
        download_limit_mbps=settings.download_limit_mbps or volume.download_limit_mbps,
    )


async def _tried(volume: Volume, settings: MountSettings) -> ObjectStore:
    """Return an open store that has been found to be the volume's."""
    store = _open(volume, settings)
    try:
        await _check(store, volume)
    except BaseException:
        await store.close()
        raise
    return store


async def _check(store: ObjectStore, volume: Volume) -> None:
    await store.check()
    await check_volume(store, volume.name, volume.uuid)
