"""Where the servers are and who asks: from a URL with its options, or from arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import SplitResult, unquote

import msgspec

from ...errors import ConfigurationError

_PORTS: Final = {False: 5672, True: 5671}


Host = tuple[str, int]


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """The servers of one cluster, tried in turn, and the credentials they all take."""

    hosts: Sequence[Host]
    user: str
    password: str
    vhost: str
    tls: bool

    def named(self, host: Host) -> str:
        """One of the servers as an error names it: without the password."""
        name = f"[{host[0]}]" if ":" in host[0] else host[0]
        return f"{'amqps' if self.tls else 'amqp'}://{name}:{host[1]}/{'' if self.vhost == '/' else self.vhost}"

    def __repr__(self) -> str:
        return self.named(self.hosts[0])


def address_of(parts: SplitResult) -> Address:
    """`amqps://user:password@one:5671,two/vhost`. Raises ConfigurationError for a port that is none."""
    credentials, _, places = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    tls = parts.scheme == "amqps"
    return Address(
        hosts=tuple(_host(place, _PORTS[tls]) for place in places.split(",")),
        user=unquote(user) or "guest",
        password=unquote(password) or "guest",
        vhost=unquote(parts.path[1:]) or "/",
        tls=tls,
    )


def _host(place: str, port: int) -> Host:
    name, colon, number = place.rpartition(":")
    if not colon or place.endswith("]"):
        name, number = place, str(port)
    try:
        return name.strip("[]") or "localhost", int(number)
    except ValueError:
        raise ConfigurationError(f"{place!r} is no address of a RabbitMQ server: give HOST or HOST:PORT") from None
