"""The engine in memory, `memory://`: topics that live as long as their process, or their test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack
from urllib.parse import SplitResult

from ...broker import Broker, BrokerOptions
from ...errors import ConfigurationError
from .engine import CAPABILITIES, MemoryEngine
from .store import MemoryStore, received
from .subscription import MemorySubscription

__all__ = ["CAPABILITIES", "MemoryBroker", "MemoryEngine", "MemoryStore", "MemorySubscription", "from_url", "received"]


def from_url(parts: SplitResult, query: Mapping[str, str]) -> MemoryEngine:
    """`memory://name` is shared within the process, `memory://` private."""
    if query:
        raise ConfigurationError(f"memory:// has no options; it was given {', '.join(query)}")
    return MemoryEngine(parts.netloc + parts.path)


class MemoryBroker(Broker):
    """A broker in memory: `name` is shared within the process, none is private to this broker."""

    def __init__(self, name: str = "", **options: Unpack[BrokerOptions]) -> None:
        super().__init__(f"memory://{name}", **options)
