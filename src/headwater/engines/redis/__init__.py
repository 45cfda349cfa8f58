"""The engine of Redis: streams, and channels, on a server, a cluster, or the master that sentinels name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ...broker import Broker, BrokerOptions
from .. import read_options
from .address import address_of
from .engine import RedisEngine
from .options import Redis

__all__ = ["Redis", "RedisBroker", "RedisEngine", "RedisOptions", "from_url"]


class RedisOptions(TypedDict, total=False):
    """What a Redis URL may ask for after its `?`; `RedisEngine` says what each means."""

    streams: bool
    lease: float
    auto_create: bool
    maxlen: int
    clean_interval: float
    client: str
    tls_ca: str
    tls_cert: str
    tls_key: str
    tls_verify: bool
    sentinel_username: str
    sentinel_password: str


class _Options(RedisOptions, BrokerOptions, total=False):
    pass


def from_url(parts: SplitResult, query: Mapping[str, str]) -> RedisEngine:
    """The engine of `redis://host:6379/0?lease=30` and its relatives. Raises ConfigurationError."""
    return _engine(parts, query, {})


def _engine(parts: SplitResult, query: Mapping[str, str], own: RedisOptions) -> RedisEngine:
    options: RedisOptions = {**read_options(RedisOptions, query, parts.scheme), **own}
    if parts.scheme.endswith("+pubsub"):
        options["streams"] = False
    return RedisEngine(address_of(parts), **options)


class RedisBroker(Broker):
    """A broker on Redis; `RedisEngine` says what its own options mean. With `streams=False` nothing is kept."""

    def __init__(self, url: str = "redis://localhost", **options: Unpack[_Options]) -> None:
        own: Any = {name: value for name, value in options.items() if name in RedisOptions.__annotations__}
        others: Any = {name: value for name, value in options.items() if name not in own}
        super().__init__(**others)
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.use(lambda: _engine(parts, query, own), url)
