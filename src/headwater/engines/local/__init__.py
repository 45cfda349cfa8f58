"""The engine over the embedded log: `local://DIR`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack
from urllib.parse import SplitResult

from ...broker import Broker, BrokerOptions
from ...log.journal import Durability
from .. import path_of, read_options
from .engine import LocalEngine

__all__ = ["LocalBroker", "LocalEngine", "LocalOptions", "from_url"]


class LocalOptions(TypedDict, total=False):
    """What a `local://` URL may ask for after its `?`; `LocalEngine` says what each means."""

    durability: Durability
    create: bool
    auto_create: bool
    partitions: int
    clean_interval: float
    lease: float
    segment_bytes: int
    client: str


class _Options(LocalOptions, BrokerOptions, total=False):
    pass


def from_url(parts: SplitResult, query: Mapping[str, str]) -> LocalEngine:
    """The engine of `local://DIR?durability=process`. Raises ConfigurationError for an option it lacks."""
    options: LocalOptions = read_options(LocalOptions, query, "local")
    return LocalEngine(path_of(parts), **options)


class LocalBroker(Broker):
    """A broker on the embedded log in the directory `path`; `LocalEngine` says what its own options mean."""

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[_Options]) -> None:
        own: Any = {name: value for name, value in options.items() if name in LocalOptions.__annotations__}
        others: Any = {name: value for name, value in options.items() if name not in own}
        super().__init__(**others)
        self.use(lambda: LocalEngine(path, **own), f"local://{os.fspath(path)}")
