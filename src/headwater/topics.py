"""Topic names: levels, fields such as `orders.{region}`, and the names Headwater keeps for itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from .errors import TopicNameError

INTERNAL_PREFIX: Final = "hw."
REPLIES: Final = "hw.replies"
DEAD_SUFFIX: Final = ".dead"
RETRY_SUFFIX: Final = ".retry"

_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELD_BODY = re.compile(r"([A-Za-z_]\w*)(:path)?")
_NOTHING: Mapping[str, str] = {}


def dead_topic(topic: str) -> str:
    """Where the messages of `topic` go that no handler could handle."""
    return topic + DEAD_SUFFIX


def retry_topic(topic: str, group: str) -> str:
    """Where messages of `topic`, or of a pattern, wait when `group` wants them again in more than a minute."""
    return f"{_FIELD.sub(lambda field: field[1].partition(':')[0], topic)}.{group}{RETRY_SUFFIX}"


def is_pattern(topic: str) -> bool:
    """Whether this name carries fields and so stands for many topics."""
    return "{" in topic


def is_internal(topic: str) -> bool:
    """Whether Headwater made this topic for itself; patterns never match these."""
    return topic.startswith(INTERNAL_PREFIX) or topic.endswith((DEAD_SUFFIX, RETRY_SUFFIX))


@lru_cache(maxsize=1024)
def field_names(topic: str) -> frozenset[str]:
    """The fields a name carries. Raises TopicNameError for a field that is no identifier."""
    return frozenset(_compile(topic).groupindex)


@lru_cache(maxsize=65536)
def match(pattern: str, topic: str) -> Mapping[str, str] | None:
    """The values of the pattern's fields in `topic`, or None where it does not match.

    `{name}` matches one level (up to the next `.` or `/`), `{name:path}` all that follow.
    """
    if not is_pattern(pattern):
        return _NOTHING if pattern == topic else None
    if is_internal(topic):
        return None
    found = _compile(pattern).fullmatch(topic)
    return found.groupdict() if found else None


@lru_cache(maxsize=1024)
def _compile(pattern: str) -> re.Pattern[str]:
    parts, end, seen = [], 0, set[str]()
    for field in _FIELD.finditer(pattern):
        parsed = _FIELD_BODY.fullmatch(field[1])
        if parsed is None or parsed[1] in seen:
            raise TopicNameError(pattern, f"the field {field[0]} must be a name used once: {{name}} or {{name:path}}")
        seen.add(parsed[1])
        parts += [re.escape(pattern[end : field.start()]), rf"(?P<{parsed[1]}>{'.+' if parsed[2] else '[^./]+'})"]
        end = field.end()
    rest = pattern[end:]
    if "{" in rest or "}" in rest:
        raise TopicNameError(pattern, "a brace that opens or closes no field")
    return re.compile("".join([*parts, re.escape(rest)]))
