"""Metrics over HTTP: where they are served, to whom, and what does not disturb."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import stat

import pytest

from jfsd.config.address import DEFAULT, Address, parse_address
from jfsd.daemon import exporter as exporter_module
from jfsd.daemon.exporter import Exporter

pytestmark = pytest.mark.promise(20)
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(exporter_module, "RETRY_S", 0.01)
    monkeypatch.setattr(exporter_module, "LATER_S", 0.01)


@contextlib.asynccontextmanager
async def exporting(wanted, text="up 1\n", **more):
    exporter = Exporter(lambda: text, **more)
    exporter.start(wanted)
    try:
        yield exporter
    finally:
        await exporter.close()


async def listening(exporter):
    async with asyncio.timeout(30):
        while not exporter.address:
            await asyncio.sleep(0.01)
    return parse_address(exporter.address)


async def opened(address):
    if address.path:
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port)


async def asked(address, request=REQUEST):
    reader, writer = await opened(address)
    writer.write(request)
    async with asyncio.timeout(30):
        answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode(), body


async def test_the_text_is_served_on_any_loopback_port():
    async with exporting("127.0.0.1:0") as exporter:
        address = await listening(exporter)
        head, body = await asked(address)
        assert head.startswith("HTTP/1.1 200 OK\r\n")
        assert "text/plain; version=0.0.4" in head
        assert f"Content-Length: {len(body)}" in head
        assert body == b"up 1\n"
    with pytest.raises(ConnectionRefusedError):
        await opened(address)


async def test_a_unix_socket_is_there_while_it_is_served(tmp_path):
    path = tmp_path / "m"
    async with exporting(f"unix:{path}") as exporter:
        await listening(exporter)
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert (await asked(Address(path=str(path))))[1] == b"up 1\n"
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced(tmp_path):
    path = tmp_path / "m"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
    async with exporting(f"unix:{path}") as exporter:
        assert (await asked(await listening(exporter)))[1] == b"up 1\n"


async def test_what_is_no_socket_is_left_alone(tmp_path, caplog):
    path = tmp_path / "precious"
    path.write_text("data")
    async with exporting(f"unix:{path}"):
        async with asyncio.timeout(30):
            while "no socket" not in caplog.text:
                await asyncio.sleep(0.01)
    assert path.read_text() == "data"


async def test_a_socket_that_is_served_is_not_taken_away(tmp_path):
    path = tmp_path / "m"
    async with exporting(f"unix:{path}", "one") as one, exporting(f"unix:{path}", "two") as two:
        await listening(one)
        await asyncio.sleep(0.05)
        assert two.address == ""
        assert (await asked(Address(path=str(path))))[1] == b"one"
        await one.close()
        await listening(two)
        assert (await asked(Address(path=str(path))))[1] == b"two"


async def test_an_address_that_is_taken_is_waited_for(caplog):
    async with exporting("127.0.0.1:0", "one") as one:
        wanted = str(await listening(one))
        async with exporting(wanted, "two") as two:
            async with asyncio.timeout(30):
                while "cannot be used" not in caplog.text:
                    await asyncio.sleep(0.01)
            assert two.address == ""
            await one.close()
            assert (await asked(await listening(two)))[1] == b"two"
    assert caplog.text.count("cannot be used") == 1


async def test_the_default_gives_way_to_any_free_port(monkeypatch):
    async with exporting("127.0.0.1:0") as one:
        taken = str(await listening(one))
        monkeypatch.setattr(exporter_module, "DEFAULT", taken)
        async with exporting(taken) as two:
            address = await listening(two)
            assert str(address) != taken
            assert address.host == "127.0.0.1"


async def test_the_next_server_of_a_mount_waits_for_its_former_ones_port(monkeypatch, caplog):
    monkeypatch.setattr(exporter_module, "FALLBACK_AFTER_S", 60.0)
    async with exporting("127.0.0.1:0", "one") as one:
        taken = str(await listening(one))
        monkeypatch.setattr(exporter_module, "DEFAULT", taken)
        async with exporting(taken, "two", inherits=True) as two:
            await asyncio.sleep(0.05)
            assert two.address == ""
            await one.close()
            assert str(await listening(two)) == taken
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_the_next_server_comes_back_to_the_port_that_was_found(monkeypatch):
    found = []
    async with exporting("127.0.0.1:0") as other:
        taken = str(await listening(other))
        monkeypatch.setattr(exporter_module, "DEFAULT", taken)
        async with exporting(taken, on_found=found.append) as one:
            address = str(await listening(one))
        assert found == [address]
        async with exporting(taken, inherits=True, former=address, on_found=found.append) as two:
            assert str(await listening(two)) == address
        async with exporting("127.0.0.1:0", former=address, on_found=found.append) as asked_for:
            assert str(await listening(asked_for)) != address
    assert found == [address, address, ""]


@pytest.mark.promise(17)
async def test_it_moves_all_or_nothing(tmp_path):
    (tmp_path / "file").touch()
    async with exporting("127.0.0.1:0") as exporter:
        first = await listening(exporter)
        with pytest.raises(OSError, match="no socket"):
            await exporter.move(f"unix:{tmp_path}/file")
        assert (await asked(first))[1] == b"up 1\n"
        await exporter.move(f"unix:{tmp_path}/m")
        assert (await asked(Address(path=f"{tmp_path}/m")))[1] == b"up 1\n"
        with pytest.raises(ConnectionRefusedError):
            await opened(first)
        await exporter.move("off")
        assert exporter.address == ""
        assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
        (b"GET / HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
        (b"nonsense\r\n\r\n", "400"),
    ],
)
async def test_other_requests_are_answered_shortly(request_text, status):
    async with exporting("127.0.0.1:0") as exporter:
        head, body = await asked(await listening(exporter), request_text)
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert len(body) < 100
    assert (body == b"") == request_text.startswith(b"HEAD")


async def test_who_says_too_much_or_nothing_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(exporter_module, "PATIENCE_S", 0.1)
    async with exporting("127.0.0.1:0") as exporter:
        address = await listening(exporter)
        for text in (b"", b"GET /metrics", b"x" * 100_000):
            reader, writer = await opened(address)
            writer.write(text)
            async with asyncio.timeout(30):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
        assert (await asked(address))[1] == b"up 1\n"


async def test_too_many_at_once_are_turned_away(monkeypatch):
    monkeypatch.setattr(exporter_module, "MAX_CONNECTIONS", 2)
    async with exporting("127.0.0.1:0") as exporter:
        address = await listening(exporter)
        silent = [await opened(address) for _ in range(2)]
        await asyncio.sleep(0.05)
        reader, writer = await opened(address)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (DEFAULT, Address("127.0.0.1", 9567)),
        ("localhost:80", Address("127.0.0.1", 80)),
        ("127.8.8.8:1", Address("127.8.8.8", 1)),
        ("[::1]:9567", Address("::1", 9567)),
        ("unix:/run/jfsd/m", Address(path="/run/jfsd/m")),
        ("off", None),
    ],
)
def test_addresses_of_this_machine_are_taken(text, address):
    assert parse_address(text) == address
    if address is not None:
        assert parse_address(str(address)) == address


@pytest.mark.promise(16)
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("0.0.0.0:9567", "reached by others"),
        (":9567", "reached by others"),
        ("[::]:9567", "reached by others"),
        ("10.0.0.1:9567", "reached by others"),
        ("example.org:80", "reached by others"),
        ("127.0.0.1", "no HOST:PORT"),
        ("127.0.0.1:x", "no HOST:PORT"),
        ("127.0.0.1:65536", "no HOST:PORT"),
        ("", "no HOST:PORT"),
        ("unix:m", "no absolute path|not an absolute path"),
        ("unix:/" + "m" * 107, "longer than"),
    ],
)
def test_addresses_that_others_reach_are_refused(text, rule):
    with pytest.raises(ValueError, match=rule):
        parse_address(text)
