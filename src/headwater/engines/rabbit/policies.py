"""How long a stream keeps its messages: what it was made with, and policies, which have the last word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, NamedTuple

_SECONDS: Final = {"Y": 365 * 86_400, "M": 30 * 86_400, "D": 86_400, "h": 3600, "m": 60, "s": 1}
_AGE: Final = re.compile(r"(\d+)([YMDhms])")

# A policy cannot take a limit away that the stream was made with: it says one that nothing reaches.
_FOR_EVER: Final = "1000Y"
_ALL: Final = 1 << 60  # bytes

Policy = Mapping[str, Any]


class Kept(NamedTuple):
    """What is kept; None is all."""

    retention: timedelta | None
    bytes: int | None


def policy_name(topic: str) -> str:
    """The policy that is ours to set."""
    return f"headwater.{topic}"


def policy_of(topic: str, policies: Sequence[Policy]) -> Policy | None:
    """The policy that applies to the stream of a topic: one, the one with the highest priority."""
    fitting = [one for one in policies if one["apply-to"] in ("all", "queues", "streams") and _fits(one, topic)]
    return max(fitting, key=lambda one: one["priority"], default=None)


def _fits(policy: Policy, topic: str) -> bool:
    try:
        return re.search(policy["pattern"], topic) is not None
    except re.error:  # what Perl can say and Python cannot: ours are never like that
        return False


def kept(arguments: Mapping[str, Any], policy: Policy | None) -> Kept:
    """What a stream keeps that was made with these arguments."""
    definition = {} if policy is None else policy["definition"]
    age = definition.get("max-age", arguments.get("x-max-age"))
    size = definition.get("max-length-bytes", arguments.get("x-max-length-bytes"))
    return Kept(None if age in (None, _FOR_EVER) else _read_age(age), None if size == _ALL else size)


def definition_of(topic: str, wanted: Kept, arguments: Mapping[str, Any]) -> Policy | None:
    """The policy by which a stream that was made with these arguments keeps what is wanted; None where none is due."""
    definition = dict[str, Any]()
    if wanted.retention is not None:
        definition["max-age"] = f"{max(1, round(wanted.retention.total_seconds()))}s"
    elif "x-max-age" in arguments:
        definition["max-age"] = _FOR_EVER
    if wanted.bytes is not None:
        definition["max-length-bytes"] = wanted.bytes
    elif "x-max-length-bytes" in arguments:
        definition["max-length-bytes"] = _ALL
    if not definition:
        return None
    return {"pattern": f"^{re.escape(topic)}$", "definition": definition, "apply-to": "queues", "priority": 0}


def _read_age(text: str) -> timedelta | None:
    parsed = _AGE.fullmatch(text)
    return None if parsed is None else timedelta(seconds=int(parsed[1]) * _SECONDS[parsed[2]])
