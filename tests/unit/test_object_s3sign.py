"""Signatures, compared with those of the client library."""

from __future__ import annotations

import datetime as dt
from unittest import mock

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from jfsd.object.s3sign import Signer

WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
PATHS = st.text("abcXYZ019-._~/%20", max_size=60).map(lambda text: f"/{text}")


@given(
    method=st.sampled_from(["GET", "PUT", "DELETE", "HEAD"]),
    host=st.sampled_from(["h", "b.s3.amazonaws.com", "127.0.0.1:9000", "[::1]:80"]),
    path=PATHS,
    query=st.sampled_from(["", "list-type=2&max-keys=1"]),
    region=st.sampled_from(["us-east-1", "x", "eu-central-1"]),
    keys=st.tuples(WORDS, WORDS, st.one_of(st.just(""), WORDS)),
    extra=st.dictionaries(
        st.sampled_from(["range", "content-type", "x-amz-meta-crc32c", "x-amz-meta-a"]),
        st.text("abc  19=-/", min_size=1).filter(str.strip),
    ),
    second=st.integers(0, 4_000_000_000),
)
def test_signatures_are_those_of_the_library(
    method, host, path, query, region, keys, extra, second
):
    access, secret, token = keys
    ours = Signer(region, access, secret, token, clock=lambda: second + 0.5).sign(
        method, path, query, {"host": host, **extra}
    )
    request = AWSRequest(
        method, f"http://{host}{path}{query and '?' + query}", headers={"host": host, **extra}
    )
    request.context["client_config"] = mock.Mock(s3={"payload_signing_enabled": False})
    now = dt.datetime.fromtimestamp(second, dt.UTC)
    with mock.patch("botocore.auth.get_current_datetime", return_value=now):
        S3SigV4Auth(Credentials(access, secret, token or None), "s3", region).add_auth(request)
    theirs = {name.lower(): value for name, value in request.headers.items()}
    assert ours == theirs


def test_the_key_changes_at_midnight_and_the_moment_each_second():
    now = 86399.0
    signer = Signer("x", "ak", "sk", clock=lambda: now)
    first = signer.sign("GET", "/", "", {"host": "h"})
    assert signer.sign("GET", "/", "", {"host": "h"}) == first
    now = 86400.0
    second = signer.sign("GET", "/", "", {"host": "h"})
    assert (first["x-amz-date"], second["x-amz-date"]) == ("19700101T235959Z", "19700102T000000Z")
    assert "/19700102/x/s3/" in second["authorization"]
    assert second == Signer("x", "ak", "sk", clock=lambda: now).sign("GET", "/", "", {"host": "h"})


def test_a_signer_shows_no_keys():
    assert "secret" not in repr(Signer("x", "secret-ak", "secret-sk", "secret-t"))
