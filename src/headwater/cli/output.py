"""How results look: a table on a terminal, aligned text in a pipe, JSON for programs; and how failures are told."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, TypeVar

import msgspec
import typer

T = TypeVar("T")
Columns = Mapping[str, Callable[[T], object]]
"""Title → what stands in that column for one result."""


class Failure(Exception):
    """The command cannot do what was asked: `reason` is one sentence with the next step, `code` the exit code."""

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code


def tell_failure(reason: str) -> None:
    typer.echo(f"error: {reason}", err=True)


def note(text: str) -> None:
    """Tell a person something that is no data."""
    typer.echo(text, err=True)


def unfolded(text: str) -> str:
    """Help whose paragraphs are one line each: how wide it is shown is the terminal's business."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def write(text: str) -> None:
    """Write data to stdout. A reader who has gone, such as `head`, has all it wanted: the command ends, well."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        leave_quietly()


def leave_quietly() -> None:
    """End the command when nobody reads what it prints."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
    raise typer.Exit(0)


def show(results: Sequence[T], columns: Columns[T], *, as_json: bool, nothing: str = "") -> None:
    """Print results: all their fields as a JSON array, or these columns; `nothing` is said when there are none."""
    if as_json:
        show_json(results)
    elif not results:
        note(nothing)
    else:
        rows = [[column(result) for column in columns.values()] for result in results]
        draw = _draw_table if sys.stdout.isatty() else _draw_text
        draw(list(columns), rows)


def show_json(results: Iterable[object]) -> None:
    """Print a JSON array, one result a line."""
    lines = ",\n ".join(to_json(result) for result in results)
    write(f"[{lines}]\n")


def to_json(value: object) -> str:
    return json.dumps(plain(value), ensure_ascii=False)


def plain(value: object) -> Any:
    """What JSON can carry: fields of a result by name, times in ISO 8601, durations in seconds.

    Bytes are text, or base64 where they are not UTF-8.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case datetime():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case bytes():
            return _as_text(value)
        case msgspec.Struct():
            return {name: plain(field) for name, field in msgspec.structs.asdict(value).items()}
        case Mapping():
            return {str(name): plain(field) for name, field in value.items()}
        case list() | tuple() | set() | frozenset():
            return [plain(item) for item in value]
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return str(value)


def _as_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()


class Counting:
    """How many messages were moved, and how fast."""

    def __init__(self) -> None:
        self.total = 0
        self._begun = time.monotonic()
        self.show: Callable[[], object] = lambda: None

    @property
    def seconds(self) -> float:
        return max(0.001, time.monotonic() - self._begun)

    @property
    def rate(self) -> str:
        return f"{self.total / self.seconds:,.0f} a second"

    def __call__(self, count: int) -> None:
        self.total += count
        self.show()


@contextmanager
def counting(doing: str, *, silent: bool = False) -> Iterator[Counting]:
    """Count, and show it while that lasts if somebody watches: on a terminal."""
    count = Counting()
    if silent or not sys.stderr.isatty():
        yield count
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=None)
        count.show = lambda: progress.update(task, completed=count.total, description=count.rate)
        yield count


# --- tables -----------------------------------------------------------------------------------------------


def _draw_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if _is_numeric(rows, index) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(markup=False, highlight=False, emoji=False).print(table)


def _draw_text(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[title.upper().replace(" ", "_") for title in titles], *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    right = [_is_numeric(rows, index) for index in range(len(titles))]
    for line in lines:
        cells = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(line, widths, right, strict=True)
        )
        write("  ".join(cells).rstrip() + "\n")


def _is_numeric(rows: Sequence[Sequence[object]], index: int) -> bool:
    return all(row[index] is None or type(row[index]) in (int, float) for row in rows)


def _cell(value: object) -> str:
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone().isoformat(sep=" ", timespec="seconds")
        case timedelta():
            return duration(value)
        case str():
            return " ".join(value.split())  # one line, whatever a producer wrote
        case list() | tuple():
            return ", ".join(_cell(item) for item in value)
    return str(value)


def show_details(pairs: Iterable[tuple[str, object]]) -> None:
    """Print one result, a field a line."""
    pairs = list(pairs)
    width = max(len(name) for name, _ in pairs)
    write("".join(f"{name.ljust(width)}  {_cell(value)}\n" for name, value in pairs))


def duration(value: timedelta) -> str:
    """A duration in the largest unit that is exact: 7d, 36h, 90s."""
    seconds = value.total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def counted(count: int, noun: str) -> str:
    """`1 message`, `2 messages`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: int | None) -> str | None:
    """A number of bytes for people: 1.5 MiB."""
    if count is None:
        return None
    amount = float(count)
    for unit in chain(("B", "KiB", "MiB", "GiB"), ("TiB",)):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"


# --- asking -----------------------------------------------------------------------------------------------


def confirm(what: str, *, yes: bool) -> None:
    """Have a person agree to what cannot be undone. Without a terminal and without `yes`: a usage failure."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Failure(f"this would {what}: add --yes to do it without being asked on a terminal", code=2)
    try:
        agreed = typer.confirm(f"{what[0].upper()}{what[1:]}?", err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        raise Failure("nothing was changed", code=130) from None
    if not agreed:
        raise Failure("nothing was changed")
