"""The engine over RabbitMQ: `amqp://` and `amqps://`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ...broker import Broker, BrokerOptions
from .. import read_options
from .address import address_of
from .engine import RabbitEngine
from .options import Rabbit, RabbitOptions

__all__ = ["Rabbit", "RabbitBroker", "RabbitEngine", "RabbitOptions", "from_url"]


class _Options(RabbitOptions, BrokerOptions, total=False):
    pass


def from_url(parts: SplitResult, query: Mapping[str, str]) -> RabbitEngine:
    """The engine of `amqp://user:password@one:5672,two/vhost?queue_type=classic`. Raises ConfigurationError."""
    options: RabbitOptions = read_options(RabbitOptions, query, parts.scheme)
    return RabbitEngine(address_of(parts), **options)


class RabbitBroker(Broker):
    """A broker on RabbitMQ: a URL as for `Broker`, with the engine's own options, which `RabbitEngine` explains."""

    def __init__(self, url: str = "amqp://localhost", **options: Unpack[_Options]) -> None:
        own: Any = {name: value for name, value in options.items() if name in RabbitOptions.__annotations__}
        others: Any = {name: value for name, value in options.items() if name not in own}
        super().__init__(**others)
        parts = urlsplit(url)
        in_url = read_options(RabbitOptions, dict(parse_qsl(parts.query)), parts.scheme)
        self.use(lambda: RabbitEngine(address_of(parts), **{**in_url, **own}), url)
