"""What the commands take: the parameters they share, and how durations, sizes, moments and places are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import typer

from ..engine import Start

Target = Annotated[str, typer.Argument(metavar="TARGET", help="module:app, or a broker's URL.", show_default=False)]
TopicName = Annotated[str, typer.Argument(metavar="TOPIC", help="A topic.", show_default=False)]
GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="A consumer group.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES: Final = {"": 1, "B": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", 1)
    for unit, base in ((letter, 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}
_OFFSET = re.compile(r"\d+-\d+")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
FOREVER: Final = "forever"


def read_duration(text: str) -> timedelta | None:
    """`90s`, `15m`, `12h`, `7d`, `2w`; None for `forever`."""
    if text == FOREVER:
        return None
    found = _QUANTITY.fullmatch(text)
    if not found or found[2] not in _SECONDS:
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 15m, 12h, 7d, 2w or {FOREVER}")
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


def read_size(text: str) -> int | None:
    """`512MiB`, `1GB`, `1048576`; None for `forever`."""
    if text == FOREVER:
        return None
    found = _QUANTITY.fullmatch(text)
    if not found or found[2] not in _BYTES:
        raise typer.BadParameter(f"{text!r} is no size: write 512MiB, 1GB, 1048576 or {FOREVER}")
    return int(float(found[1]) * _BYTES[found[2]])


def read_moment(text: str) -> datetime:
    """A moment in ISO 8601; in local time unless it says otherwise."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: write it like 2026-01-31T12:00 or 2026-01-31") from None


def read_start(text: str) -> Start:
    """As `read_goal`, or an offset that is no number, such as `1700000000000-0`."""
    return text if _OFFSET.fullmatch(text) else read_goal(text)


def read_goal(text: str) -> Literal["earliest", "latest"] | int | datetime:
    """`earliest`, `latest`, an offset or a moment."""
    if text == "earliest":
        return "earliest"
    if text == "latest":
        return "latest"
    if text.isdigit():
        return int(text)
    try:
        return read_moment(text)
    except typer.BadParameter:
        raise typer.BadParameter(
            f"{text!r}: give earliest, latest, an offset, or a time like 2026-01-31T12:00"
        ) from None


def read_place(text: str) -> tuple[int, int | str]:
    """`P:O`, an offset in a partition."""
    partition, colon, offset = text.partition(":")
    if not colon or not partition.isdigit() or not offset:
        raise typer.BadParameter(f"{text!r} is no place: write PARTITION:OFFSET, such as 0:17")
    return int(partition), int(offset) if offset.isdigit() else offset


def read_places(texts: Sequence[str]) -> dict[int, int | str]:
    """Offsets by partition, from places."""
    return dict(read_place(text) for text in texts)


def read_headers(texts: Sequence[str]) -> list[tuple[str, str]]:
    """`NAME=VALUE` each; repeats are kept."""
    pairs = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{text!r} is no header: write NAME=VALUE")
        pairs.append((name, value))
    return pairs
