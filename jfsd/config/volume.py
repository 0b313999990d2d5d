"""A volume's `setting`: the JSON object that makes a Redis database a volume (format.md §3).

`parse` reads what any client wrote, `to_json` writes what the reference reads. Fields
that we do not use are carried over; fields that the format does not know are dropped,
as the reference does. Secrets are decrypted here and shown by no repr.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from jfsd.config import secrets
from jfsd.config.version import JUICEFS_LEVEL, OWN_VERSION, parse_version
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, field

REMOVED = "removed"
"""What stands in the place of a secret that was stripped from a dump."""

STORAGES = ("file", "s3", "minio")
COMPRESSIONS = ("none", "lz4", "zstd")
ENCRYPT_ALGOS = ("aes256gcm-rsa", "chacha20-rsa")
NAME_RULE = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
MAX_SHARDS = 256
_MIN_BLOCK_KIB = 64
_MAX_BLOCK_KIB = 16384
_DEFAULT_TIERS = {"0": {"ID": 0, "StorageClass": "", "Tag": ""}}

_FIELDS: dict[str, type] = {
    "Name": str, "UUID": str, "Storage": str, "StorageClass": str, "Tiers": dict,
    "Bucket": str, "AccessKey": str, "SecretKey": str, "SessionToken": str, "BlockSize": int,
    "Compression": str, "Shards": int, "HashPrefix": bool, "Capacity": int, "Inodes": int,
    "EncryptKey": str, "EncryptAlgo": str, "KeyEncrypted": bool, "UploadLimit": int,
    "DownloadLimit": int, "TrashDays": int, "MetaVersion": int, "MinClientVersion": str,
    "MaxClientVersion": str, "DirStats": bool, "UserGroupQuota": bool, "EnableACL": bool,
    "RangerRestUrl": str, "RangerService": str, "ChangeLog": bool, "ChangeLogMaxAge": int,
    "ChangeLogMaxLines": int, "KerbConf": str,
}  # fmt: skip
"""Every field of the format in the reference's order."""

_ALWAYS = frozenset({"Name", "UUID", "Storage", "Bucket", "BlockSize", "TrashDays", "EnableACL"})
_SECRETS = ("SecretKey", "SessionToken", "EncryptKey")


class Volume(Record):
    """A volume's setting in clear, with units in the names.

    `raw` holds the fields as they were stored (exact names, secrets still sealed), so
    that an update changes nothing else.
    """

    name: str
    uuid: str
    storage: str
    bucket: str
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    block_size_bytes: int = 4 << 20
    compression: str = "none"
    shards: int = 0
    hash_prefix: bool = False
    capacity_bytes: int = 0
    inodes: int = 0
    encrypt_key: str = field(default="", repr=False)
    encrypt_algo: str = "aes256gcm-rsa"
    trash_days: int = 1
    dir_stats: bool = True
    user_group_quota: bool = False
    enable_acl: bool = False
    change_log: bool = False
    change_log_max_age_s: int = 0
    change_log_max_lines: int = 0
    meta_version: int = 1
    min_client_version: str = "1.1.0-A"
    max_client_version: str = ""
    upload_limit_mbps: int = 0
    download_limit_mbps: int = 0
    tiers: dict[str, Any] = field(default_factory=lambda: dict(_DEFAULT_TIERS))
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, setting: bytes) -> Volume:
        """Return the volume that a stored setting describes.

        Raises:
            RefusedError: No volume's setting (VOLUME_CONFLICT), or one that we cannot
                read (VOLUME_UNSUPPORTED).
        """
        raw = _typed_fields(setting)
        plain = {**_zeroes(), **raw}
        for name in _SECRETS:
            plain[name] = _unsealed(plain, name)
        volume = cls(
            name=plain["Name"],
            uuid=plain["UUID"],
            storage=plain["Storage"].lower(),
            bucket=plain["Bucket"],
            access_key=plain["AccessKey"],
            secret_key=plain["SecretKey"],
            session_token=plain["SessionToken"],
            block_size_bytes=plain["BlockSize"] << 10,
            compression=plain["Compression"].lower() or "none",
            shards=plain["Shards"],
            hash_prefix=plain["HashPrefix"],
            capacity_bytes=plain["Capacity"],
            inodes=plain["Inodes"],
            encrypt_key=plain["EncryptKey"],
            encrypt_algo=plain["EncryptAlgo"] or "aes256gcm-rsa",
            trash_days=plain["TrashDays"],
            dir_stats=plain["DirStats"],
            user_group_quota=plain["UserGroupQuota"],
            enable_acl=plain["EnableACL"],
            change_log=plain["ChangeLog"],
            change_log_max_age_s=plain["ChangeLogMaxAge"],
            change_log_max_lines=plain["ChangeLogMaxLines"],
            meta_version=plain["MetaVersion"],
            min_client_version=plain["MinClientVersion"],
            max_client_version=plain["MaxClientVersion"],
            upload_limit_mbps=plain["UploadLimit"],
            download_limit_mbps=plain["DownloadLimit"],
            tiers=plain["Tiers"],
            raw=raw,
        )
        volume.check_format()
        return volume

    def to_json(self) -> bytes:
        """Return the setting for Redis; secrets are sealed if there is any."""
        fields = self._fields(self._stored_secrets())
        return json.dumps(fields, indent=0, ensure_ascii=False).encode()

    def public(self) -> dict[str, Any]:
        """Return the setting as the reference shows it: secrets read `removed`."""
        return self._fields({name: REMOVED if self._secret(name) else "" for name in _SECRETS})

    def check_format(self) -> None:
        """Return if the setting is one that we understand; says nothing about reaching it.

        Raises:
            RefusedError: A value or feature that is not implemented (VOLUME_UNSUPPORTED).
        """
        if self.meta_version > 1:
            raise self._unsupported(f"MetaVersion {self.meta_version} is newer than 1")
        if not NAME_RULE.fullmatch(self.name):
            raise self._unsupported(f"name {self.name!r} breaks the rule {NAME_RULE.pattern}")
        kib = self.block_size_bytes >> 10
        if not _MIN_BLOCK_KIB <= kib <= _MAX_BLOCK_KIB or kib & (kib - 1):
            raise self._unsupported(f"BlockSize {kib} is no power of two from 64 to 16384 KiB")
        if self.compression not in COMPRESSIONS:
            raise self._unsupported(f"Compression {self.compression!r} is not implemented")
        if self.storage not in STORAGES:
            raise self._unsupported(f"Storage {self.storage!r} is not implemented")
        if not 0 <= self.shards <= MAX_SHARDS:
            raise self._unsupported(f"Shards {self.shards} is out of range 0 to {MAX_SHARDS}")
        if self.encrypt_key and self.encrypt_algo not in ENCRYPT_ALGOS:
            raise self._unsupported(f"EncryptAlgo {self.encrypt_algo!r} is not implemented")
        if self.trash_days < 0:
            raise self._unsupported(f"TrashDays {self.trash_days} is negative")

    def check_mountable(self, *, read_only: bool) -> None:
        """Return if this client may serve the volume.

        Raises:
            RefusedError: The version gates exclude us, or a mount that writes would
                have to keep a change log (VOLUME_UNSUPPORTED).
        """
        self._check_gate("MinClientVersion", self.min_client_version)
        self._check_gate("MaxClientVersion", self.max_client_version)
        self.check_served(read_only=read_only)

    def check_served(self, *, read_only: bool) -> None:
        """Return if a client that has mounted the volume may go on with this setting.

        The version gates count at mount only, as with the reference.

        Raises:
            RefusedError: A mount that writes would have to keep a change log
                (VOLUME_UNSUPPORTED).
        """
        if self.change_log and not read_only:
            raise RefusedError(
                ExitCode.VOLUME_UNSUPPORTED,
                f"volume {self.name}",
                "it keeps a change log, which jfsd cannot write",
                "mount it with --read-only, or switch the log off with `juicefs config`",
            )

    def _check_gate(self, name: str, text: str) -> None:
        if not text:
            return
        try:
            gate = parse_version(text)
        except ValueError as error:
            raise self._unsupported(f"{name} {text!r} {error}") from None
        low, high = (gate, OWN_VERSION) if name.startswith("Min") else (OWN_VERSION, gate)
        if high < low:
            raise self._unsupported(f"{name} is {text}, and jfsd is at level {JUICEFS_LEVEL}")

    def _unsupported(self, rule: str) -> RefusedError:
        return RefusedError(
            ExitCode.VOLUME_UNSUPPORTED,
            f"volume {self.name[:80]}",
            rule,
            "use a client that supports it, or another volume",
        )

    def _secret(self, name: str) -> str:
        return {
            "SecretKey": self.secret_key,
            "SessionToken": self.session_token,
            "EncryptKey": self.encrypt_key,
        }[name]

    def _stored_secrets(self) -> dict[str, str]:
        """Return the secrets sealed; one that did not change keeps its stored form."""
        before = Volume.parse_secrets(self.raw) if self.raw.get("UUID") == self.uuid else {}
        stored = {}
        for name in _SECRETS:
            secret = self._secret(name)
            if secret == REMOVED:
                stored[name] = secret
            elif secret and before.get(name) == secret:
                stored[name] = self.raw[name]
            else:
                stored[name] = secrets.seal(secret, self.uuid)
        return stored

    @staticmethod
    def parse_secrets(raw: Mapping[str, Any]) -> dict[str, str]:
        """Return the secrets that lie sealed in stored fields, in clear by field name."""
        if not raw.get("KeyEncrypted"):
            return {}
        plain = {**_zeroes(), **raw}
        return {name: _unsealed(plain, name) for name in _SECRETS}

    def _fields(self, stored_secrets: Mapping[str, str]) -> dict[str, Any]:
        """Return the fields in the reference's order, without those that may be absent."""
        ours = {
            "Name": self.name,
            "UUID": self.uuid,
            "Storage": self.storage,
            "Tiers": self.tiers,
            "Bucket": self.bucket,
            "AccessKey": self.access_key,
            "BlockSize": self.block_size_bytes >> 10,
            "Compression": self.compression,
            "Shards": self.shards,
            "HashPrefix": self.hash_prefix,
            "Capacity": self.capacity_bytes,
            "Inodes": self.inodes,
            "EncryptAlgo": self.encrypt_algo,
            "KeyEncrypted": any(stored_secrets.values()),
            "UploadLimit": self.upload_limit_mbps,
            "DownloadLimit": self.download_limit_mbps,
            "TrashDays": self.trash_days,
            "MetaVersion": self.meta_version,
            "MinClientVersion": self.min_client_version,
            "MaxClientVersion": self.max_client_version,
            "DirStats": self.dir_stats,
            "UserGroupQuota": self.user_group_quota,
            "EnableACL": self.enable_acl,
            "ChangeLog": self.change_log,
            "ChangeLogMaxAge": self.change_log_max_age_s,
            "ChangeLogMaxLines": self.change_log_max_lines,
            **stored_secrets,
        }
        merged = {**_zeroes(), **self.raw, **ours}
        return {name: merged[name] for name in _FIELDS if merged[name] or name in _ALWAYS}


def new_volume(name: str, storage: str, bucket: str) -> Volume:
    """Return a volume with a new UUID and the reference's defaults for the rest.

    Raises:
        RefusedError: A name that the format does not allow (USAGE).
    """
    if not NAME_RULE.fullmatch(name):
        raise RefusedError(
            ExitCode.USAGE,
            f"name {name[:80]!r}",
            "must be 3 to 63 of a-z, 0-9 and -, not beginning or ending with -",
            "choose another name",
        )
    from uuid import uuid4  # noqa: PLC0415 - only `format` makes volumes

    return Volume(name=name, uuid=str(uuid4()), storage=storage, bucket=bucket)


def _zeroes() -> dict[str, Any]:
    return {name: kind() for name, kind in _FIELDS.items()}


def _typed_fields(setting: bytes) -> dict[str, Any]:
    """Return the known fields under their exact names, each of its type."""
    try:
        stored = json.loads(setting)
    except ValueError:
        stored = None
    if not isinstance(stored, dict):
        raise RefusedError(
            ExitCode.VOLUME_CONFLICT,
            "key `setting`",
            "holds no volume's setting",
            "this database belongs to something else, use another",
        )
    exact = {name.lower(): name for name in _FIELDS}
    fields: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", stored).items():
        name = exact.get(key.lower())
        if name is not None and value is not None:
            _check_type(name, value)
            fields[name] = value
    if not fields.get("Name") or not fields.get("UUID"):
        raise RefusedError(
            ExitCode.VOLUME_CONFLICT,
            "key `setting`",
            "has no Name and UUID",
            "this database belongs to something else, use another",
        )
    return fields


def _check_type(name: str, value: object) -> None:
    kind = _FIELDS[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RefusedError(
            ExitCode.VOLUME_UNSUPPORTED,
            f"setting {name}",
            f"is no {kind.__name__} but {type(value).__name__}",
            "repair it with `juicefs config`",
        )


def _unsealed(fields: Mapping[str, Any], name: str) -> str:
    """Return a secret in clear; one that was stripped stays `removed`."""
    stored = cast("str", fields[name])
    if not stored or stored == REMOVED or not fields["KeyEncrypted"]:
        return stored
    if fields["EncryptAlgo"] == "sm4gcm":
        rule = "is sealed with SM4, which is not implemented"
    else:
        try:
            return secrets.unseal(stored, cast("str", fields["UUID"]))
        except ValueError as error:
            rule = str(error)
    raise RefusedError(
        ExitCode.VOLUME_UNSUPPORTED, f"setting {name}", rule, "set it again with `juicefs config`"
    )


def shown_bucket(bucket: str) -> str:
    """Return the bucket for people: without a user and password in its address."""
    if "://" not in bucket:
        return bucket
    parts = urlsplit(bucket)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
