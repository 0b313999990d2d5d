"""Metadata URLs: one string of the command line becomes one frozen record (format.md §2.1).

Pure but for the password file, which is read through a parameter. No message of this module
ever shows a password: whatever stands before the last `@` is masked, also in a URL that does
not parse.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote

from jfsd.errors import ExitCode, RefusedError
from jfsd.record import Record, field, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

REDIS_PORT = 6379
SENTINEL_PORT = 26379

MEND = "write redis://[[USER]:PASSWORD@]HOST[:PORT]/DB or unix:///PATH?db=N"

_HIDDEN = "***"
_DURATION_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_DIGITS = re.compile(r"[0-9]+\Z")
_BOOLEANS = {"": False, "false": False, "0": False, "no": False}

_FOREIGN_OPTIONS = frozenset(
    {
        "client_name",
        "conn_max_idle_time",
        "conn_max_lifetime",
        "idle_check_frequency",
        "idle_timeout",
        "max_conn_age",
        "max_idle_conns",
        "max_retries",
        "min_idle_conns",
        "pool_fifo",
        "pool_size",
        "pool_timeout",
        "protocol",
    }
)
"""Options of the reference's Redis library without a meaning here: accepted, not used."""


class Kind(Enum):
    """How the server is reached. A single host may still prove to be a cluster when asked."""

    STANDALONE = "standalone"
    UNIX = "unix"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class TlsOptions(Record):
    """What a `rediss` URL says about TLS; an empty string means the library's default."""

    ca_cert_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    insecure_skip_verify: bool = False


class MetaUrl(Record):
    """Where the metadata lives and how to get in. The passwords are not in its repr.

    `prefix` precedes every key: `{db}` on a cluster, else empty (format.md §2.2). A cluster
    has only database 0; there `db` is a name inside the prefix and must not be SELECTed.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    master_name: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    tls: TlsOptions | None = None
    read_timeout_s: float = 30.0
    write_timeout_s: float = 5.0
    min_retry_backoff_s: float = 0.020
    max_retry_backoff_s: float = 10.0
    route_read: str = ""

    @property
    def scheme(self) -> str:
        """The URL's scheme: `unix`, `rediss` or `redis`."""
        if self.kind is Kind.UNIX:
            return "unix"
        return "redis" if self.tls is None else "rediss"

    @property
    def prefix(self) -> str:
        """What precedes every key of the volume."""
        return f"{{{self.db}}}" if self.kind is Kind.CLUSTER else ""

    def as_cluster(self) -> MetaUrl:
        """Return the same server as a cluster, for one that said it is one when asked."""
        return replace(self, kind=Kind.CLUSTER)

    def redacted(self) -> str:
        """Return the URL for people: without password and options."""
        user = f"{self.username}:{_HIDDEN}@" if self.password else ""
        if self.username and not self.password:
            user = f"{self.username}@"
        if self.kind is Kind.UNIX:
            return f"unix://{user}{self.path}?db={self.db}"
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts
        )
        master = f"{self.master_name}," if self.master_name else ""
        return f"{self.scheme}://{user}{master}{hosts}/{self.db}"


def redact(url: str) -> str:
    """Return `url` without what may be a password, for any string at all."""
    scheme, separator, rest = url.partition("://")
    if not re.fullmatch(r"[A-Za-z0-9+.-]*", scheme) or not separator:
        scheme, separator, rest = "", "", url
    credentials, at, address = rest.rpartition("@")
    if at:
        user = credentials.partition(":")[0] if ":" in credentials else credentials
        hidden = f"{user}:{_HIDDEN}@" if ":" in credentials else f"{user}@"
        if "/" in user or "?" in user:
            hidden = f"{_HIDDEN}@"
    else:
        hidden = ""
    address = address.partition("?")[0].partition("#")[0]
    # What stands in the place of a port but is none may be a password that lacks its '@'.
    address = re.sub(r":(?![0-9]{0,5}(?:[/,]|\Z))[^/,\]]*(?=[/,]|\Z)", f":{_HIDDEN}", address)
    return f"{scheme}{separator}{hidden}{address}"


def parse_meta_url(
    url: str,
    env: Mapping[str, str],
    read_text: Callable[[str], str] = lambda name: Path(name).read_text(encoding="utf-8"),
) -> MetaUrl:
    """Return the parts of a metadata URL, with the password from `env` if it has none.

    Raises:
        RefusedError: USAGE; the URL, an option or the password file is wrong.
    """
    return _Parser(url, env, read_text).parse()


class _Parser:
    """Takes one URL apart; every refusal knows the URL and masks it."""

    def __init__(self, url: str, env: Mapping[str, str], read_text: Callable[[str], str]) -> None:
        self._shown = redact(url)
        self._url = url
        self._env = env
        self._read_text = read_text

    def parse(self) -> MetaUrl:
        """Return the record of the URL."""
        scheme, credentials, address, path, query = self._split()
        username, password = self._credentials(credentials)
        options = dict(self._options(query))
        parsed = self._place(scheme, address, path, options)
        parsed = replace(
            parsed,
            username=username,
            password=password or self._fallback_password(),
            tls=self._tls(options) if scheme == "rediss" else None,
            sentinel_password=(
                self._env.get("SENTINEL_PASSWORD", "") if parsed.kind is Kind.SENTINEL else ""
            ),
            read_timeout_s=self._duration(options, "read-timeout", 30.0),
            write_timeout_s=self._duration(options, "write-timeout", 5.0),
            min_retry_backoff_s=self._duration(options, "min-retry-backoff", 0.020),
            max_retry_backoff_s=self._duration(options, "max-retry-backoff", 10.0),
            route_read=options.pop("route-read", ""),
        )
        self._refuse_rest(options)
        return parsed

    def _refuse(self, rule: str, mend: str = MEND) -> NoReturn:
        raise RefusedError(ExitCode.USAGE, self._shown or "''", rule, mend)

    def _split(self) -> tuple[str, str, str, str, str]:
        url = self._url
        if not url.strip():
            self._refuse("a metadata URL is needed")
        if any(ord(char) < 33 or ord(char) == 127 for char in url):
            self._refuse("a metadata URL has no spaces or control characters", "write them as %XX")
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "redis", url
        scheme = scheme.lower()
        if scheme not in ("redis", "rediss", "unix"):
            self._refuse("metadata is kept in Redis only")
        if "#" in rest:
            self._refuse("a metadata URL has no '#' part", "write %23 for a '#' in a password")
        rest, _, query = rest.partition("?")
        if "@" in query:
            self._refuse("a '?' in front of '@' is ambiguous", "write %3F for a '?' in a password")
        authority, slash, path = rest.partition("/")
        if "@" in path and scheme != "unix" and "@" not in authority:
            self._refuse("a '/' in front of '@' is ambiguous", "write %2F for a '/' in a password")
        credentials, _, address = authority.rpartition("@")
        return scheme, credentials, address, slash + path, query

    def _credentials(self, text: str) -> tuple[str, str]:
        user, _, password = text.partition(":")
        return self._unquote(user, "user"), self._unquote(password, "password")

    def _unquote(self, text: str, what: str) -> str:
        if re.search(r"%(?![0-9A-Fa-f]{2})", text):
            self._refuse(f"the {what} has a '%' that is no %XX", "write %25 for a '%'")
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError:
            self._refuse(f"the {what} is not UTF-8", "write its UTF-8 bytes as %XX")

    def _fallback_password(self) -> str:
        for name in ("REDIS_PASSWORD", "META_PASSWORD"):
            if value := self._env.get(name, ""):
                return value
        if not (name := self._env.get("META_PASSWORD_FILE", "")):
            return ""
        try:
            return self._read_text(name).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise RefusedError(
                ExitCode.USAGE,
                f"META_PASSWORD_FILE={name}",
                f"the password file cannot be read ({reason})",
                "name a readable file",
            ) from error

    def _options(self, query: str) -> Iterator[tuple[str, str]]:
        for pair in query.split("&") if query else ():
            name, _, value = pair.partition("=")
            name = self._unquote(name, "option's name")
            yield name.replace("_", "-"), self._unquote(value, f"value of option {name!r}")

    def _place(self, scheme: str, address: str, path: str, options: dict[str, str]) -> MetaUrl:
        number = options.pop("db", "")
        if scheme == "unix":
            return self._unix_place(address, path, number)
        number = number or path.strip("/") or "0"
        master, hosts = self._hosts(address)
        kind = Kind.SENTINEL if master else Kind.CLUSTER if len(hosts) > 1 else Kind.STANDALONE
        return MetaUrl(kind, hosts, master_name=master, db=self._database(number))

    def _unix_place(self, address: str, path: str, number: str) -> MetaUrl:
        if address:
            self._refuse("a unix URL has no host", "write three slashes: unix:///PATH?db=N")
        if len(path) < 2:
            self._refuse("a unix URL needs the path of a socket")
        path = self._unquote(path, "path")
        if "\0" in path:
            self._refuse("a path has no NUL byte")
        return MetaUrl(Kind.UNIX, path=path, db=self._database(number or "0"))

    def _database(self, text: str) -> int:
        if not _DIGITS.match(text) or int(text) > 0x7FFFFFFF:
            self._refuse("the database must be a number from 0")
        return int(text)

    def _hosts(self, address: str) -> tuple[str, tuple[tuple[str, int], ...]]:
        """Return (master's name, hosts); which of the two kinds a list is, format.md §2.1 says."""
        first_comma, first_colon = address.find(","), address.find(":")
        names = address.split(",")
        if 0 <= first_comma < first_colon:
            last_port = self._host(names[-1], SENTINEL_PORT)[1]
            hosts = tuple(self._host(name, last_port) for name in names[1:])
            if not names[0]:
                self._refuse("a Sentinel URL begins with the name of the master")
            return names[0], hosts
        if len(names) == 1 and not address:
            return "", (("localhost", REDIS_PORT),)
        return "", tuple(self._host(name, REDIS_PORT) for name in names)

    def _host(self, text: str, default_port: int) -> tuple[str, int]:
        match = re.match(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^:\[\]]*))(?::([^:]*))?\Z", text)
        if match is None:
            self._refuse("HOST[:PORT] is expected; an IPv6 address stands in brackets")
        host, port = match[1] or match[2], match[3]
        if not host:
            self._refuse("a host is empty")
        if not port:
            return host, default_port
        if not _DIGITS.match(port) or not 0 < int(port) < 65536:
            self._refuse("a port must be a number from 1 to 65535")
        return host, int(port)

    def _tls(self, options: dict[str, str]) -> TlsOptions:
        tls = TlsOptions(
            ca_cert_file=options.pop("tls-ca-cert-file", ""),
            cert_file=options.pop("tls-cert-file", ""),
            key_file=options.pop("tls-key-file", ""),
            server_name=options.pop("tls-server-name", ""),
            insecure_skip_verify=self._flag(options, "insecure-skip-verify"),
        )
        if bool(tls.cert_file) != bool(tls.key_file):
            self._refuse(
                "a client certificate needs its key", "give tls-cert-file and tls-key-file"
            )
        return tls

    def _flag(self, options: dict[str, str], name: str) -> bool:
        if name not in options:
            return False
        value = options.pop(name)
        return value == "" or _BOOLEANS.get(value.lower(), True)

    def _duration(self, options: dict[str, str], name: str, default_s: float) -> float:
        text = options.pop(name, "")
        if not text:
            return default_s
        seconds = parse_duration_s(text)
        if seconds is None or seconds <= 0:
            self._refuse(
                f"option {name!r} is no duration above zero", "write for example 500ms or 30s"
            )
        return seconds

    def _refuse_rest(self, options: dict[str, str]) -> None:
        for name in options:
            if name.startswith("client-cache") or name.replace("-", "_") in _FOREIGN_OPTIONS:
                continue
            if name.startswith("tls-") or name == "insecure-skip-verify":
                self._refuse(f"option {name!r} needs TLS", "write rediss:// in front")
            self._refuse(f"option {name!r} is unknown", "leave it out")


def parse_duration_s(text: str) -> float | None:
    """Return seconds of a duration such as `1m30s`, `500ms` or bare `2`; None if it is none."""
    if _DIGITS.match(text):
        return float(text)
    position, seconds = 0, 0.0
    while position < len(text):
        match = _DURATION.match(text, position)
        if match is None:
            return None
        seconds += float(match[1]) * _DURATION_UNITS_S[match[2]]
        position = match.end()
    return seconds if text else None
