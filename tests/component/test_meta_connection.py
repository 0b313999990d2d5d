"""The connection: refusals at start, and what it goes through without anybody noticing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID
from support.engines import open_meta
from support.nodes import open_nodes
from support.redis import RedisServer
from support.session import Service, free_ports, program, wait_until

from jfsd.errors import ExitCode, RefusedError
from jfsd.meta.connection import Connection, MetaUnavailableError
from jfsd.meta.url import parse_meta_url
from jfsd.meta.wire import ReplyError
from jfsd.types import NodeType


@contextlib.asynccontextmanager
async def connected(url: str, *, wait: bool = False, deadline_s: float = 60):
    connection = Connection(parse_meta_url(url, {}), deadline_s=deadline_s)
    await connection.open(wait=wait)
    try:
        yield connection
    finally:
        await connection.close()


async def refusal(url: str) -> str:
    with pytest.raises(RefusedError) as caught:
        async with connected(url):
            pass
    assert caught.value.exit_code == ExitCode.META_UNREACHABLE
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture(name="own")
def fixture_own(bed):
    """A server that this test may mistreat."""
    server = RedisServer(bed, durable=True)
    yield server
    server.resume()
    server.service.kill()


# ---- refusals


@pytest.mark.promise(16)
async def test_nobody_there(tmp_path) -> None:
    [port] = free_ports(1)
    assert "cannot be reached" in await refusal(f"redis://127.0.0.1:{port}/0")
    assert "cannot be reached" in await refusal(f"unix://{tmp_path}/none?db=0")
    assert "cannot be reached" in await refusal("redis://no-such-host.invalid/0")


@pytest.mark.promise(16)
async def test_wrong_password(own) -> None:
    own.client().execute_command("CONFIG", "SET", "requirepass", "right")
    socket_ = own.socket
    assert "refuses us" in await refusal(f"unix://:wrong@{socket_}?db=0")
    assert "refuses us" in await refusal(f"unix://{socket_}?db=0")
    assert "wrong" not in (await refusal(f"unix://:sesame@{socket_}?db=0")).replace("WRONG", "")
    async with connected(f"unix://:right@{socket_}?db=3") as connection:
        assert await connection.call("GET", "x") is None


@pytest.mark.promise(16)
async def test_wrong_database(redis_server) -> None:
    assert "no database 99999" in await refusal(f"unix://{redis_server.socket}?db=99999")


@pytest.mark.promise(16)
async def test_not_redis() -> None:
    async def serve(reader, writer) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert "redis://127.0.0.1" in await refusal(f"redis://127.0.0.1:{port}/0")
    server.close()
    await server.wait_closed()


@pytest.mark.promise(16)
async def test_server_without_scripts(own) -> None:
    own.client().execute_command("ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "-@scripting")
    assert "no Lua scripts" in await refusal(f"unix://u:p@{own.socket}?db=0")


async def test_eviction_is_switched_off_or_warned_about(own, caplog) -> None:
    client = own.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    async with connected(own.url(0)):
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert not caplog.records
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.execute_command(
        "ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "-config|set", "+config|get"
    )
    async with connected(f"unix://u:p@{own.socket}?db=0"):
        pass
    [record] = caplog.records
    assert "may evict keys" in record.getMessage()


async def test_eviction_is_warned_about_where_config_is_forbidden(own, caplog) -> None:
    client = own.client()
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.execute_command("ACL", "SETUSER", "default", "-config")
    async with connected(own.url(0)):
        pass
    [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "may evict keys (maxmemory-policy allkeys-lru)" in record.getMessage()


# ---- while it runs


async def test_replies_belong_to_their_commands(meta_url) -> None:
    async with connected(meta_url) as connection:
        blob = bytes(range(256)) * 5000
        await connection.call("SET", b"a\0\xff", blob)
        replies = await asyncio.gather(
            *(connection.call("ECHO", b"%d" % n + blob[: n * 37]) for n in range(500)),
            connection.call("GET", b"a\0\xff"),
        )
        assert replies == [*(b"%d" % n + blob[: n * 37] for n in range(500)), blob]
        with pytest.raises(ReplyError) as caught:
            await connection.call("HGET", b"a\0\xff", "x")
        assert caught.value.code == "WRONGTYPE"


async def test_a_cancelled_call_does_not_shift_replies(meta_url) -> None:
    async with connected(meta_url) as connection:
        tasks = [asyncio.create_task(connection.call("ECHO", str(n))) for n in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert replies[4:] == [b"%d" % n for n in range(4, 10)]


@pytest.mark.promise(15)
async def test_a_restarted_server_is_waited_for(own, caplog) -> None:
    caplog.set_level(logging.INFO, "jfsd")
    async with open_nodes(own.url(0), own.client()) as nodes:
        stop = asyncio.Event()

        async def worker(number: int) -> int:
            turn = 0
            while not stop.is_set():
                await nodes.make(1, b"%d-%d" % (number, turn))
                turn += 1
            return turn

        async def told(words: str, times: int) -> None:
            async with asyncio.timeout(30):
                while sum(words in r.getMessage() for r in caplog.records) < times:
                    await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(worker(n)) for n in range(8)]
        for turn in (1, 2):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(own.stop)
            await told("is away", turn)
            await asyncio.to_thread(own.start)
            await told("is back", turn)
        stop.set()
        made = sum(await asyncio.gather(*tasks))
        assert own.client().hlen("d1") == made > 0
        nodes.check()
    texts = [r.getMessage() for r in caplog.records]
    assert sum("is away" in text for text in texts) == 2
    assert sum("is back" in text for text in texts) == 2


@pytest.mark.promise(15)
async def test_a_hung_server_is_left_and_nothing_is_done_twice(own) -> None:
    """The old socket's commands must not run after the new one's repeats were answered."""
    url = own.url(0) + "&read-timeout=1s"
    async with open_nodes(own.url(0), own.client()) as nodes:
        async with open_meta(url, "m2") as meta:
            calls = [
                asyncio.create_task(meta.mknod(nodes.op(), 1, b"%d" % n, NodeType.DIRECTORY, 0))
                for n in range(200)
            ]
            own.pause()
            await asyncio.sleep(2.5)
            own.resume()
            await asyncio.gather(*calls)
            removals = [meta.rmdir(nodes.op(), 1, b"%d" % n) for n in range(200)]
            await asyncio.gather(*removals)
            assert meta.connection.reconnects
        assert own.client().hlen("d1") == 0
        nodes.check()


async def test_deadline_is_an_io_error(own) -> None:
    async with connected(own.url(0), deadline_s=2.0) as connection:
        own.stop()
        began = time.monotonic()
        with pytest.raises(MetaUnavailableError) as caught:
            await connection.call("GET", "x")
        assert 1.9 < time.monotonic() - began < 5
        assert caught.value.errno == 5
        own.start()
        assert await connection.call("GET", "x") is None


async def test_start_without_server_comes_up_later(own) -> None:
    own.stop()
    async with connected(own.url(0), wait=True) as connection:
        call = asyncio.create_task(connection.call("PING"))
        await asyncio.sleep(0.3)
        assert not call.done()
        await asyncio.to_thread(own.start)
        assert await call == b"PONG"


async def test_close_ends_who_waits(own) -> None:
    connection = Connection(parse_meta_url(own.url(0), {}))
    await connection.open()
    own.stop()
    call = asyncio.create_task(connection.call("PING"))
    await asyncio.sleep(0.1)
    await connection.close()
    with pytest.raises(MetaUnavailableError):
        await call
    with pytest.raises(MetaUnavailableError):
        await connection.call("PING")


async def test_full_memory_is_no_space(own) -> None:
    async with open_nodes(own.url(0), own.client()) as nodes:
        own.client().config_set("maxmemory", "1")
        nodes.mark()
        with pytest.raises(OSError, match="OOM") as caught:
            await nodes.make(1, b"f")
        assert caught.value.errno == 28
        assert nodes.changed() == {}
        own.client().config_set("maxmemory", "0")
        await nodes.make(1, b"f")
        nodes.check()


@pytest.mark.promise(15)
async def test_a_replica_is_waited_out(own) -> None:
    async with open_nodes(own.url(0), own.client()) as nodes:
        [port] = free_ports(1)
        own.client().execute_command("REPLICAOF", "127.0.0.1", str(port))
        call = asyncio.create_task(nodes.make(1, b"f"))
        await asyncio.sleep(0.5)
        assert not call.done()
        own.client().execute_command("REPLICAOF", "NO", "ONE")
        await call
        nodes.check()


# ---- other ways to the server


@contextlib.contextmanager
def one_node_cluster(bed, port: int):
    directory = bed.directory("n")
    argv = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    argv += ["--dir", str(directory), "--cluster-enabled", "yes"]
    service = Service(bed, argv, directory / "log")
    try:
        wait_until(lambda: _listens(port), 10, "redis")
        with redis.Redis(port=port) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            wait_until(
                lambda: "ok" in str(client.execute_command("CLUSTER INFO")),
                10,
                "cluster",
            )
            yield client
    finally:
        service.kill()


async def test_cluster_prefixes_every_key(bed) -> None:
    [port] = free_ports(1, also_plus=10000)
    with one_node_cluster(bed, port) as client:
        for url in (f"redis://127.0.0.1:{port}/7", f"redis://127.0.0.1:{port},127.0.0.1:{port}/7"):
            async with open_nodes(url, client, trash_days=1) as nodes:
                assert nodes.meta.connection.prefix == "{7}"
                top = await nodes.mkdir(1, b"d")
                await nodes.make(top, b"f", length=5000)
                await nodes.meta.link(nodes.op(), await nodes.make(top, b"l"), 1, b"l")
                await nodes.meta.rename(nodes.op(), top, b"f", 1, b"g")
                await nodes.meta.unlink(nodes.op(), 1, b"g")
                await nodes.meta.unlink(nodes.op(), top, b"l")
                await nodes.meta.rmdir(nodes.op(), 1, b"d")
                assert (await nodes.meta.statfs())[2] > 3
            strays = {b"dirUsedSpace", b"dirUsedInodes", b"dirDataLength"}  # of the fixture
            left = [k for k in client.keys("*") if not k.startswith(b"{7}")]
            assert set(left) == strays
            assert client.get("{7}totalInodes") == b"4"
            client.flushall()


async def test_sentinel_names_the_master(bed) -> None:
    port, sentinel_port = free_ports(2)
    directory = bed.directory("n")
    argv = [program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    argv += ["--dir", str(directory)]
    master = Service(bed, argv, directory / "log")
    config = directory / "sentinel.conf"
    config.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {directory}\n"
        f"sentinel monitor lab 127.0.0.1 {port} 1\n"
    )
    sentinel = Service(
        bed, [program("redis-server"), str(config), "--sentinel"], directory / "log2"
    )
    try:
        for each in (port, sentinel_port):
            wait_until(lambda p=each: _listens(p), 10, "redis")
        async with connected(f"redis://lab,127.0.0.1:{sentinel_port}/2") as connection:
            await connection.call("SET", "x", "1")
            port_line = await connection.call("CONFIG", "GET", "port")
            assert port_line[1] == str(port).encode()
        assert "cannot be reached" in await refusal(f"redis://none,127.0.0.1:{sentinel_port}/2")
    finally:
        sentinel.kill()
        master.kill()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def certificate(directory) -> tuple[str, str]:
    """Write a self-signed certificate for localhost; return the names of it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = directory / "cert.pem", directory / "key.pem"
    cert.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(cert), str(private)


async def test_tls(bed) -> None:
    [port] = free_ports(1)
    directory = bed.directory("n")
    cert, key = certificate(directory)
    argv = [program("redis-server"), "--port", "0", "--tls-port", str(port), "--save", ""]
    argv += ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
    argv += ["--dir", str(directory), "--bind", "127.0.0.1", "--requirepass", "pw"]
    server = Service(bed, argv, directory / "log")
    client = f"tls-cert-file={cert}&tls-key-file={key}"
    try:
        wait_until(lambda: _listens(port), 10, "redis")
        url = f"rediss://:pw@127.0.0.1:{port}/1?{client}"
        trust = f"tls-ca-cert-file={cert}"
        for extra in (f"{trust}&tls-server-name=localhost", "insecure-skip-verify=true"):
            async with connected(f"{url}&{extra}") as connection:
                blob = bytes(300000)
                assert await connection.call("ECHO", blob) == blob
        assert "cannot be reached" in await refusal(f"{url}&{trust}")
        assert "cannot be reached" in await refusal(url)
    finally:
        server.kill()
