"""What an error's answer says: the same as the client library reads from it."""

from __future__ import annotations

import pytest
from botocore.parsers import RestXMLParser
from hypothesis import given
from hypothesis import strategies as st

from jfsd.object.base import ObjectMissingError, StoreError, StoreRefusedError
from jfsd.object.s3errors import of_service, read_error
from jfsd.object.s3url import S3Location

BODIES = [
    b"",
    b" \n",
    b"<Error><Code>NoSuchKey</Code><Message>gone &amp; away</Message></Error>",
    b"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>SlowDown</Code></Error>",
    b"<Error><Message>no code</Message></Error>",
    b"<ErrorResponse><Error><Code>A</Code><Message>b</Message></Error></ErrorResponse>",
    b"<html><body>gateway</body></html>",
    b"<html>gateway",
    b"<!DOCTYPE html><html><head><title>x</title></head></html>",
    b"not found",
    b"\xff\xfe\x00",
    b"{}",
]


def library_reads(status, body):
    response = {"status_code": status, "headers": {}, "body": body}
    error = RestXMLParser().parse(response, None)["Error"]
    return error.get("Code", ""), error.get("Message", "")


@pytest.mark.parametrize("status", [301, 400, 403, 404, 409, 416, 500, 503, 599])
@pytest.mark.parametrize("body", BODIES)
def test_errors_are_read_as_the_library_reads_them(status, body):
    assert read_error(status, body) == library_reads(status, body)


def test_a_name_space_hides_nothing():
    body = b'<Error xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Code>A</Code></Error>'
    assert read_error(400, body) == ("A", "")


@given(st.binary(max_size=200), st.sampled_from([400, 404, 500]))
def test_no_body_is_too_strange(body, status):
    code, text = read_error(status, b"<Error>" + body)
    error = of_service(status, code, text, "GET v/a", S3Location("bkt", "http://h"))
    assert isinstance(error, StoreError)
    assert "\n" not in str(error)


def test_a_gateway_that_says_404_is_no_missing_object():
    location = S3Location("bkt", "http://h")
    page = read_error(404, b"<html><body>nobody here</body></html>")
    assert type(of_service(404, *page, "GET v/a", location)) is StoreError
    assert type(of_service(404, *read_error(404, b""), "x", location)) is ObjectMissingError
    assert type(of_service(403, *read_error(403, b""), "x", location)) is StoreRefusedError
