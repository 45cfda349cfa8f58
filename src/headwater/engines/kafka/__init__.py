"""The engine over Apache Kafka: `kafka://h1:9092,h2:9092`, encrypted `kafka+ssl://h1:9093`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ...broker import Broker, BrokerOptions
from ...errors import ConfigurationError
from .. import read_options
from .engine import KafkaEngine
from .options import Kafka, KafkaOptions
from .records import TOMBSTONE
from .settings import Settings, servers_of

__all__ = ["TOMBSTONE", "Kafka", "KafkaBroker", "KafkaEngine", "KafkaOptions", "from_url"]


class _Options(KafkaOptions, BrokerOptions, total=False):
    pass


def from_url(parts: SplitResult, query: Mapping[str, str]) -> KafkaEngine:
    """The engine of `kafka://h1:9092,h2:9092?compression=zstd`. Raises ConfigurationError for an option it lacks."""
    options: KafkaOptions = read_options(KafkaOptions, query, parts.scheme)
    return KafkaEngine(Settings(**{**servers_of(parts), **options}))


class KafkaBroker(Broker):
    """A broker on Apache Kafka at `url`; `Settings` says what its own options mean, in the URL's query or here."""

    def __init__(self, url: str = "kafka://localhost:9092", **options: Unpack[_Options]) -> None:
        own: Any = {name: value for name, value in options.items() if name in KafkaOptions.__annotations__}
        others: Any = {name: value for name, value in options.items() if name not in own}
        parts = urlsplit(url)
        if parts.scheme not in ("kafka", "kafka+ssl"):
            raise ConfigurationError("KafkaBroker wants a URL that begins with kafka:// or kafka+ssl://")
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        super().__init__(**others)
        asked: Any = {**read_options(KafkaOptions, query, parts.scheme), **own}
        self.use(lambda: KafkaEngine(Settings(**{**servers_of(parts), **asked})), url)
