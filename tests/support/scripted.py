"""A server on the loopback that says what the test wants."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from contextlib import asynccontextmanager

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jfsd.object.s3 import Credentials, S3Store
from jfsd.object.s3url import parse_s3


@asynccontextmanager
async def opened(url, access_key="ak", secret_key="sk", token="", **options):
    """A store at `url`, which is closed at the end."""
    store = S3Store(parse_s3(url, {}), Credentials(access_key, secret_key, token), **options)
    try:
        yield store
    finally:
        await store.close()


class Script:
    """An HTTP server on the loopback that answers from a list and keeps what it was asked."""

    def __init__(self):
        self.requests = []
        self.answers = []

    @asynccontextmanager
    async def serving(self, tls=None):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        port = server.sockets[0].getsockname()[1]
        async with server:
            yield f"http{'s' if tls else ''}://127.0.0.1:{port}/bkt"

    async def _serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")
                headers = {k.lower(): v for k, _, v in (x.partition(": ") for x in lines) if k}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((first, headers, body))
                answer = self.answers.pop(0) if self.answers else reply(200)
                writer.write(answer)
                await writer.drain()
                if b"Connection: close" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def reply(status, body=b"", code="", **headers):
    if code:
        body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>".encode()
    lines = [f"HTTP/1.1 {status} x", f"Content-Length: {headers.pop('length', len(body))}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def make_certificate(directory, address="127.0.0.1"):
    """Return the file of a certificate for `address` that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    name_of_host = x509.IPAddress(ipaddress.ip_address(address))
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name_of_host]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / "tls.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + cert.public_bytes(pem))
    return path
