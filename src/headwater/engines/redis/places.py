"""Positions in a stream: ids, which are a time in milliseconds and a number, and how a start becomes one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from ...engine import Start
from ...errors import ConfigurationError

BEGINNING: Final = "0-0"
_LAST: Final = (1 << 64) - 1
_ID: Final = re.compile(r"(\d+)(?:-(\d+))?")


def before(start: Start, latest: str) -> str:
    """The id after which reading begins; `latest` is what the server calls its end. Raises ConfigurationError."""
    if start == "latest":
        return latest
    if start == "earliest":
        return BEGINNING
    if isinstance(start, datetime):
        return _preceding(*order(at(start)))
    if isinstance(start, Mapping):
        return before(start[0], latest) if 0 in start else BEGINNING
    if not isinstance(start, str) or _ID.fullmatch(start) is None:
        raise ConfigurationError(
            f"start={start!r}: give 'earliest', 'latest', an aware datetime, or the offset of a message on Redis, "
            f"such as '1700000000000-0'"
        )
    return _preceding(*order(start))


def order(offset: str) -> tuple[int, int]:
    """What ids are compared by. Raises ConfigurationError for what is none."""
    parsed = _ID.fullmatch(offset)
    if parsed is None:
        raise ConfigurationError(f"{offset!r} is no offset of Redis: these are ids, such as '1700000000000-0'")
    return int(parsed[1]), int(parsed[2] or 0)


def at(moment: datetime) -> str:
    """The least id of this time."""
    return f"{math.ceil(moment.timestamp() * 1000)}-0"


def following(offset: str) -> str:
    """The least id after this one."""
    milliseconds, number = order(offset)
    return f"{milliseconds}-{number + 1}" if number < _LAST else f"{milliseconds + 1}-0"


def _preceding(milliseconds: int, number: int) -> str:
    if number:
        return f"{milliseconds}-{number - 1}"
    return f"{milliseconds - 1}-{_LAST}" if milliseconds > 0 else BEGINNING
