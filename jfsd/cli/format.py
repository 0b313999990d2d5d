"""`jfsd format`: create a volume, or change what may change of one that exists."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jfsd.cli.argv import hide
from jfsd.cli.options import flag_options
from jfsd.config.credentials import password_of, read_credentials
from jfsd.config.flags import Change, Value
from jfsd.config.formatflags import FORMAT_FLAGS
from jfsd.config.volume import Volume, new_volume, shown_bucket
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import names, replace

if TYPE_CHECKING:
    from jfsd.meta.connection import Connection
    from jfsd.object.base import ObjectStore

EPILOG = """\b
Examples:
  jfsd format redis://localhost/1 myvol --bucket /srv/objects
  ACCESS_KEY=... SECRET_KEY=... jfsd format redis://db.internal/1 myvol \\
      --storage s3 --bucket https://mybucket.s3.eu-central-1.amazonaws.com
  jfsd format redis://localhost/1 myvol --capacity 500G --trash-days 7
  JFS_RSA_PASSPHRASE=... jfsd format redis://localhost/2 secret \\
      --bucket /srv/objects --encrypt-rsa-key key.pem
"""

ROOT_BUCKET = "/var/lib/jfsd/objects/"
"""Where objects lie if root names no directory."""

_SETTING_FIELDS = frozenset(flag.field for flag in FORMAT_FLAGS if flag.field in names(Volume))


@click.command("format", epilog=EPILOG)
@click.argument("meta_url", metavar="META-URL")
@click.argument("name", metavar="NAME")
@flag_options(FORMAT_FLAGS)
def command(meta_url: str, name: str, **parameters: Value | None) -> None:
    """Create the volume NAME with its metadata at META-URL, and print its setting.

    If the volume exists, the given options are changed; those that the layout of its
    data depends on are refused.
    """
    hide(
        [
            password_of(meta_url),
            *(str(parameters[key] or "") for key in ("access_key", "secret_key", "session_token")),
        ]
    )
    given = {field: value for field, value in parameters.items() if value is not None}
    asked = _asked_fields(given)
    _check_together(asked)
    volume = asyncio.run(
        _format(
            meta_url,
            name,
            asked,
            force=bool(given.get("force")),
            update=not given.get("no_update"),
        )
    )
    click.echo(json.dumps(volume.public(), indent=2, ensure_ascii=False))


async def _format(
    meta_url: str, name: str, asked: Mapping[str, Any], *, force: bool, update: bool
) -> Volume:
    """Do it and return the volume as it then is."""
    from jfsd.cli.opening import opened_meta  # noqa: PLC0415
    from jfsd.meta import format as meta_format  # noqa: PLC0415

    draft = _checked(replace(new_volume(name, "file", ""), **asked))
    async with opened_meta(meta_url) as connection:
        seen = await meta_format.stored_setting(connection)
        if not seen:
            if not force:
                await _refuse_foreign(connection)
            return await _create(connection, draft, force=force)
        existing = Volume.parse(seen)
        _check_same(existing, name, asked)
        if not update:
            return existing
        volume = _updated(existing, asked)
        if _store_of(volume) != _store_of(existing):
            await _check_moved(volume, force=force)
        if volume != existing:
            await meta_format.store_volume(connection, volume, seen)
        return volume


async def _create(connection: Connection, draft: Volume, *, force: bool) -> Volume:
    """Claim the bucket, then make the database a volume: what fails leaves no volume."""
    from jfsd.cli.opening import opened_store  # noqa: PLC0415
    from jfsd.meta import format as meta_format  # noqa: PLC0415

    volume = replace(draft, bucket=_bucket_of(draft))
    async with opened_store(volume) as store:
        if not force:
            await _refuse_used(store, volume)
        await _probe(store, volume)
        await store.put(f"{volume.name}/juicefs_uuid", volume.uuid.encode())
    await meta_format.store_volume(connection, volume, b"")
    return volume


async def _probe(store: ObjectStore, volume: Volume) -> None:
    """Write, read and remove an object; what cannot be done is refused before anything is made."""
    key, body = f"{volume.name}/testing/jfsd-{volume.uuid}", os.urandom(100)
    await store.put(key, body)
    try:
        if await store.get(key) != body:
            raise RefusedError(
                ExitCode.STORE_REFUSED,
                shown_bucket(volume.bucket),
                "returns other bytes than were stored",
                "mend the store or take another",
            )
    finally:
        await store.delete(key)


async def _refuse_used(store: ObjectStore, volume: Volume) -> None:
    """Return if the bucket has no objects under the volume's name."""
    async for found in store.list(f"{volume.name}/"):
        if found.key.startswith(f"{volume.name}/testing/"):
            continue
        raise RefusedError(
            ExitCode.STORE_REFUSED,
            shown_bucket(volume.bucket),
            f"holds objects of another volume named {volume.name} ({found.key})",
            "take another name or bucket, or give --force to mix them",
        )


async def _check_moved(volume: Volume, *, force: bool) -> None:
    """Return if the store that an existing volume shall use now holds that volume's objects."""
    from jfsd.cli.opening import opened_store  # noqa: PLC0415
    from jfsd.object.base import ObjectMissingError  # noqa: PLC0415

    async with opened_store(volume, create=force) as store:
        try:
            found = (await store.get(f"{volume.name}/juicefs_uuid")).decode(errors="replace")
        except ObjectMissingError:
            found = ""
        if found.strip() != volume.uuid and not force:
            raise RefusedError(
                ExitCode.STORE_REFUSED,
                shown_bucket(volume.bucket),
                f"holds volume {found!r}" if found else f"has no objects of volume {volume.name}",
                "name the bucket with this volume's objects, or give --force",
            )
        await _probe(store, volume)
        await store.put(f"{volume.name}/juicefs_uuid", volume.uuid.encode())


async def _refuse_foreign(connection: Connection) -> None:
    from jfsd.meta.format import foreign_key  # noqa: PLC0415

    key = await foreign_key(connection)
    if key is not None:
        raise RefusedError(
            ExitCode.VOLUME_CONFLICT,
            connection.url.redacted(),
            f"holds other things already (key {os.fsdecode(key)!r})",
            "take an empty database, or give --force to share it",
        )


def _asked_fields(given: Mapping[str, Value]) -> dict[str, Any]:
    """Return the fields of `Volume` that the options set."""
    fields: dict[str, Any] = {
        field: value for field, value in given.items() if field in _SETTING_FIELDS
    }
    credentials = read_credentials(
        str(given.get("access_key_file", "")),
        str(given.get("secret_key_file", "")),
        str(given.get("session_token_file", "")),
    )
    for field in ("access_key", "secret_key", "session_token"):
        if not fields.get(field) and getattr(credentials, field):
            fields[field] = getattr(credentials, field)
    key_file = str(given.get("encrypt_rsa_key", ""))
    if key_file:
        fields["encrypt_key"] = _read_rsa_key(key_file, credentials.rsa_passphrase)
    return fields


def _check_together(asked: Mapping[str, Any]) -> None:
    """Return if the options do not contradict each other."""
    if asked.get("storage", "file") != "file" and not asked.get("bucket"):
        raise RefusedError(
            ExitCode.USAGE,
            f"--storage {asked['storage']}",
            "needs a bucket",
            "give --bucket https://HOST/BUCKET",
        )
    sharded, template = asked.get("shards", 0) > 1, "%d" in asked.get("bucket", "")
    if sharded and not template:
        raise RefusedError(
            ExitCode.USAGE,
            f"--shards {asked['shards']}",
            "needs one bucket for each",
            "write %d in --bucket where their numbers stand",
        )
    if asked.get("encrypt_algo") and not asked.get("encrypt_key"):
        raise RefusedError(
            ExitCode.USAGE,
            f"--encrypt-algo {asked['encrypt_algo']}",
            "needs a key",
            "give --encrypt-rsa-key FILE",
        )


def _checked(draft: Volume) -> Volume:
    """Return the draft if the format allows its values; they came from the command line."""
    try:
        draft.check_format()
    except RefusedError as error:
        raise RefusedError(ExitCode.USAGE, error.value, error.rule, "give another value") from None
    if draft.enable_acl:
        return replace(draft, min_client_version="1.2.0-A")
    return draft


def _check_same(existing: Volume, name: str, asked: Mapping[str, Any]) -> None:
    """Return if nothing is asked that the volume's data would contradict."""
    if existing.name != name:
        raise _conflict(existing, f"is there already, not {name!r}", "use its name")
    for flag in FORMAT_FLAGS:
        field = "encrypt_key" if flag.field == "encrypt_rsa_key" else flag.field
        if flag.change is not Change.FIXED or field not in asked:
            continue
        before = getattr(existing, field)
        if before != asked[field]:
            shown = "another key" if field == "encrypt_key" else f"{asked[field]} (it is {before})"
            raise _conflict(
                existing, f"{flag.option} cannot become {shown}", "leave the option out"
            )
    if asked.get("enable_acl") is False and existing.enable_acl:
        raise _conflict(existing, "ACLs cannot be switched off", "leave the option out")


def _updated(existing: Volume, asked: Mapping[str, Any]) -> Volume:
    fields = dict(asked)
    if "bucket" in fields or "storage" in fields:
        storage = fields.get("storage", existing.storage)
        bucket = fields.get("bucket", existing.bucket)
        fields["bucket"] = _bucket_of(replace(existing, storage=storage, bucket=bucket))
    volume = replace(existing, **fields)
    if volume.enable_acl and not existing.enable_acl:
        volume = replace(volume, min_client_version=_at_least(volume.min_client_version))
    return volume


def _at_least(version: str) -> str:
    """Return the version gate, raised to the first release with ACLs."""
    from jfsd.config.version import parse_version  # noqa: PLC0415

    gate = "1.2.0-A"
    return version if version and parse_version(version) >= parse_version(gate) else gate


def _store_of(volume: Volume) -> tuple[str, ...]:
    keys = (volume.access_key, volume.secret_key, volume.session_token)
    return (volume.storage, volume.bucket, *keys)


def _conflict(existing: Volume, rule: str, mend: str) -> RefusedError:
    return RefusedError(ExitCode.VOLUME_CONFLICT, f"volume {existing.name}", rule, mend)


def _bucket_of(volume: Volume) -> str:
    """Return the bucket in the form that the setting stores."""
    if volume.storage != "file":
        return volume.bucket
    path = volume.bucket or _default_directory()
    # The reference joins bucket and key as strings, so the slash at the end is needed.
    return str(Path(path).expanduser().absolute()).rstrip("/") + "/"


def _default_directory() -> str:
    return ROOT_BUCKET if os.geteuid() == 0 else "~/.local/share/jfsd/objects/"


def _read_rsa_key(path: str, passphrase: str | None) -> str:
    """Return the PEM text of a private key that can be used.

    Raises:
        RefusedError: Unreadable, no RSA key, or the passphrase is wrong (USAGE).
    """
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    from jfsd.config.credentials import read_secret_file  # noqa: PLC0415

    option = "--encrypt-rsa-key"
    text = read_secret_file(option, path) + "\n"
    secret = passphrase.encode() if passphrase and "ENCRYPTED" in text else None
    try:
        key = load_pem_private_key(text.encode(), secret)
    except (ValueError, TypeError) as error:
        mend = "give a PEM private key, and its passphrase in JFS_RSA_PASSPHRASE"
        raise RefusedError(
            ExitCode.USAGE, f"{option} {path}", "holds no private key that opens", mend
        ) from error
    if not isinstance(key, RSAPrivateKey):
        raise RefusedError(ExitCode.USAGE, f"{option} {path}", "is no RSA key", "make an RSA key")
    return text
