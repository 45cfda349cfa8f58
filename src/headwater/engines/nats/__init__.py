"""The engine over NATS: `nats://` is JetStream, `nats+core://` core NATS, which keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

from ...broker import Broker, BrokerOptions
from .core import CoreEngine
from .engine import JetStreamEngine
from .options import Nats, NatsOptions, Settings, from_parts

__all__ = [
    "CoreEngine",
    "JetStreamEngine",
    "Nats",
    "NatsBroker",
    "NatsOptions",
    "Settings",
    "core_from_url",
    "from_url",
]


def from_url(parts: SplitResult, query: Mapping[str, str]) -> JetStreamEngine:
    """The engine of `nats://user:password@host1:4222,host2?lease=60`, or of `nats+tls://`."""
    return JetStreamEngine(from_parts(parts, query))


def core_from_url(parts: SplitResult, query: Mapping[str, str]) -> CoreEngine:
    """The engine of `nats+core://host`."""
    return CoreEngine(from_parts(parts, query))


class _Options(NatsOptions, BrokerOptions, total=False):
    pass


class NatsBroker(Broker):
    """A broker on NATS; `Settings` says what its own options mean.

    Options:
        url: such as `nats://localhost:4222`, with several hosts separated by commas.
        jetstream: False is core NATS: nothing is stored, and a message reaches who listens at that moment.
    """

    def __init__(
        self, url: str = "nats://localhost:4222", *, jetstream: bool = True, **options: Unpack[_Options]
    ) -> None:
        own: Any = {name: value for name, value in options.items() if name in NatsOptions.__annotations__}
        others: Any = {name: value for name, value in options.items() if name not in own}
        super().__init__(**others)
        parts = urlsplit(url)
        core = not jetstream or parts.scheme.startswith("nats+core")
        settings = msgspec.structs.replace(from_parts(parts, dict(parse_qsl(parts.query))), **own)
        self.use(lambda: CoreEngine(settings) if core else JetStreamEngine(settings), url)
