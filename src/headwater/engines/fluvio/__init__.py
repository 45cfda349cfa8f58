"""The engine over Fluvio: `fluvio://host:9003`, encrypted `fluvio+tls://`, or a profile, `fluvio+profile://name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack
from urllib.parse import SplitResult, parse_qsl, urlsplit

from ...broker import Broker, BrokerOptions
from .engine import FluvioEngine
from .options import Fluvio
from .settings import FluvioOptions, read_settings
from .smartmodules import SmartModules

__all__ = ["Fluvio", "FluvioBroker", "FluvioEngine", "FluvioOptions", "SmartModules", "from_url"]


class _Options(FluvioOptions, BrokerOptions, total=False):
    pass


def from_url(parts: SplitResult, query: Mapping[str, str]) -> FluvioEngine:
    """The engine of `fluvio://host:9003?acks=leader`. Raises ConfigurationError for an option it lacks."""
    return FluvioEngine(read_settings(parts, query, {}))


class FluvioBroker(Broker):
    """A broker on Fluvio at `url`; `Settings` says what its own options mean, in the URL's query or here."""

    def __init__(self, url: str = "fluvio://localhost:9003", **options: Unpack[_Options]) -> None:
        own: Any = {name: value for name, value in options.items() if name in FluvioOptions.__annotations__}
        others: Any = {name: value for name, value in options.items() if name not in own}
        parts = urlsplit(url)
        settings = read_settings(parts, dict(parse_qsl(parts.query, keep_blank_values=True)), own)
        super().__init__(**others)
        self.use(lambda: FluvioEngine(settings), url)
