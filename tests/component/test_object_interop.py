"""Encrypted objects, in both directions between jfsd's stores and the reference."""

from __future__ import annotations

import os
import subprocess

import pytest
from support.clients import JuiceFS, Storage

from jfsd.object.open import check_volume, open_store
from jfsd.object.shards import shard_of

PASSPHRASE = "a pass phrase"
CONTENT = bytes(range(256)) * 20_000  # two blocks


@pytest.fixture
def protected_key(tmp_path):
    path = tmp_path / "key.pem"
    command = ["openssl", "genrsa", "-aes256", "-traditional", "-passout", f"pass:{PASSPHRASE}"]
    done = subprocess.run([*command, "-out", path, "2048"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this openssl writes no such keys")
    return path


def objects(directory):
    return sorted(p for p in directory.rglob("chunks/**/*_*_*") if p.is_file())


@pytest.mark.promise(14)
@pytest.mark.parametrize("algorithm", ["aes256gcm-rsa", "chacha20-rsa"])
async def test_encryption(bed, meta_url, protected_key, algorithm):
    """What juicefs encrypted we decrypt; what we encrypt in its place juicefs reads."""
    juicefs = JuiceFS(bed)
    juicefs.extra_env["JFS_RSA_PASSPHRASE"] = PASSPHRASE
    storage = Storage(directory=bed.directory("o"))
    juicefs.format(
        meta_url, "crypt", storage, "--encrypt-rsa-key", str(protected_key),
        "--encrypt-algo", algorithm, "--trash-days", "0",
    )  # fmt: skip
    status = juicefs.status(meta_url)
    mounted = juicefs.mount(meta_url, bed.root / "crypt")
    (mounted.path / "file").write_bytes(CONTENT)
    mounted.unmount()

    store = open_store(
        "file",
        f"{storage.directory}/",
        encrypt_key=protected_key.read_text(),
        encrypt_algo=algorithm,
        passphrase=PASSPHRASE,
    )
    assert await check_volume(store, "crypt", status["Setting"]["UUID"])
    found = objects(storage.directory)
    keys = [str(path.relative_to(storage.directory)) for path in found]
    parts = [await store.get(key) for key in keys]
    assert b"".join(parts) == CONTENT
    assert [(await store.head(key)).size for key in keys] == [len(part) for part in parts]
    before = [path.read_bytes() for path in found]
    for key, part in zip(keys, parts, strict=True):
        await store.put(key, part[::-1])
    assert all(path.read_bytes() != old for path, old in zip(found, before, strict=True))
    assert [path.stat().st_size for path in found] == [len(old) for old in before]
    await store.close()

    mounted = juicefs.mount(meta_url, bed.root / "crypt")
    assert (mounted.path / "file").read_bytes() == b"".join(part[::-1] for part in parts)
    mounted.unmount()


@pytest.mark.promise(14)
async def test_s3_objects_and_checksums(bed, meta_url, weed, juicefs):
    """The reference verifies our checksum as we verify its."""
    storage = Storage(bucket=weed.bucket())
    juicefs.format(meta_url, "sums", storage, "--trash-days", "0")
    mounted = juicefs.mount(meta_url, bed.root / "sums")
    (mounted.path / "file").write_bytes(CONTENT)
    mounted.unmount()
    bucket = storage.bucket
    store = open_store("s3", bucket.url, bucket.access_key, bucket.secret_key)
    keys = [found.key async for found in store.list("sums/chunks/")]
    parts = [await store.get(key) for key in keys]
    assert b"".join(parts) == CONTENT
    client = weed.client()
    for key, part in zip(keys, parts, strict=True):
        theirs = client.head_object(Bucket=bucket.name, Key=key)
        await store.put(key, part)
        ours = client.head_object(Bucket=bucket.name, Key=key)
        assert ours["Metadata"] == theirs["Metadata"]
        assert ours["Metadata"]["crc32c"].isdecimal()
        assert ours["ContentType"] == theirs["ContentType"]
    client.close()
    await store.close()
    mounted = juicefs.mount(meta_url, bed.root / "sums")
    assert (mounted.path / "file").read_bytes() == CONTENT
    mounted.unmount()


@pytest.mark.promise(14)
async def test_shards(bed, meta_url, juicefs):
    """Both sides look for an object in the same bucket."""
    root = bed.directory("o")
    for number in range(3):
        (root / f"s{number}").mkdir()
    template = f"{root}/s%d/"
    arguments = ["--storage", "file", "--bucket", template, "--shards", "3", "--trash-days", "0"]
    juicefs.run("format", *arguments, meta_url, "shards")
    mounted = juicefs.mount(meta_url, bed.root / "shards")
    contents = {str(n): os.urandom(1000 + n) for n in range(12)}
    for name, content in contents.items():
        (mounted.path / name).write_bytes(content)
    mounted.unmount()
    store = open_store("file", template, shards=3)
    listed = [found.key async for found in store.list("shards/chunks/")]
    assert len(listed) == len(contents)
    assert {await store.get(key) for key in listed} == set(contents.values())
    for key in listed:
        assert (root / f"s{shard_of(key, 3)}" / key).is_file()
    await store.close()
