"""Rounds, medians and the table of ratios."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One measure beside one peer. `ratio` says how many times better ours is, `bar` and `aim` what it must reach."""

    measure: str
    peer: str
    ours: str
    theirs: str
    ratio: float
    bar: float | None = None
    aim: float | None = None

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.aim is not None and self.ratio >= self.aim:
            return "aim"
        return "bar" if self.ratio >= self.bar else "MISSED"


async def interleaved(
    ours: Callable[[], Awaitable[float]], theirs: Callable[[], Awaitable[float]], rounds: int = ROUNDS
) -> tuple[float, float]:
    """The medians of two measurements taken in turn, after one warm-up each."""
    await ours()
    await theirs()
    pairs = [(await ours(), await theirs()) for _ in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def render(title: str, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = [
        f"### {title}",
        "",
        "| measure | against | ours | theirs | ratio | bar | aim | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:g}×"
        aim = "" if row.aim is None else f"{row.aim:g}×"
        cells = (row.measure, row.peer, row.ours, row.theirs, f"{row.ratio:.1f}×", bar, aim, row.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def micros(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs"


def rate(per_second: float) -> str:
    return f"{per_second / 1000:,.1f}k/s" if per_second >= 1000 else f"{per_second:,.0f}/s"
