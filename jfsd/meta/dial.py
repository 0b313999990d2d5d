"""How a socket to a Redis server is made.

A plain socket is greeted by us in one round trip. What needs more (TLS, Sentinel) is done
by `redis.asyncio`, which is imported then: loading it takes longer than all else that the
first answer of a server needs, and a server that takes a mount over is waited for.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

from jfsd.meta.wire import ReplyError, Request, Wire, pack

if TYPE_CHECKING:
    from collections.abc import Callable

    from jfsd.meta.url import MetaUrl
    from jfsd.meta.wire import Argument

_NAME = "jfsd"


class DialError(OSError):
    """The server cannot be reached, or refuses user, password or database."""


async def open_wire(
    url: MetaUrl, host: tuple[str, int] | None, connect_timeout_s: float, lost: Callable[[], None]
) -> Wire:
    """Return a connected, authenticated wire on the URL's database.

    Args:
        url: Who we are, and which database; `host` is where.
        host: Address and port; None for the URL's unix socket.
        connect_timeout_s: How long it may take.
        lost: Called when the connection is gone.

    Raises:
        OSError: It cannot be reached (DialError among others), or a certificate not be read.
    """
    if url.tls is not None and host is not None:
        return await _open_tls(url, host, connect_timeout_s, lost)
    wire = Wire(lost)
    where = url.path if host is None else f"{host[0]}:{host[1]}"
    try:
        async with asyncio.timeout(connect_timeout_s):
            wire.attach(await _connect(wire, url.path, host))
            await _greet(wire, url)
    except TimeoutError:
        wire.close()
        raise DialError(errno.ETIMEDOUT, f"no answer from {where}") from None
    except ReplyError as error:
        wire.close()
        raise DialError(errno.EACCES, str(error.strerror)) from error
    except OSError as error:
        wire.close()
        if wire.garbled:
            raise DialError(errno.EPROTO, f"{where}: answers in another protocol") from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DialError(error.errno, f"{where}: {reason}") from error
    except BaseException:
        wire.close()
        raise
    return wire


async def find_master(url: MetaUrl, timeout_s: float) -> tuple[str, int]:
    """Return the address of the master that the Sentinels of the URL name.

    Raises:
        DialError: None of them answers, or knows it.
    """
    from redis.asyncio.sentinel import Sentinel  # noqa: PLC0415 - see above
    from redis.exceptions import RedisError  # noqa: PLC0415

    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        list(url.hosts),
        sentinel_kwargs={
            "password": url.sentinel_password or None,
            "socket_timeout": timeout_s,
            "protocol": 2,
        },
    )
    try:
        address = await sentinel.discover_master(url.master_name)
    except RedisError as error:
        raise DialError(errno.EHOSTUNREACH, str(error)) from error
    finally:
        for client in sentinel.sentinels:
            await client.aclose()
    return str(address[0]), int(address[1])


async def _connect(wire: Wire, path: str, host: tuple[str, int] | None) -> asyncio.WriteTransport:
    loop = asyncio.get_running_loop()
    if host is None:
        transport, _ = await loop.create_unix_connection(lambda: wire, path)
        return transport
    transport, _ = await loop.create_connection(lambda: wire, *host)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return transport


async def _greet(wire: Wire, url: MetaUrl) -> None:
    """Log in, choose the database and give our name; all in one round trip.

    Raises:
        ReplyError: We may not log in, or there is no such database.
    """
    loop = asyncio.get_running_loop()

    def say(*words: Argument) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = loop.create_future()
        wire.send(Request(pack(words), future, 0))
        return future

    replies = []
    if url.password:
        user = (url.username,) if url.username else ()
        replies.append(say("AUTH", *user, url.password))
    if url.db and not url.prefix:
        replies.append(say("SELECT", url.db))
    replies.append(say("CLIENT", "SETNAME", _NAME))
    found = await asyncio.gather(*replies, return_exceptions=True)
    for number, error in enumerate(found, 1):
        nameless = number == len(found) and isinstance(error, ReplyError) and error.code != "NOAUTH"
        if isinstance(error, BaseException) and not nameless:
            raise error


async def _open_tls(
    url: MetaUrl, host: tuple[str, int], connect_timeout_s: float, lost: Callable[[], None]
) -> Wire:
    import redis.asyncio.connection as redis_connection  # noqa: PLC0415 - see above
    from redis.exceptions import RedisError  # noqa: PLC0415

    tls = url.tls
    assert tls is not None  # noqa: S101 - the caller has looked
    server_name = tls.server_name

    class Tls(redis_connection.SSLConnection):
        def _connection_arguments(self) -> dict[str, Any]:
            arguments = dict(super()._connection_arguments())
            if server_name:
                arguments["server_hostname"] = server_name
            return arguments

        def hand_over(self, protocol: asyncio.Protocol) -> asyncio.WriteTransport:
            """Return the transport, with `protocol` receiving from it; the streams are gone."""
            assert self._writer is not None  # noqa: S101 - connect() has set it
            transport = self._writer.transport
            transport.set_protocol(protocol)
            self._writer = self._reader = None
            return transport

    verify = not tls.insecure_skip_verify
    connection = Tls(
        host=host[0],
        port=host[1],
        socket_keepalive=True,
        ssl_ca_certs=tls.ca_cert_file or None,
        ssl_certfile=tls.cert_file or None,
        ssl_keyfile=tls.key_file or None,
        ssl_cert_reqs="required" if verify else "none",
        ssl_check_hostname=verify,
        db=0 if url.prefix else url.db,
        username=url.username or None,
        password=url.password or None,
        socket_timeout=url.read_timeout_s,
        socket_connect_timeout=connect_timeout_s,
        protocol=2,
        client_name=_NAME,
        driver_info=None,
    )
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except RedisError as error:
        await connection.disconnect(nowait=True)
        raise DialError(errno.ECONNREFUSED, str(error)) from error
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    wire = Wire(lost)
    wire.attach(connection.hand_over(wire))
    return wire
