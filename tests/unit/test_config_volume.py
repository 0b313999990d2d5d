"""A volume's setting: what the reference writes is read, and written back to the byte."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfsd.config import secrets
from jfsd.config.credentials import Credentials, check_complete, read_credentials
from jfsd.config.version import OWN_VERSION, parse_version
from jfsd.config.volume import REMOVED, Volume, new_volume
from jfsd.errors import ExitCode, RefusedError
from jfsd.record import replace

UUID = "8d7c3528-30f6-4e93-9a5d-8ee31c71b08c"

PLAIN = b"""{
"Name": "vol1",
"UUID": "4b9efb13-9bc5-4483-92ab-a5be1d0c121c",
"Storage": "file",
"Tiers": {
"0": {
"ID": 0,
"StorageClass": "",
"Tag": ""
}
},
"Bucket": "/data/",
"BlockSize": 4096,
"Compression": "none",
"EncryptAlgo": "aes256gcm-rsa",
"TrashDays": 1,
"MetaVersion": 1,
"MinClientVersion": "1.1.0-A",
"DirStats": true,
"EnableACL": false
}"""
"""As juicefs 1.4.2 wrote it."""

SEALED = b"""{
"Name": "vol2",
"UUID": "8d7c3528-30f6-4e93-9a5d-8ee31c71b08c",
"Storage": "file",
"Tiers": {
"0": {
"ID": 0,
"StorageClass": "",
"Tag": ""
}
},
"Bucket": "/data/",
"AccessKey": "ak",
"SecretKey": "qlKyNlMIYeYlI2h4hqWdFrMjyh54aiHdWrNI09HZ",
"SessionToken": "EJrkqsANMbPZKEcKjwrBfL1CFX1A4ST/aTgmsGe14w==",
"BlockSize": 4096,
"Compression": "lz4",
"Shards": 1,
"HashPrefix": true,
"Capacity": 10737418240,
"Inodes": 1000,
"EncryptAlgo": "aes256gcm-rsa",
"KeyEncrypted": true,
"TrashDays": 0,
"MetaVersion": 1,
"MinClientVersion": "1.1.0-A",
"DirStats": true,
"EnableACL": false
}"""
"""As juicefs 1.4.2 wrote it, with its own encryption of the secrets."""


def setting(**fields):
    """Return a stored setting with other fields; None leaves one out."""
    merged = {**json.loads(PLAIN), **fields}
    return json.dumps({key: value for key, value in merged.items() if value is not None}).encode()


def refusal(stored):
    with pytest.raises(RefusedError) as refused:
        Volume.parse(stored)
    return refused.value


@pytest.mark.parametrize("stored", [PLAIN, SEALED], ids=["plain", "sealed"])
@pytest.mark.promise(14)
def test_what_the_reference_wrote_is_written_back_to_the_byte(stored):
    assert Volume.parse(stored).to_json() == stored


def test_the_references_secrets_are_read():
    volume = Volume.parse(SEALED)
    assert (volume.access_key, volume.secret_key, volume.session_token) == ("ak", "sk", "tok")


def test_numbers_get_their_units():
    volume = Volume.parse(SEALED)
    assert volume.block_size_bytes == 4 << 20
    assert volume.capacity_bytes == 10 << 30
    assert (volume.inodes, volume.trash_days, volume.compression) == (1000, 0, "lz4")
    assert volume.hash_prefix
    assert volume.dir_stats


def test_field_names_are_matched_whatever_their_case():
    volume = Volume.parse(PLAIN.replace(b'"BlockSize"', b'"blocksize"').replace(b"Name", b"NAME"))
    assert (volume.name, volume.block_size_bytes) == ("vol1", 4 << 20)
    assert volume.to_json() == PLAIN


def test_absent_and_null_fields_are_zero():
    volume = Volume.parse(setting(DirStats=None, Compression=None, Capacity=None, MetaVersion=None))
    assert not volume.dir_stats
    assert (volume.compression, volume.meta_version, volume.encrypt_algo) == (
        "none",
        0,
        "aes256gcm-rsa",
    )
    null = json.loads(PLAIN) | {"Capacity": None}
    assert Volume.parse(json.dumps(null).encode()).capacity_bytes == 0


def test_names_of_stores_and_codecs_are_lowered():
    volume = Volume.parse(setting(Storage="File", Compression="LZ4"))
    assert (volume.storage, volume.compression) == ("file", "lz4")


def test_fields_that_we_do_not_use_survive_and_unknown_ones_are_dropped():
    volume = Volume.parse(setting(RangerService="r", KerbConf="k", Surprise=1))
    written = json.loads(replace(volume, trash_days=9).to_json())
    assert (written["RangerService"], written["KerbConf"], written["TrashDays"]) == ("r", "k", 9)
    assert "Surprise" not in written


def test_tiers_survive():
    tiers = {"0": {"ID": 0, "StorageClass": "", "Tag": ""}, "2": {"ID": 2, "StorageClass": "IA"}}
    volume = Volume.parse(setting(Tiers=tiers))
    assert json.loads(volume.to_json())["Tiers"] == tiers


@pytest.mark.parametrize(
    "stored", [b"", b"hello", b"[]", b"1", b"\xff\xfe", b'{"Name": "x"}', b"{}"]
)
def test_what_is_no_setting_belongs_to_somebody_else(stored):
    assert refusal(stored).exit_code is ExitCode.VOLUME_CONFLICT


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"MetaVersion": 2}, "MetaVersion 2 is newer than 1"),
        ({"Name": "UPPER"}, "name 'UPPER' breaks the rule"),
        ({"Name": "ab"}, "name 'ab' breaks the rule"),
        ({"BlockSize": 3000}, "BlockSize 3000 is no power of two"),
        ({"BlockSize": 32}, "BlockSize 32 is no power of two"),
        ({"BlockSize": 32768}, "BlockSize 32768 is no power of two"),
        ({"BlockSize": 0}, "BlockSize 0 is no power of two"),
        ({"Compression": "snappy"}, "Compression 'snappy' is not implemented"),
        ({"Storage": "gs"}, "Storage 'gs' is not implemented"),
        ({"Shards": 257}, "Shards 257 is out of range"),
        ({"EncryptKey": "pem", "EncryptAlgo": "sm4gcm"}, "EncryptAlgo 'sm4gcm' is not implemented"),
        ({"TrashDays": -1}, "TrashDays -1 is negative"),
        ({"BlockSize": "4096"}, "is no int but str"),
        ({"BlockSize": True}, "is no int but bool"),
        ({"DirStats": 1}, "is no bool but int"),
        ({"KeyEncrypted": True, "SecretKey": "!!"}, "is not base64"),
        ({"KeyEncrypted": True, "SecretKey": "QUJD"}, "is too short"),
        ({"KeyEncrypted": True, "SecretKey": "QUJD" * 20}, "does not decrypt"),
    ],
)
@pytest.mark.promise(16)
def test_what_we_cannot_honour_is_refused(fields, rule):
    error = refusal(setting(**fields))
    assert error.exit_code is ExitCode.VOLUME_UNSUPPORTED
    assert error.rule.startswith(rule)


def test_an_unknown_cipher_without_a_key_does_not_matter():
    assert Volume.parse(setting(EncryptAlgo="sm4gcm")).encrypt_algo == "sm4gcm"


def test_secrets_sealed_with_sm4_are_refused():
    error = refusal(setting(EncryptAlgo="sm4gcm", KeyEncrypted=True, SecretKey="QUJD"))
    assert error.rule == "is sealed with SM4, which is not implemented"


def test_secrets_that_are_not_sealed_are_sealed_when_stored():
    volume = Volume.parse(setting(SecretKey="plain"))
    assert volume.secret_key == "plain"
    stored = volume.to_json()
    assert b"plain" not in stored
    assert Volume.parse(stored).secret_key == "plain"


def test_an_update_seals_only_what_changed():
    volume = Volume.parse(SEALED)
    written = json.loads(replace(volume, secret_key="new").to_json())
    assert written["SessionToken"] == json.loads(SEALED)["SessionToken"]
    assert written["SecretKey"] != json.loads(SEALED)["SecretKey"]
    assert Volume.parse(replace(volume, secret_key="new").to_json()).secret_key == "new"


def test_a_stripped_secret_stays_stripped_until_it_is_given():
    volume = Volume.parse(setting(KeyEncrypted=True, SecretKey=REMOVED))
    assert json.loads(volume.to_json())["SecretKey"] == REMOVED
    with pytest.raises(RefusedError) as refused:
        check_complete(volume)
    assert refused.value.exit_code is ExitCode.VOLUME_UNSUPPORTED
    check_complete(Credentials(secret_key="sk").over(volume))


def test_no_secret_is_shown():
    volume = replace(Volume.parse(SEALED), encrypt_key="-----BEGIN")
    for text in (repr(volume), str(volume), json.dumps(volume.public())):
        assert "sk" not in text
        assert "tok" not in text.replace("token", "")
        assert "BEGIN" not in text
    assert volume.public()["SecretKey"] == volume.public()["EncryptKey"] == REMOVED
    assert "SecretKey" not in Volume.parse(PLAIN).public()


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("1.1.0-A", ""),
        ("1.4.2", "1.4.2"),
        ("", "1.4.3-rc1"),
        ("1.4", "2"),
        ("1.4.2-rc1", "1.4.2+x"),
    ],
)
def test_a_volume_within_the_gates_is_served(low, high):
    volume = Volume.parse(setting(MinClientVersion=low, MaxClientVersion=high))
    volume.check_mountable(read_only=False)


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        ("1.4.3-A", "", "MinClientVersion"),
        ("1.5", "", "MinClientVersion"),
        ("", "1.4.1", "MaxClientVersion"),
        ("", "1.4.2-rc1", "MaxClientVersion"),
        ("x", "", "MinClientVersion"),
        ("", "1.2.3.4", "MaxClientVersion"),
    ],
)
def test_a_volume_outside_the_gates_is_refused(low, high, name):
    volume = Volume.parse(setting(MinClientVersion=low, MaxClientVersion=high))
    with pytest.raises(RefusedError) as refused:
        volume.check_mountable(read_only=True)
    assert refused.value.exit_code is ExitCode.VOLUME_UNSUPPORTED
    assert refused.value.rule.startswith(name)


def test_versions_are_ordered_as_the_format_says():
    texts = ["1.1.0-A", "1.1.0-beta1", "1.1.0-rc1", "1.1", "1.1.1", "1.2.0-A", "1.10", "2"]
    assert sorted(texts, key=parse_version) == texts
    assert parse_version("1.4.2+2026.abc") == OWN_VERSION


@pytest.mark.parametrize("text", ["", "v1", "1.", "1.2.3.4", "1.x", "-A", "1-", "\u0661"])
def test_what_is_no_version_is_refused(text):
    with pytest.raises(ValueError, match="is not a version"):
        parse_version(text)


def test_a_new_volume_has_the_references_defaults():
    volume = new_volume("vol1", "file", "/data/")
    stored = volume.to_json().replace(volume.uuid.encode(), b"4b9efb13-9bc5-4483-92ab-a5be1d0c121c")
    assert stored == PLAIN
    assert volume.uuid != new_volume("vol1", "file", "/data/").uuid


@pytest.mark.parametrize("name", ["", "ab", "a" * 64, "Abc", "a_b", "-abc", "abc-", "a/b", "äbc"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(RefusedError) as refused:
        new_volume(name, "file", "/data/")
    assert refused.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("name", ["abc", "a" * 63, "0-9"])
def test_a_name_at_the_limits_is_allowed(name):
    assert new_volume(name, "file", "/data/").name == name


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_a_sealed_secret_is_read_with_the_same_uuid(secret):
    assert secrets.unseal(secrets.seal(secret, UUID), UUID) == secret


def test_a_secret_is_sealed_differently_every_time_and_only_for_its_volume():
    sealed = secrets.seal("sk", UUID)
    assert sealed != secrets.seal("sk", UUID)
    assert len(base64.b64decode(sealed)) == 12 + 2 + 16
    with pytest.raises(ValueError, match="does not decrypt"):
        secrets.unseal(sealed, UUID.replace("8", "9"))
    assert secrets.seal("", UUID) == secrets.unseal("", UUID) == ""


def test_credentials_come_from_files_before_the_environment(tmp_path):
    (tmp_path / "ak").write_text("from-file\n")
    found = read_credentials(
        access_key_file=str(tmp_path / "ak"),
        environ={"ACCESS_KEY": "from-env", "SECRET_KEY": "sk", "JFS_RSA_PASSPHRASE": "pp"},
    )
    assert (found.access_key, found.secret_key, found.session_token) == ("from-file", "sk", "")
    assert found.rsa_passphrase == "pp"
    assert "sk" not in repr(found)
    assert "pp" not in repr(found).replace("rsa_pp", "")


@pytest.mark.parametrize("content", [b"", b"two\nlines\n", b"\xff\xff", None])
def test_a_bad_credential_file_is_refused(tmp_path, content):
    path = tmp_path / "sk"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RefusedError, match="--secret-key-file") as refused:
        read_credentials(secret_key_file=str(path), environ={})
    assert refused.value.exit_code is ExitCode.USAGE


def test_given_credentials_replace_the_volumes_own_together():
    volume = Volume.parse(SEALED)
    assert Credentials().over(volume) is volume
    mixed = Credentials(access_key="a2", secret_key="s2").over(volume)
    assert (mixed.access_key, mixed.secret_key, mixed.session_token) == ("a2", "s2", "")
