"""Where requests go: the same place that the client library sends them to, or nowhere."""

from __future__ import annotations

import pytest

from jfsd.object.s3base import Credentials
from jfsd.object.s3target import Target, plain_target, target_of
from jfsd.object.s3url import S3Location, parse_s3
from jfsd.object.s3wire import connect

BARE = {"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("AWS_CA_BUNDLE", "AWS_PROFILE", "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in BARE.items():
        monkeypatch.setenv(name, value)


KEYS = Credentials("ak", "sk")
LOCATIONS = [
    S3Location("bkt", region="us-east-1", virtual_host=True),
    S3Location("a-b-1", region="ap-southeast-2", virtual_host=True),
    S3Location("bkt", region="eu-west-1", secure=False, virtual_host=True),
    S3Location("Bkt_X", "http://h.example:9000", "x", secure=False),
    S3Location("b.kt", "https://h.example:443", "x"),
    S3Location("bkt", "http://[::1]:80", "x", secure=False),
    S3Location("bkt", "https://h.example:9000", "x", virtual_host=True),
]
LEFT_TO_THE_LIBRARY = [
    S3Location("bkt", region="cn-north-1", virtual_host=True),
    S3Location("b.kt", region="eu-west-1", virtual_host=True),
    S3Location("bkt", "http://häfen.example", "x", secure=False),
    S3Location("bkt", "http://1.2.3.4:9", "x", secure=False, virtual_host=True),
    S3Location("ab", "http://[::1]", "x", secure=False, virtual_host=True),
]


async def ask_library(location, credentials=KEYS):
    library = await connect(location, credentials, connections=1, timeout_s=1)
    try:
        return await library.target()
    finally:
        await library.close()


@pytest.mark.parametrize("location", LOCATIONS, ids=str)
async def test_it_is_where_the_library_goes(location):
    ours, theirs = plain_target(location, BARE), await ask_library(location)
    assert ours.address == theirs.address
    assert ours.named_host == theirs.named_host
    assert (ours.secure, ours.prefix, ours.region) == (theirs.secure, theirs.prefix, theirs.region)


@pytest.mark.parametrize("location", LEFT_TO_THE_LIBRARY, ids=str)
def test_rules_about_hosts_are_left_to_the_library(location):
    assert plain_target(location, BARE) is None


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://h:9000/bkt", Target(False, "h:9000", "/bkt", "us-east-1")),
        (
            "https://bkt.s3.eu-west-1.amazonaws.com",
            Target(True, "bkt.s3.eu-west-1.amazonaws.com", "", "eu-west-1"),
        ),
        ("https://bkt", None),  # the region has to be asked for
        ("http://h/a--x-s3", None),
    ],
)
def test_usual_volumes(url, target):
    assert plain_target(parse_s3(url, {}), BARE) == target


@pytest.mark.parametrize(
    "environ",
    [
        {"http_proxy": "http://p"},
        {"HTTPS_PROXY": "http://p"},
        {"AWS_ENDPOINT_URL": "http://h"},
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        {"AWS_PROFILE": "p"},
        {"AWS_CONFIG_FILE": "/etc/passwd"},
        {"AWS_SHARED_CREDENTIALS_FILE": "/etc/passwd"},
    ],
)
def test_what_else_plays_a_part_is_left_to_the_library(environ):
    location = parse_s3("http://h:9000/bkt", {})
    assert plain_target(location, {**BARE, **environ}) is None
    harmless = {"no_proxy": "h", "http_proxy": "", "AWS_REGION": "x", "AWS_CA_BUNDLE": "/f"}
    assert plain_target(location, {**BARE, **harmless}) is not None


async def test_what_the_environment_says_reaches_the_target(monkeypatch):
    location = S3Location("bkt", region="eu-west-1")
    monkeypatch.setenv("AWS_USE_DUALSTACK_ENDPOINT", "true")
    target = await ask_library(location)
    assert target == Target(True, "bkt.s3.dualstack.eu-west-1.amazonaws.com", "", "eu-west-1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert await ask_library(location) is None
    monkeypatch.setenv("no_proxy", "amazonaws.com")
    assert await ask_library(location) == target


async def test_without_a_signature_the_target_is_the_same():
    location = S3Location("bkt", "http://h:9000", "x", False)
    found = await ask_library(location, Credentials("anonymous"))
    assert found[:3] == plain_target(location, BARE)[:3]


async def test_without_keys_there_is_no_target(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert await ask_library(S3Location("bkt", "http://h:9000", "x", False), Credentials()) is None


def test_a_url_is_taken_apart():
    assert target_of("http://h:1/b/a%20key", "/a%20key", "x") == Target(False, "h:1", "/b", "x")
    assert target_of("https://b.h/a%20key", "/a%20key", "x") == Target(True, "b.h", "", "x")
    assert target_of("https://b.h/other", "/a%20key", "x") is None
    assert target_of("https://b.h/a%20key?v=1", "/a%20key", "x") is None
