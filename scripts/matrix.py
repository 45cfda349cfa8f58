"""Writes docs/engines.md: what each engine declares, and what the contract suite saw. `make docs` runs this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headwater.admin import OPERATIONS
from headwater.engine import Ack, Capabilities, Engine, Source
from headwater.engines import _OURS, engine_for
from headwater.errors import ConfigurationError
from headwater.testing.contract import EngineContract
from headwater.testing.matrix import Seen, read

PAGE = Path(__file__).resolve().parent.parent / "docs" / "engines.md"
SEEN = Path(__file__).resolve().parent / "matrix.json"  # written by `make matrix`

ABOUT = {
    "ack": "how messages are acknowledged",
    "lease": "an unsettled message is given to somebody else after so many seconds",
    "counts_deliveries": "the number of attempts survives the death of a process",
    "counts_unbegun": "... and counts what was received and never begun",
    "nack": "the engine itself takes a message back",
    "delayed_nack": "... to come again later",
    "reject": "the engine itself takes a message that can never be handled",
    "delayed_send": "`publish(..., delay=)`",
    "headers": "headers travel with the message",
    "keys": "a key decides the partition; one process has it at a time",
    "partitions": "topics have partitions",
    "patterns": "topics with fields, `orders.{region}`",
    "groups": "consumer groups whose position is kept",
    "redistributes": "what a member of a group leaves unsettled goes to the others",
    "exclusive": "`exclusive=True`: one active process in a group",
    "replay": "reading can begin anywhere: `start=`, `stream`, replay of dead letters",
    "durable": "accepted messages survive the death of the process",
    "atomic_batch": "`publish_many` is accepted as a whole or not at all",
    "atomic_commit": "`exactly_once=True`",
}
OUTCOMES = {"passed": "yes", "skipped": "–", "failed": "no", "mixed": "some"}
ACKS = {Ack.NONE: "none", Ack.EACH: "each", Ack.UP_TO: "up to an offset"}
SOURCES = {"with a group": Source(topics=("t",), group="g"), "without": Source(topics=("t",))}

GIVEN = {"amqp": "?management=http://nowhere"}  # what administration needs besides the server

TOP = """\
# Engines

<!-- Written by scripts/matrix.py from what the engines declare and what `make matrix` saw: do not edit. -->

The URL of a broker chooses the engine. An engine declares what each of its sources can do; Headwater supplies what it
can on top, and refuses at start what it cannot. A source *with a group* is a subscriber's, or `get` with a group; one
*without* is a broadcast or a stream.

"""
ADMIN = """
## Administration

What `broker.admin` can do. The same is in `broker.admin.capabilities`; anything else raises `NotSupportedError`.
`amqp://` is meant with `management=`: [its page](engines/rabbit.md#administration) says what goes without it.

"""

BEHAVIOUR = """
## What was seen

The [contract suite](testing.md#the-contract-suite-for-authors-of-engines) on the real server of each engine: "yes"
where the test passed, "–" where the engine does not offer what it is about, "some" where that depends on the mode it
is used in (see its page), "?" where the test was not run yet. A refusal is tested where there is something to refuse.

"""


def render() -> str:
    """The page."""
    engines = _engines()
    columns = [(scheme, name, engine) for scheme, engine in engines.items() for name in SOURCES]
    rows = [["| |", *(f" `{scheme}://` {name} |" for scheme, name, _ in columns)]]
    rows.append(["|---|", *("---|" for _ in columns)])
    for field in Capabilities.__struct_fields__:
        cells = (getattr(engine.capabilities(SOURCES[name]), field) for _, name, engine in columns)
        rows.append([f"| **{field}**: {ABOUT[field]} |", *(f" {_cell(value)} |" for value in cells)])
    admin = [["| operation |", *(f" `{scheme}://` |" for scheme in engines)], ["|---|", *("---|" for _ in engines)]]
    for operation in sorted(OPERATIONS):
        cells = (_can(engine, operation) for engine in engines.values())
        admin.append([f"| {operation} |", *(f" {_cell(able)} |" for able in cells)])
    return TOP + _table(rows) + ADMIN + _table(admin) + BEHAVIOUR + _table(_behaviour(read(SEEN)))


def _engines() -> dict[str, Engine]:
    """The engines by scheme; of several schemes for the same, such as those with TLS, the first."""
    found: dict[Any, tuple[str, Engine]] = {}
    for scheme in _OURS:
        try:
            engine = engine_for(f"{scheme}://nowhere{GIVEN.get(scheme, '')}")
        except ConfigurationError:
            continue  # a profile that is nowhere; that engine has other schemes
        able = tuple(engine.capabilities(source) for source in SOURCES.values())
        found.setdefault((engine.name, *able), (scheme, engine))
    return dict(found.values())


def tests() -> list[str]:
    """The tests of the contract, in its order."""
    names = (name for part in EngineContract.__bases__ for name in vars(part))
    return [name.removeprefix("test_") for name in names if name.startswith("test_")]


def _behaviour(seen: Seen) -> list[list[str]]:
    order = list(_OURS)
    engines = sorted(seen, key=lambda engine: order.index(engine) if engine in order else len(order))
    rows = [["| behaviour |", *(f" {engine} |" for engine in engines)], ["|---|", *("---|" for _ in engines)]]
    for test in tests():
        cells = (OUTCOMES.get(seen[engine].get(test, ""), "?") for engine in engines)
        rows.append([f"| {test.replace('_', ' ')} |", *(f" {cell} |" for cell in cells)])
    return rows


def _can(engine: Engine, operation: str) -> bool:
    return engine.admin is not None and operation in engine.admin.operations


def _cell(value: Any) -> str:
    match value:
        case Ack():
            return ACKS[value]
        case None | False:
            return "–"
        case True:
            return "yes"
    return f"{value:g} s"


def _table(rows: list[list[str]]) -> str:
    return "".join("".join(row) + "\n" for row in rows)


if __name__ == "__main__":
    PAGE.write_text(render())
