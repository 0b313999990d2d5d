"""Where a server listens for who reads its metrics: on this machine only."""

from __future__ import annotations

import socket
from typing import NamedTuple

OFF = "off"
UNIX = "unix:"
DEFAULT = "127.0.0.1:9567"

_LOOPBACK_6 = bytes(15) + b"\x01"
_MAX_PATH_BYTES = 107


class Address(NamedTuple):
    """A port of the loopback interface, or else a socket's path."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"{UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address | None:
    """Return the address that a text names; None for `off`.

    Raises:
        ValueError: It is none, or one that other machines reach.
    """
    if text == OFF:
        return None
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        if not path.startswith("/") or "\0" in path:
            raise ValueError("is not an absolute path")
        if len(path.encode()) > _MAX_PATH_BYTES:
            raise ValueError(f"is longer than the {_MAX_PATH_BYTES} bytes of a socket's path")
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdecimal() and int(port) <= 65535):
        raise ValueError("is no HOST:PORT")
    host = host.removeprefix("[").removesuffix("]")
    if not _is_loopback(host):
        raise ValueError("can be reached by others than this machine")
    return Address("127.0.0.1" if host == "localhost" else host, int(port))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            raw = socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return raw == _LOOPBACK_6 if family == socket.AF_INET6 else raw[0] == 127
    return False
