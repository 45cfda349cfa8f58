"""The engine over the embedded log: `local://DIR`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict
from urllib.parse import SplitResult

from ...log.journal import Durability
from .. import path_of, read_options
from .engine import LocalEngine

__all__ = ["LocalEngine", "LocalOptions", "from_url"]


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


def from_url(parts: SplitResult, query: Mapping[str, str]) -> LocalEngine:
    """The engine of `local://DIR?durability=process`. Raises ConfigurationError for an option it lacks."""
    options: LocalOptions = read_options(LocalOptions, query, "local")
    return LocalEngine(path_of(parts), **options)
