"""`headwater log`: the directory of an embedded log, checked, repaired and cleaned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from ..engines import path_of
from .output import Columns, Failure, confirm, counted, show, show_details, show_json, size
from .parameters import AsJson, Yes
from .target import is_url

if TYPE_CHECKING:
    from ..log.check import Damage, Report

commands = typer.Typer(name="log", help="Check, repair and clean an embedded log.", no_args_is_help=True)

Directory = Annotated[str, typer.Argument(metavar="DIR", help="Its directory, or local://DIR.", show_default=False)]

_DAMAGES: Columns[Damage] = {
    "file": lambda damage: damage.file,
    "position": lambda damage: damage.position,
    "reason": lambda damage: damage.reason,
    "lost": lambda damage: [f"{at.topic}[{at.partition}] {at.first} to {at.end - 1}" for at in damage.losses],
}


@commands.command("check")
def check_log(directory: Directory, as_json: AsJson = False) -> None:
    """Read the whole log and say what is damaged; changes nothing. Exits 1 if something is."""
    from ..log.check import check

    _report(check(_path(directory)), "nothing is damaged", as_json)


@commands.command("repair")
def repair_log(directory: Directory, yes: Yes = False, as_json: AsJson = False) -> None:
    """Remove the damage that `check` reports; no process may use the log meanwhile."""
    from ..log.check import check, repair

    path = _path(directory)
    found = check(path)
    if not found.healthy:
        if not as_json:
            show(found.damages, _DAMAGES, as_json=False)
        lost = f"{counted(found.lost, 'message')} lost there"
        confirm(f"remove {counted(len(found.damages), 'damaged place')} and the {lost}", yes=yes)
    done = repair(path)
    if as_json:
        show_json([done])
    else:
        show_details([("repaired", len(done.damages)), ("messages lost", done.lost)])


@commands.command("clean")
def clean_log(directory: Directory, as_json: AsJson = False) -> None:
    """Apply retention now and free the space of what expired, was purged or deleted."""
    from ..log.store import Store

    store = Store.open(_path(directory))
    try:
        done = store.clean()
    finally:
        store.close()
    if done.busy:
        raise Failure("another process is cleaning this log just now: it does what this would have done")
    if as_json:
        show_json([done])
    else:
        show_details([("freed", size(done.freed)), ("removed", done.removed), ("rewritten", done.rewritten)])
    if done.damaged:
        raise Failure(f"{', '.join(done.damaged)} could not be cleaned: see `headwater log check`")


def _report(report: Report, healthy: str, as_json: bool) -> None:
    if as_json:
        show_json([report])
    else:
        counts = [("segments", report.segments), ("frames", report.frames), ("messages", report.records)]
        show_details([*counts, ("lost", report.lost)])
        show(report.damages, _DAMAGES, as_json=False, nothing=healthy)
    raise typer.Exit(0 if report.healthy else 1)


def _path(directory: str) -> Path:
    return Path(path_of(urlsplit(directory))) if is_url(directory) else Path(directory)
