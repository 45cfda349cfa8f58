"""Engines by the scheme of their URL: ours, and those of the entry point group `headwater.engines`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from ..engine import Engine
from ..errors import ConfigurationError

ENTRY_POINTS: Final = "headwater.engines"

FromUrl = Callable[[SplitResult, Mapping[str, str]], Engine]
"""Makes an engine from a URL and its query. It connects to nothing and imports no client yet."""

_OURS: Final = {
    "memory": "headwater.engines.memory:from_url",
    "local": "headwater.engines.local:from_url",
    "mqtt": "headwater.engines.mqtt:from_url",
    "mqtts": "headwater.engines.mqtt:from_url",
    "kafka": "headwater.engines.kafka:from_url",
    "kafka+ssl": "headwater.engines.kafka:from_url",
    "nats": "headwater.engines.nats:from_url",
    "nats+tls": "headwater.engines.nats:from_url",
    "nats+core": "headwater.engines.nats:core_from_url",
    "nats+core+tls": "headwater.engines.nats:core_from_url",
    "tls": "headwater.engines.nats:from_url",
    "fluvio": "headwater.engines.fluvio:from_url",
    "fluvio+tls": "headwater.engines.fluvio:from_url",
    "fluvio+profile": "headwater.engines.fluvio:from_url",
    "amqp": "headwater.engines.rabbit:from_url",
    "amqps": "headwater.engines.rabbit:from_url",
    "rabbit": "headwater.engines.rabbit:from_url",
    **dict.fromkeys(
        (
            "redis",
            "rediss",
            "redis+pubsub",
            "rediss+pubsub",
            "redis+cluster",
            "rediss+cluster",
            "redis+sentinel",
            "rediss+sentinel",
        ),
        "headwater.engines.redis:from_url",
    ),
}


def engine_for(url: str) -> Engine:
    """The engine a URL names. Raises ConfigurationError for a scheme nobody knows, or an option it lacks."""
    parts = urlsplit(url)
    if not parts.scheme:
        raise ConfigurationError(f"{url!r} is no broker URL: it begins with a scheme, such as local://./data")
    query = parse_qsl(parts.query, keep_blank_values=True)
    return _loaded(parts.scheme)(parts, dict(query))


def _loaded(scheme: str) -> FromUrl:
    ours = _OURS.get(scheme)
    if ours is not None:
        module, _, name = ours.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]  # ours are FromUrl
    from importlib.metadata import entry_points  # costs more than the rest of this package to import

    for point in entry_points(group=ENTRY_POINTS, name=scheme):
        return point.load()  # type: ignore[no-any-return]  # what the entry point group asks for
    known = sorted({*_OURS, *(point.name for point in entry_points(group=ENTRY_POINTS))})
    raise ConfigurationError(f"no engine for {scheme}://; known here: {', '.join(name + '://' for name in known)}")


def read_options(kind: type[Any], query: Mapping[str, str], scheme: str) -> Any:
    """A URL's query as the TypedDict of an engine's options. Raises ConfigurationError naming a wrong one."""
    known = kind.__annotations__
    for name in query:
        if name not in known:
            raise ConfigurationError(f"{scheme}:// has no option {name!r}; it has {', '.join(sorted(known))}")
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{scheme}:// options: {error}") from error


def path_of(parts: SplitResult) -> str:
    """The path of `local://./data`, `local://data` and `local:///var/data`. Raises ConfigurationError without one."""
    path = unquote(parts.netloc + parts.path)
    if not path:
        raise ConfigurationError(f"{parts.scheme}:// names no directory: give one, such as {parts.scheme}://./data")
    return path


def redacted(url: str) -> str:
    """The URL without its password and query, fit for logs and errors. A name alone is hidden: it may be a token."""
    parts = urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    user, colon, _ = who.partition(":")
    shown = f"{user}:***" if colon else "***" if at else ""
    return f"{parts.scheme}://{shown}{at}{host}{parts.path}"
