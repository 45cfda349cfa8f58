"""Where the servers are and who we are to them: a Redis URL, taken apart."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Final, Literal
from urllib.parse import SplitResult, unquote

import msgspec

from ...errors import ConfigurationError

Kind = Literal["server", "cluster", "sentinel"]
Host = tuple[str, int]

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
SERVICE: Final = "mymaster"  # what Sentinel's own example calls it
_KINDS: Final[Mapping[str, Kind]] = {"pubsub": "server", "cluster": "cluster", "sentinel": "sentinel"}


class Login(msgspec.Struct, frozen=True):
    """What is said to a server first, and how."""

    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: ssl.SSLContext | None = None


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The servers of a URL: one or its replacements, a cluster's seeds, or sentinels that know a service."""

    kind: Kind
    hosts: tuple[Host, ...]
    username: str | None = None
    password: str | None = None
    db: int = 0
    tls: bool = False
    service: str = SERVICE


def address_of(parts: SplitResult) -> Address:
    """The address in `redis://user:password@h1:6379,h2/0` and its relatives. Raises ConfigurationError."""
    protocol, _, how = parts.scheme.partition("+")
    kind = _KINDS.get(how, "server")
    who, _, where = parts.netloc.rpartition("@")
    username, _, password = who.partition(":")
    port = SENTINEL_PORT if kind == "sentinel" else PORT
    path = [unquote(part) for part in parts.path.split("/") if part]
    service = path.pop(0) if kind == "sentinel" and path else SERVICE
    return Address(
        kind=kind,
        hosts=tuple(_host(host, port, parts.scheme) for host in (where or "localhost").split(",")),
        username=unquote(username) or None,
        password=unquote(password) or None,
        db=_db(path, kind, parts.scheme),
        tls=protocol == "rediss",
        service=service,
    )


def url_of(host: Host, tls: bool = False) -> str:
    """How a server is called in logs and errors."""
    name = f"[{host[0]}]" if ":" in host[0] else host[0]
    return f"{'rediss' if tls else 'redis'}://{name}:{host[1]}"


def _host(text: str, port: int, scheme: str) -> Host:
    name, colon, number = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    if not colon:
        name, number = text, str(port)
    if not name or not number.isdigit():
        raise ConfigurationError(f"{scheme}:// has no host {text!r}: give host or host:port, several with commas")
    return name.strip("[]"), int(number)


def _db(path: list[str], kind: Kind, scheme: str) -> int:
    if not path:
        return 0
    if len(path) > 1 or not path[0].isdigit():
        raise ConfigurationError(f"{scheme}:// ends in the number of a database, not in /{'/'.join(path)}")
    if kind == "cluster" and path != ["0"]:
        raise ConfigurationError(f"a cluster has the database 0 only, not {path[0]}")
    return int(path[0])
