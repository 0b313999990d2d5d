"""`jfsd format` and `jfsd status` on real servers, and the reference beside them."""

import json
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.clients import Storage
from support.session import free_ports

from jfsd.config.volume import Volume
from jfsd.errors import ExitCode


def setting(redis_server, db):
    """Return the stored setting, decoded."""
    with redis_server.client(db) as client:
        return json.loads(client.get("setting"))


def contents(redis_server, db):
    """Return every key of a database with its serialized value."""
    with redis_server.client(db) as client:
        return {key: client.dump(key) for key in client.keys("*")}


def refused(done, code):
    """Return the one line of a refusal, after checking that it is one."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("jfsd: ")
    assert ": " in lines[0].removeprefix("jfsd: ")
    assert "; " in lines[0]
    return lines[0]


@pytest.fixture
def objects(tmp_path):
    return tmp_path / "objects"


@pytest.fixture
def make(jfsd, meta_url, objects):
    """A function that runs `jfsd format` on the test's database and directory."""

    def run(*flags, name="vol", url=meta_url, env=None):
        command = [jfsd.binary, "format", url, name]
        if "--bucket" not in flags and "--storage" not in flags:
            command += ["--bucket", str(objects)]
        return subprocess.run(
            [*command, *flags],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**jfsd.env(), **(env or {})},
        )

    return run


@pytest.mark.promise(14)
def test_a_new_volume_is_what_the_reference_would_have_made(
    make, jfsd, juicefs, redis_server, meta_db, objects, tmp_path
):
    done = make()
    assert done.returncode == 0, done.stderr
    ours = contents(redis_server, meta_db)
    our_setting = setting(redis_server, meta_db)
    with redis_server.client(meta_db) as client:
        our_nodes = {key: client.get(key) for key in ours if key != b"setting"}
        client.flushdb()
    juicefs.format(redis_server.url(meta_db), "vol", Storage(directory=tmp_path / "theirs"))
    theirs = setting(redis_server, meta_db)
    with redis_server.client(meta_db) as client:
        their_nodes = {key: client.get(key) for key in client.keys("*") if key != b"setting"}
    ignored = {"UUID", "Bucket"}
    assert {k: v for k, v in our_setting.items() if k not in ignored} == {
        k: v for k, v in theirs.items() if k not in ignored
    }
    assert list(our_setting) == list(theirs)
    assert our_nodes.keys() == their_nodes.keys()
    # All but the three times (bytes 11 to 46) is the same to the byte; nanoseconds are zero.
    for key, record in our_nodes.items():
        assert record[:11] + record[47:] == their_nodes[key][:11] + their_nodes[key][47:]
        assert record[19:23] == bytes(4)
    found = {p.relative_to(objects) for p in objects.rglob("*") if p.is_file()}
    assert {str(p) for p in found} == {"vol/juicefs_uuid"}
    assert (objects / "vol" / "juicefs_uuid").read_text() == our_setting["UUID"]
    assert Volume.parse(json.dumps(our_setting).encode()).bucket == f"{objects}/"


@pytest.mark.promise(14)
def test_the_reference_reads_a_volume_with_everything_set(
    make, juicefs, meta_url, redis_server, meta_db, rsa_key
):
    done = make(
        *("--block-size", "1M", "--compress", "zstd", "--hash-prefix", "--enable-acl"),
        *("--capacity", "10", "--inodes", "1000", "--trash-days", "0"),
        *("--encrypt-rsa-key", str(rsa_key)),
        env={"ACCESS_KEY": "ak", "SECRET_KEY": "geheim"},
    )
    assert done.returncode == 0, done.stderr
    seen = juicefs.status(meta_url)["Setting"]
    assert {
        "Name": "vol",
        "BlockSize": 1024,
        "Compression": "zstd",
        "HashPrefix": True,
        "EnableACL": True,
        "Capacity": 10 << 30,
        "Inodes": 1000,
        "TrashDays": 0,
        "AccessKey": "ak",
        "KeyEncrypted": True,
        "MinClientVersion": "1.2.0-A",
    }.items() <= seen.items()
    assert "geheim" not in json.dumps(setting(redis_server, meta_db))
    with redis_server.client(meta_db) as client:
        assert set(client.keys("*")) == {b"setting", b"i1"}
    juicefs.run("fsck", meta_url)  # blocks only: the root has no statistics before a mount
    # The reference decrypts what we sealed, and changes the volume.
    juicefs.run("config", meta_url, "--trash-days", "2", "--yes")
    volume = Volume.parse(json.dumps(setting(redis_server, meta_db)).encode())
    assert (volume.secret_key, volume.trash_days) == ("geheim", 2)
    assert volume.encrypt_key == rsa_key.read_text()


@pytest.mark.promise(14)
def test_status_shows_a_volume_of_the_reference_as_the_reference_does(
    jfsd, juicefs, meta_url, tmp_path
):
    storage = Storage(directory=tmp_path / "o")
    flags = ["--secret-key", "geheim", "--capacity", "1", "--compress", "lz4"]
    juicefs.format(meta_url, "theirs", storage, *flags)
    ours, theirs = jfsd.status(meta_url), juicefs.status(meta_url)
    assert ours["Setting"] == theirs["Setting"]
    assert ours["Setting"]["SecretKey"] == "removed"
    assert ours["Sessions"] == theirs["Sessions"] == []
    assert ours["Stat"].items() >= theirs["Stat"].items()


def test_it_prints_the_setting_without_secrets(make):
    done = make(env={"SECRET_KEY": "geheim"})
    shown = json.loads(done.stdout)
    assert (shown["Name"], shown["SecretKey"]) == ("vol", "removed")
    assert "geheim" not in done.stdout + done.stderr


def test_formatting_again_with_the_same_options_changes_nothing(make, redis_server, meta_db):
    assert make("--compress", "lz4").returncode == 0
    before = contents(redis_server, meta_db)
    done = make("--compress", "lz4")
    assert done.returncode == 0, done.stderr
    assert contents(redis_server, meta_db) == before


def test_formatting_again_changes_what_may_change(make, redis_server, meta_db):
    assert make("--trash-days", "0").returncode == 0
    before = setting(redis_server, meta_db)
    assert make("--trash-days", "3", "--capacity", "5G", "--enable-acl").returncode == 0
    after = setting(redis_server, meta_db)
    assert after.pop("Capacity") == 5 << 30
    assert after == before | {"TrashDays": 3, "EnableACL": True, "MinClientVersion": "1.2.0-A"}
    with redis_server.client(meta_db) as client:
        # Trash switched on later needs its root.
        assert client.exists("i9223372032828243968")


def test_no_update_leaves_an_existing_volume_as_it_is(make, redis_server, meta_db):
    assert make().returncode == 0
    before = contents(redis_server, meta_db)
    assert make("--trash-days", "3", "--no-update").returncode == 0
    assert contents(redis_server, meta_db) == before


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--block-size", "1M"], "--block-size cannot become"),
        (["--compress", "zstd"], "--compress cannot become"),
        (["--hash-prefix"], "--hash-prefix cannot become"),
    ],
)
@pytest.mark.promise(16)
def test_what_the_data_depends_on_cannot_change(make, redis_server, meta_db, flags, what):
    assert make().returncode == 0
    before = contents(redis_server, meta_db)
    assert what in refused(make(*flags), ExitCode.VOLUME_CONFLICT)
    assert what in refused(make(*flags, "--force"), ExitCode.VOLUME_CONFLICT)
    assert contents(redis_server, meta_db) == before


@pytest.mark.promise(16)
def test_another_name_is_refused(make, redis_server, meta_db):
    assert make().returncode == 0
    assert "'other'" in refused(make(name="other"), ExitCode.VOLUME_CONFLICT)
    assert setting(redis_server, meta_db)["Name"] == "vol"


@pytest.mark.promise(16)
def test_a_database_with_other_things_is_refused_unless_forced(make, redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("shopping-cart:17", "apples")
    line = refused(make(), ExitCode.VOLUME_CONFLICT)
    assert "shopping-cart:17" in line
    assert len(contents(redis_server, meta_db)) == 1
    assert make("--force").returncode == 0
    assert setting(redis_server, meta_db)["Name"] == "vol"


@pytest.mark.promise(16)
def test_a_setting_that_is_none_is_not_overwritten(make, redis_server, meta_db):
    with redis_server.client(meta_db) as client:
        client.set("setting", "dark mode")
    refused(make("--force"), ExitCode.VOLUME_CONFLICT)
    with redis_server.client(meta_db) as client:
        assert client.get("setting") == b"dark mode"


@pytest.mark.promise(16)
def test_a_bucket_of_another_volume_is_refused_unless_forced(make, redis_server, meta_db, objects):
    assert make().returncode == 0
    uuid = setting(redis_server, meta_db)["UUID"]
    with redis_server.client(meta_db) as client:
        client.flushdb()
    assert "vol/juicefs_uuid" in refused(make(), ExitCode.STORE_REFUSED)
    assert contents(redis_server, meta_db) == {}
    assert (objects / "vol" / "juicefs_uuid").read_text() == uuid
    assert make(name="neighbour").returncode == 0


@pytest.mark.promise(16)
def test_an_existing_volume_is_not_sent_to_a_bucket_without_its_objects(
    make, redis_server, meta_db, tmp_path
):
    assert make().returncode == 0
    before = contents(redis_server, meta_db)
    elsewhere = tmp_path / "elsewhere"
    flags = ["--bucket", str(elsewhere)]
    assert "does not exist" in refused(make(*flags), ExitCode.STORE_REFUSED)
    assert not elsewhere.exists()
    elsewhere.mkdir()
    assert "has no objects" in refused(make(*flags), ExitCode.STORE_REFUSED)
    assert list(elsewhere.iterdir()) == []
    assert contents(redis_server, meta_db) == before
    assert make(*flags, "--force").returncode == 0
    assert setting(redis_server, meta_db)["Bucket"] == f"{tmp_path}/elsewhere/"


def test_directories_of_shards_are_made(make, redis_server, meta_db, tmp_path):
    assert make("--shards", "2", "--bucket", f"{tmp_path}/shard%d/").returncode == 0
    marks = list(tmp_path.glob("shard?/vol/juicefs_uuid"))
    assert [mark.read_text() for mark in marks] == [setting(redis_server, meta_db)["UUID"]]
    assert (tmp_path / "shard0").is_dir()
    assert (tmp_path / "shard1").is_dir()


@pytest.mark.promise(16)
def test_a_bucket_that_cannot_be_made_is_refused(make, redis_server, meta_db, tmp_path):
    (tmp_path / "file").write_text("x")
    line = refused(make("--bucket", str(tmp_path / "file" / "sub")), ExitCode.STORE_REFUSED)
    assert "Not a directory" in line
    assert contents(redis_server, meta_db) == {}


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--storage", "s3"], "needs a bucket"),
        (["--storage", "gs", "--bucket", "x"], "is not one of file, s3, minio"),
        (["--block-size", "3M"], "is no power of two"),
        (["--block-size", "32K"], "is out of range 64K to 16M"),
        (["--shards", "2"], "needs one bucket for each"),
        (["--encrypt-algo", "chacha20-rsa"], "needs a key"),
        (["--encrypt-rsa-key", "/nonexistent"], "cannot be read"),
        (["--encrypt-rsa-key", "/etc/passwd"], "holds no private key"),
        (["--secret-key-file", "/nonexistent"], "cannot be read"),
        (["--trash-days", "-1"], "is not a whole number"),
        (["--capacity", "lots"], "is not a size"),
    ],
)
@pytest.mark.promise(16)
def test_bad_options_are_refused_and_change_nothing(make, redis_server, meta_db, flags, what):
    assert what in refused(make(*flags), ExitCode.USAGE)
    assert contents(redis_server, meta_db) == {}


@pytest.mark.parametrize("name", ["UP", "ab", "a" * 64, "a_b", "a/b", "-ab"])
@pytest.mark.promise(16)
def test_a_bad_name_is_refused(make, redis_server, meta_db, name):
    done = make("--bucket", "/tmp/x", name="--") if name == "-ab" else make(name=name)
    assert done.returncode == ExitCode.USAGE
    assert len(done.stderr.splitlines()) == 1
    assert contents(redis_server, meta_db) == {}


def test_an_encrypted_key_needs_its_passphrase(
    make, redis_server, meta_db, sealed_rsa_key, objects
):
    flags = ["--encrypt-rsa-key", str(sealed_rsa_key)]
    refused(make(*flags), ExitCode.USAGE)
    refused(make(*flags, env={"JFS_RSA_PASSPHRASE": "wrong"}), ExitCode.USAGE)
    done = make(*flags, env={"JFS_RSA_PASSPHRASE": "geheim"})
    assert done.returncode == 0, done.stderr
    stored = (objects / "vol" / "juicefs_uuid").read_bytes()
    assert stored.startswith(bytes.fromhex("01000c"))
    assert setting(redis_server, meta_db)["UUID"].encode() not in stored


@pytest.mark.promise(16)
def test_a_redis_that_is_not_there_is_refused(make, tmp_path):
    refused(make(url=f"unix://{tmp_path}/none?db=0"), ExitCode.META_UNREACHABLE)
    (port,) = free_ports(1)
    refused(make(url=f"redis://127.0.0.1:{port}/0"), ExitCode.META_UNREACHABLE)


@pytest.mark.promise(16)
def test_a_url_that_does_not_parse_is_refused_without_its_password(make):
    line = refused(make(url="redis://:geheim@host:port/0"), ExitCode.USAGE)
    assert "geheim" not in line
    refused(make(url="mysql://host/db"), ExitCode.USAGE)
    refused(make(url="redis://host/one"), ExitCode.USAGE)


@pytest.mark.promise(16)
def test_status_of_no_volume_is_refused(jfsd, meta_url, tmp_path):
    refused(jfsd.run("status", meta_url, check=False), ExitCode.VOLUME_MISSING)
    refused(jfsd.run("status", tmp_path, check=False), ExitCode.NOT_MOUNTED)
    refused(jfsd.run("status", tmp_path / "none", check=False), ExitCode.MOUNTPOINT_UNUSABLE)


def test_s3_is_tried_before_anything_is_made(make, weed, redis_server, meta_db):
    bucket = weed.bucket()
    keys = {"ACCESS_KEY": bucket.access_key, "SECRET_KEY": bucket.secret_key}
    flags = ["--storage", "s3", "--bucket"]
    missing = refused(make(*flags, f"{bucket.endpoint}/nosuch", env=keys), ExitCode.STORE_REFUSED)
    assert "nosuch" in missing
    wrong = make(*flags, bucket.url, env={**keys, "SECRET_KEY": "geheim"})
    assert "geheim" not in refused(wrong, ExitCode.STORE_REFUSED)
    (port,) = free_ports(1)
    refused(make(*flags, f"http://127.0.0.1:{port}/bucket", env=keys), ExitCode.STORE_UNREACHABLE)
    assert contents(redis_server, meta_db) == {}
    done = make(*flags, bucket.url, env=keys)
    assert done.returncode == 0, done.stderr
    assert weed.keys(bucket) == ["vol/juicefs_uuid"]
    stored = Volume.parse(json.dumps(setting(redis_server, meta_db)).encode())
    assert (stored.access_key, stored.secret_key) == (bucket.access_key, bucket.secret_key)


def test_keys_come_from_files_too(make, redis_server, meta_db, tmp_path):
    (tmp_path / "sk").write_text("from-file\n")
    assert make("--secret-key-file", str(tmp_path / "sk")).returncode == 0
    stored = Volume.parse(json.dumps(setting(redis_server, meta_db)).encode())
    assert stored.secret_key == "from-file"


def pem(key, passphrase=None):
    """Return a private key in PKCS#8 form."""
    seal = serialization
    cipher = seal.BestAvailableEncryption(passphrase) if passphrase else seal.NoEncryption()
    return key.private_bytes(seal.Encoding.PEM, seal.PrivateFormat.PKCS8, cipher)


@pytest.fixture(scope="module")
def rsa_key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "key.pem"
    path.write_bytes(pem(rsa.generate_private_key(65537, 2048)))
    return path


@pytest.fixture(scope="module")
def sealed_rsa_key(rsa_key):
    path = rsa_key.with_name("sealed.pem")
    key = serialization.load_pem_private_key(rsa_key.read_bytes(), None)
    path.write_bytes(pem(key, b"geheim"))
    return path
