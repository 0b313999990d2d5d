"""Where an S3 bucket is: the forms of bucket URLs that volumes carry (format.md §13.2).

Pure: nothing here speaks to a network or reads the environment by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, parse_qs, urlsplit

from jfsd.errors import ExitCode, RefusedError

DEFAULT_REGION = "us-east-1"
_AWS = ".amazonaws.com"
_VPCE = re.compile(r"(?:^|\.)vpce-[^.]+\.s3\.([^.]+)\.vpce\.amazonaws\.com(?:\.cn)?$")
_AWS_HOST = re.compile(r"^(?:(?P<bucket>.+)\.)?s3(?:[.-](?P<rest>.+))?\.amazonaws\.com(?:\.cn)?$")
_ORACLE = re.compile(r"\.(?:vh)?compat\.objectstorage\.([^.]+)\.oraclecloud\.com$")
_OVH = re.compile(r"^s3\.(\w+)(?:\.\w+)?\.cloud\.ovh\.net$")
_BUCKET_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")
_FALSE = ("0", "f", "false", "no", "off")
_FORMS = "write it as https://BUCKET.s3.REGION.amazonaws.com or https://HOST[:PORT]/BUCKET"


@dataclass(frozen=True, slots=True)
class S3Location:
    """A bucket and the way to it.

    `endpoint` is None for AWS itself. `region` is None when it has to be asked for,
    which only AWS can answer.
    """

    bucket: str
    endpoint: str | None = None
    region: str | None = None
    secure: bool = True
    virtual_host: bool = False
    checksum: bool = True
    verify_tls: bool = True
    ca_certs: str = ""
    client_cert: str = ""
    client_key: str = ""

    def __str__(self) -> str:
        where = self.endpoint or f"AWS {self.region or ''}".rstrip()
        return f"bucket {self.bucket} at {where}"


def parse_s3(url: str, environ: Mapping[str, str]) -> S3Location:
    """Return the place that the bucket URL of an `s3` volume names.

    Raises:
        RefusedError: The URL has none of the forms of format.md §13.2.
    """
    parts = _split(_with_scheme(url), url)
    host = parts.netloc
    path_bucket = _first_path_element(parts.path)
    if path_bucket:
        place = _path_form(host, path_bucket)
    elif "." not in host:
        place = S3Location(host)
    else:
        place = _host_form(host, url)
    return _complete(place, parts, url, environ)


def parse_minio(url: str, environ: Mapping[str, str]) -> S3Location:
    """Return the place that the bucket URL of a `minio` volume names.

    Raises:
        RefusedError: The URL is not `http(s)://HOST[:PORT]/BUCKET`.
    """
    parts = _split(url if "://" in url else f"http://{url}", url)
    path = parts.path.strip("/")
    bucket = _first_path_element(path.removeprefix("minio/"))
    if not bucket:
        raise _refused(url, "it names no bucket", "write it as http://HOST:PORT/BUCKET")
    region = _query(parts, "region") or environ.get("MINIO_REGION") or DEFAULT_REGION
    place = S3Location(bucket, endpoint=parts.netloc, region=region)
    return _complete(place, parts, url, environ)


def _with_scheme(url: str) -> str:
    if "://" in url:
        return url
    host = url.split("/", 1)[0].split("?", 1)[0]
    plain = "." in host and not host.endswith(_AWS)
    return f"{'http' if plain else 'https'}://{url}"


def _split(full: str, url: str) -> SplitResult:
    if "@" in full.partition("?")[0]:
        raise _refused(url, "it holds credentials", "give them as access key and secret key")
    try:
        parts = urlsplit(full)
        _ = parts.port
    except ValueError:
        raise _refused(url, "it is no URL", _FORMS) from None
    if parts.scheme not in ("http", "https"):
        raise _refused(url, "its scheme is neither http nor https", _FORMS)
    if not parts.hostname:
        raise _refused(url, "it names no host", _FORMS)
    return parts


def _first_path_element(path: str) -> str:
    return path.strip("/").split("/", 1)[0]


def _path_form(host: str, bucket: str) -> S3Location:
    vpce = _VPCE.search(host)
    if vpce:
        return S3Location(bucket, endpoint=host, region=vpce.group(1))
    aws = _AWS_HOST.match(host)
    if aws:
        return S3Location(bucket, region=_aws_region(aws.group("rest"), host))
    return S3Location(bucket, endpoint=host, region=_known_region(host))


def _host_form(host: str, url: str) -> S3Location:
    bucket, _, rest = host.partition(".")
    vpce = _VPCE.search(host)
    if vpce:
        return S3Location(bucket, endpoint=rest, region=vpce.group(1))
    if _AWS in host:
        aws = _AWS_HOST.match(host)
        if not aws or not aws.group("bucket"):
            raise _refused(url, "it names no bucket", _FORMS)
        return S3Location(aws.group("bucket"), region=_aws_region(aws.group("rest"), host))
    if re.fullmatch(r"[\d.]+(:\d+)?", host) or host.startswith("["):
        raise _refused(url, "it names a host and no bucket", "write it as http://HOST:PORT/BUCKET")
    return S3Location(
        bucket,
        endpoint=rest,
        region=_known_region(rest),
        virtual_host=".vhcompat.objectstorage." in host,
    )


def _aws_region(rest: str | None, host: str) -> str:
    """`rest` is what stands between `s3` and `amazonaws.com`."""
    region = (rest or "").removeprefix("dualstack").lstrip(".").split(".")[0]
    if region in ("", "external-1"):
        return "cn-north-1" if host.endswith(".cn") else DEFAULT_REGION
    return region


def _known_region(endpoint: str) -> str | None:
    found = _ORACLE.search(f".{endpoint}") or _OVH.match(endpoint)
    return found.group(1) if found else None


def _complete(
    place: S3Location, parts: SplitResult, url: str, environ: Mapping[str, str]
) -> S3Location:
    """Add what scheme, query and environment say."""
    if not _BUCKET_NAME.match(place.bucket):
        raise _refused(url, f"{place.bucket!r} cannot be the name of a bucket", _FORMS)
    region = place.region
    if region is None and place.endpoint:
        region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
    virtual = place.virtual_host or _is_true(environ.get("JFS_S3_VHOST_STYLE", "0") or "0")
    return replace(
        place,
        endpoint=place.endpoint and f"{parts.scheme}://{place.endpoint}",
        region=region,
        secure=parts.scheme == "https",
        virtual_host=virtual if place.endpoint else True,
        checksum=not _is_true(_query(parts, "disable-checksum", "0")),
        verify_tls=not _is_true(_query(parts, "tls-insecure-skip-verify", "0")),
        ca_certs=_query(parts, "ca-certs"),
        client_cert=_query(parts, "ssl-cert"),
        client_key=_query(parts, "ssl-key"),
    )


def _query(parts: SplitResult, name: str, default: str = "") -> str:
    values = parse_qs(parts.query, keep_blank_values=True).get(name)
    return values[-1] if values else default


def _is_true(word: str) -> bool:
    return word.lower() not in _FALSE


def _refused(url: str, rule: str, mend: str) -> RefusedError:
    """Build the error; what may be a password in the URL is left out."""
    shown = f"…@{url.rpartition('@')[2]}" if "@" in url else url
    return RefusedError(ExitCode.USAGE, f"bucket {shown!r}", rule, mend)
