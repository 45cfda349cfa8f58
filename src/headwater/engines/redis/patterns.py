"""Topics with fields, in the words of Redis: as globs that match at least as much."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from ...topics import is_pattern, match
from .node import Node
from .servers import Servers
from .wire import Refusal

SCANNED: Final = 1000  # keys that one step of a scan looks at

_FIELD: Final = re.compile(r"\{[^{}]*\}")
_SPECIAL: Final = re.compile(r"([*?\[\]\\])")


def glob_of(topic: str) -> str:
    """A glob that matches all that the pattern does; a plain name is itself."""
    if not is_pattern(topic):
        return topic
    return "*".join(_SPECIAL.sub(r"\\\1", part) for part in _FIELD.split(topic))


async def streams_matching(servers: Servers, patterns: Iterable[str]) -> set[str]:
    """The streams there are that match one of these patterns. Looks at every key. Raises Disconnected, Refusal."""
    found = set[str]()
    for pattern in patterns:
        names = await all_streams(servers, glob_of(pattern))
        found |= {name for name in names if match(pattern, name) is not None}
    return found


async def all_streams(servers: Servers, glob: str = "*") -> Sequence[str]:
    """The streams there are, on all servers. Raises Disconnected, Refusal."""
    return [name for node in servers.nodes() for name in await _scan(node, glob)]


async def _scan(node: Node, glob: str) -> set[str]:
    found, cursor = set[str](), b"0"
    while True:
        (reply,) = await node.ask([("SCAN", cursor, "MATCH", glob, "COUNT", SCANNED, "TYPE", "stream")])
        if isinstance(reply, Refusal):
            raise reply
        cursor, keys = reply
        found.update(key.decode(errors="backslashreplace") for key in keys)
        if cursor == b"0":
            return found
