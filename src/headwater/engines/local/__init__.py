"""The engine over the embedded log: `local://DIR`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypedDict, Unpack
from urllib.parse import SplitResult, quote

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
    """A broker on a directory of this machine; `LocalEngine` says what its own options mean."""

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[_Options]) -> None:
        own: LocalOptions = {name: options.pop(name) for name in LocalOptions.__annotations__ if name in options}  # type: ignore[misc, assignment]  # the names are its own
        self._engine_of_path = LocalEngine(path, **own)
        super().__init__(f"local://{quote(os.fspath(path))}", **options)  # type: ignore[misc]  # what is left is the broker's

    def _open(self, url: str) -> LocalEngine:
        return self._engine_of_path
