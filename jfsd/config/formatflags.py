"""Every option of `jfsd format`, one row each, in the form of `config.flags`."""

from __future__ import annotations

from jfsd.config.flags import Change, Flag, Kind
from jfsd.config.volume import COMPRESSIONS, ENCRYPT_ALGOS, STORAGES

STORE = "Object store"
LAYOUT = "Layout of the data"
LIMITS = "Limits and features"
OTHER = "Other"

FORMAT_FLAGS: tuple[Flag, ...] = (
    Flag(
        "storage", "storage", Kind.CHOICE, "file", choices=STORAGES, change=Change.LIVE,
        group=STORE, help="Kind of object store.",
    ),
    Flag(
        "bucket", "bucket", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="A directory, or the address of an S3 bucket; for file the default is"
        " /var/lib/jfsd/objects/ (~/.local/share/jfsd/objects/ for users).",
    ),
    Flag(
        "access-key", "access_key", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="Access key; ACCESS_KEY in the environment or a file is not visible to others.",
    ),
    Flag(
        "secret-key", "secret_key", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="Secret key; better SECRET_KEY in the environment, or a file.",
    ),
    Flag(
        "session-token", "session_token", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="Session token; better SESSION_TOKEN in the environment, or a file.",
    ),
    Flag(
        "access-key-file", "access_key_file", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="File with the access key.",
    ),
    Flag(
        "secret-key-file", "secret_key_file", Kind.TEXT, "", change=Change.LIVE, group=STORE,
        help="File with the secret key.",
    ),
    Flag(
        "session-token-file", "session_token_file", Kind.TEXT, "", change=Change.LIVE,
        group=STORE, help="File with the session token.",
    ),
    Flag(
        "block-size", "block_size_bytes", Kind.BYTES, "4M", low="64K", high="16M", unit="K",
        change=Change.FIXED, group=LAYOUT, help="Largest object, a power of two.",
    ),
    Flag(
        "compress", "compression", Kind.CHOICE, "none", choices=COMPRESSIONS,
        change=Change.FIXED, group=LAYOUT, help="Compression of the objects.",
    ),
    Flag(
        "shards", "shards", Kind.COUNT, "0", high="256", change=Change.FIXED, group=LAYOUT,
        help="Spread objects over so many buckets; the bucket's address then contains %d.",
    ),
    Flag(
        "hash-prefix", "hash_prefix", Kind.SWITCH, "false", change=Change.FIXED, group=LAYOUT,
        help="Begin object names with a hash, for stores that spread load by prefix.",
    ),
    Flag(
        "encrypt-rsa-key", "encrypt_rsa_key", Kind.TEXT, "", change=Change.FIXED, group=LAYOUT,
        help="File with a PEM private key: encrypts all objects (passphrase: JFS_RSA_PASSPHRASE).",
    ),
    Flag(
        "encrypt-algo", "encrypt_algo", Kind.CHOICE, "aes256gcm-rsa", choices=ENCRYPT_ALGOS,
        change=Change.FIXED, group=LAYOUT, help="Cipher of the objects, if they are encrypted.",
    ),
    Flag(
        "capacity", "capacity_bytes", Kind.BYTES, "0", high="1024P", unit="G",
        change=Change.LIVE, group=LIMITS, help="Size of the volume; 0 is no limit.",
    ),
    Flag(
        "inodes", "inodes", Kind.COUNT, "0", high="9223372036854775807", change=Change.LIVE,
        group=LIMITS, help="Number of files and directories; 0 is no limit.",
    ),
    Flag(
        "trash-days", "trash_days", Kind.COUNT, "1", high="36500", change=Change.LIVE,
        group=LIMITS, help="Days that deleted files are kept in the trash; 0 is no trash.",
    ),
    Flag(
        "enable-acl", "enable_acl", Kind.SWITCH, "false", change=Change.LIVE, group=LIMITS,
        help="POSIX ACLs; cannot be switched off again.",
    ),
    Flag(
        "force", "force", Kind.SWITCH, "false", change=Change.CALL, group=OTHER,
        help="Use a bucket or database that holds other things already.",
    ),
    Flag(
        "no-update", "no_update", Kind.SWITCH, "false", change=Change.CALL, group=OTHER,
        help="If the volume exists, change nothing of it.",
    ),
)  # fmt: skip
