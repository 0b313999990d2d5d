"""Bucket URLs (format.md §13.2)."""

from __future__ import annotations

import pytest

from jfsd.errors import ExitCode, RefusedError
from jfsd.object.s3url import parse_minio, parse_s3

AWS = None


@pytest.mark.parametrize(
    ("url", "bucket", "endpoint", "region"),
    [
        ("https://bkt.s3.eu-west-1.amazonaws.com", "bkt", AWS, "eu-west-1"),
        ("https://bkt.s3-eu-west-1.amazonaws.com", "bkt", AWS, "eu-west-1"),
        ("https://bkt.s3.eu-west-1.amazonaws.com/", "bkt", AWS, "eu-west-1"),
        ("bkt.s3.eu-west-1.amazonaws.com", "bkt", AWS, "eu-west-1"),
        ("https://bkt.s3.cn-north-1.amazonaws.com.cn", "bkt", AWS, "cn-north-1"),
        ("https://bkt.s3.amazonaws.com", "bkt", AWS, "us-east-1"),
        ("https://bkt.s3-external-1.amazonaws.com", "bkt", AWS, "us-east-1"),
        ("https://bkt.s3.dualstack.ap-south-1.amazonaws.com", "bkt", AWS, "ap-south-1"),
        ("https://my.dotted.bkt.s3.eu-west-1.amazonaws.com", "my.dotted.bkt", AWS, "eu-west-1"),
        ("https://s3.eu-west-1.amazonaws.com/bkt", "bkt", AWS, "eu-west-1"),
        ("https://s3-eu-west-1.amazonaws.com/bkt", "bkt", AWS, "eu-west-1"),
        ("https://s3.amazonaws.com/bkt/further/path", "bkt", AWS, "us-east-1"),
        ("s3.amazonaws.com/bkt", "bkt", "http://s3.amazonaws.com/bkt", None),
        (
            "https://bkt.vpce-0a1b.s3.us-west-2.vpce.amazonaws.com",
            "bkt",
            "https://vpce-0a1b.s3.us-west-2.vpce.amazonaws.com",
            "us-west-2",
        ),
        ("https://bkt", "bkt", AWS, None),
        ("bkt", "bkt", AWS, None),
        ("http://10.0.0.1:9000/bkt", "bkt", "http://10.0.0.1:9000", "us-east-1"),
        ("https://host/bkt/more", "bkt", "https://host", "us-east-1"),
        ("http://[::1]:9000/bkt", "bkt", "http://[::1]:9000", "us-east-1"),
        ("bkt.example.org", "bkt", "http://example.org", "us-east-1"),
        ("https://bkt.example.org:8443", "bkt", "https://example.org:8443", "us-east-1"),
        (
            "https://bkt.ns.compat.objectstorage.eu-frankfurt-1.oraclecloud.com",
            "bkt",
            "https://ns.compat.objectstorage.eu-frankfurt-1.oraclecloud.com",
            "eu-frankfurt-1",
        ),
        ("https://bkt.s3.gra.io.cloud.ovh.net", "bkt", "https://s3.gra.io.cloud.ovh.net", "gra"),
        ("https://s3.uk.cloud.ovh.net/bkt", "bkt", "https://s3.uk.cloud.ovh.net", "uk"),
    ],
)
def test_form(url, bucket, endpoint, region):
    if url == "s3.amazonaws.com/bkt":  # AWS, whatever stands before it
        endpoint, region = AWS, "us-east-1"
    place = parse_s3(url, {})
    assert (place.bucket, place.endpoint, place.region) == (bucket, endpoint, region)
    assert place.secure == (not (endpoint or "https").startswith("http:"))


def test_the_environment_gives_the_region_of_a_custom_endpoint_only():
    env = {"AWS_REGION": "one", "AWS_DEFAULT_REGION": "two"}
    assert parse_s3("http://host/bkt", env).region == "one"
    assert parse_s3("http://host/bkt", {"AWS_DEFAULT_REGION": "two"}).region == "two"
    assert parse_s3("https://bkt.s3.three.amazonaws.com", env).region == "three"
    assert parse_s3("https://bkt", env).region is None


def test_requests_are_path_style_unless_told_otherwise():
    assert not parse_s3("http://bkt.example.org", {}).virtual_host
    assert not parse_s3("http://bkt.example.org", {"JFS_S3_VHOST_STYLE": "false"}).virtual_host
    assert not parse_s3("http://bkt.example.org", {"JFS_S3_VHOST_STYLE": ""}).virtual_host
    assert parse_s3("http://bkt.example.org", {"JFS_S3_VHOST_STYLE": "1"}).virtual_host
    oracle = "https://bkt.vhcompat.objectstorage.eu-frankfurt-1.oraclecloud.com"
    place = parse_s3(oracle, {})
    assert place.virtual_host
    assert place.region == "eu-frankfurt-1"


def test_query():
    place = parse_s3("https://host/bkt", {})
    assert (place.checksum, place.verify_tls, place.ca_certs) == (True, True, "")
    place = parse_s3(
        "https://host/bkt?disable-checksum=true&tls-insecure-skip-verify=true"
        "&ca-certs=/a&ssl-cert=/b&ssl-key=/c",
        {},
    )
    assert (place.checksum, place.verify_tls) == (False, False)
    assert (place.ca_certs, place.client_cert, place.client_key) == ("/a", "/b", "/c")
    assert parse_s3("https://host/bkt?disable-checksum=false", {}).checksum


@pytest.mark.parametrize(
    ("url", "bucket", "endpoint", "region"),
    [
        ("http://127.0.0.1:9000/bkt", "bkt", "http://127.0.0.1:9000", "us-east-1"),
        ("127.0.0.1:9000/bkt/more", "bkt", "http://127.0.0.1:9000", "us-east-1"),
        ("https://host/minio/bkt", "bkt", "https://host", "us-east-1"),
        ("https://host/bkt?region=here", "bkt", "https://host", "here"),
    ],
)
def test_minio_form(url, bucket, endpoint, region):
    place = parse_minio(url, {})
    assert (place.bucket, place.endpoint, place.region) == (bucket, endpoint, region)
    assert not place.virtual_host


def test_minio_region_of_the_environment():
    assert parse_minio("http://host/bkt", {"MINIO_REGION": "there"}).region == "there"


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://host/bkt",
        "s3://bkt",
        "http://",
        "http:///bkt",
        "http://host:notaport/bkt",
        "http://127.0.0.1:9000",
        "http://localhost:9000",
        "https://s3.eu-west-1.amazonaws.com",
        "http://host/b",
        "http://host/sp ace",
        "http://host/bkt%2F",
    ],
)
def test_what_names_no_bucket_is_refused(url):
    with pytest.raises(RefusedError) as refused:
        parse_s3(url, {})
    assert refused.value.exit_code == ExitCode.USAGE
    assert url in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.promise(16)
def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(RefusedError) as refused:
        parse_s3("https://someone:topsecret@host/bkt", {})
    assert "topsecret" not in str(refused.value)
    with pytest.raises(RefusedError):
        parse_minio("http://host", {})
