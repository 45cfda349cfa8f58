"""`headwater dead`: the messages that were given up, sent back or let go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import typer

from ..broker import Broker
from ..dead import DeadLetter, Place
from ..message import ATTEMPTS, EXCEPTION, GROUP, OFFSET, PARTITION, REASON, TOPIC
from ..topics import DEAD_SUFFIX, dead_topic
from .output import Columns, Failure, confirm, counted, note, plain, show, show_details, show_json, write
from .parameters import AsJson, Target, TopicName, Yes, read_place
from .target import ask

commands = typer.Typer(name="dead", help="Look at dead letters, replay or purge them.", no_args_is_help=True)

Group = Annotated[str | None, typer.Option(help="Only the letters this group gave up; by default of all groups.")]
At = Annotated[str | None, typer.Option(help="Where they are, if not on TOPIC.dead.")]
Offsets = Annotated[
    list[str] | None, typer.Option("--offset", metavar="P:O", help="Only the letter at this place; repeatable.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many.")]

_COLUMNS: Columns[DeadLetter] = {
    "place": lambda letter: f"{letter.partition}:{letter.offset}",
    "time": lambda letter: letter.timestamp,
    "group": lambda letter: letter.group,
    "attempts": lambda letter: letter.attempts,
    "key": lambda letter: letter.key,
    "reason": lambda letter: letter.exception or letter.reason,
    "body": lambda letter: _shortened(letter.body),
}


@commands.command("list")
def list_letters(
    target: Target, topic: TopicName, group: Group = None, limit: Limit = None, at: At = None, as_json: AsJson = False
) -> None:
    """The dead letters of a topic, oldest first."""
    letters = _letters(target, topic, group, None, at)[:limit]
    show(letters, _COLUMNS, as_json=as_json, nothing=f"no dead letters of {topic}")


@commands.command("show")
@commands.command("describe", hidden=True)
def show_letters(
    target: Target,
    topic: TopicName,
    offset: Offsets = None,
    group: Group = None,
    limit: Limit = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Dead letters with everything that is known of them."""
    letters = _letters(target, topic, group, _places(offset), at)[:limit]
    if as_json:
        show_json(letters)
        return
    for number, letter in enumerate(letters):
        write("\n" if number else "")
        show_details(_details(letter))
    if not letters:
        note(f"no dead letters of {topic}")


@commands.command("replay")
def replay_letters(
    target: Target,
    topic: TopicName,
    group: Group = None,
    offset: Offsets = None,
    at: At = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to their topic, each for the group that gave it up alone."""
    places = _places(offset)

    async def replay(broker: Broker) -> int:
        await _check(broker, topic, at)
        count = await broker.admin.dead.replay(topic, group=group, offsets=places, at=_at(topic, at))
        return _found(count, places)

    _say(ask(target, replay), "replayed", topic, as_json)


@commands.command("purge")
def purge_letters(
    target: Target,
    topic: TopicName,
    group: Group = None,
    offset: Offsets = None,
    at: At = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take dead letters off the list for good."""
    places = _places(offset)

    async def purge(broker: Broker) -> int:
        await _check(broker, topic, at)
        which = "all" if places is None and group is None else "the chosen"
        confirm(f"purge {which} dead letters of topic {topic!r}", yes=yes)
        count = await broker.admin.dead.purge(topic, group=group, offsets=places, at=_at(topic, at))
        return _found(count, places)

    _say(ask(target, purge), "purged", topic, as_json)


def _letters(
    target: str, topic: str, group: str | None, places: Sequence[Place] | None, at: str | None
) -> Sequence[DeadLetter]:
    async def read(broker: Broker) -> Sequence[DeadLetter]:
        await _check(broker, topic, at)
        letters = await broker.admin.dead.list(topic, group=group, at=_at(topic, at))
        chosen = [letter for letter in letters if places is None or (letter.partition, letter.offset) in places]
        _found(len(chosen), places)
        return chosen

    return ask(target, read)


def _at(topic: str, at: str | None) -> str | None:
    """Where the letters are; who names the dead-letter topic itself means that."""
    return topic if at is None and topic.endswith(DEAD_SUFFIX) else at


async def _check(broker: Broker, topic: str, at: str | None) -> None:
    """A topic that was mistyped is an error, one that has no dead letters yet is none."""
    where = _at(topic, at) or dead_topic(topic)
    known = {info.name for info in await broker.admin.topics.list(internal=True)}
    if where not in known:
        await broker.admin.topics.describe(topic if at is None else at)


def _places(texts: Sequence[str] | None) -> list[Place] | None:
    return [read_place(text) for text in texts] if texts else None


def _found(count: int, places: Sequence[Place] | None) -> int:
    if places is not None and count == 0:
        wanted = ", ".join(f"{partition}:{offset}" for partition, offset in places)
        raise Failure(f"no dead letter at {wanted}: see `headwater dead list`")
    return count


def _say(count: int, done: str, topic: str, as_json: bool) -> None:
    if as_json:
        show_json([{"topic": topic, done: count}])
    else:
        write(f"{done} {counted(count, 'dead letter')} of {topic}\n")


_SHOWN: Final = frozenset((REASON, EXCEPTION, TOPIC, PARTITION, OFFSET, ATTEMPTS, GROUP))


def _details(letter: DeadLetter) -> list[tuple[str, object]]:
    origin = f"{letter.topic}[{letter.original_partition}]@{letter.original_offset}"
    return [
        ("place", f"{letter.partition}:{letter.offset}"),
        ("from", origin),
        ("time", letter.timestamp),
        ("group", letter.group),
        ("attempts", letter.attempts),
        ("reason", letter.reason),
        ("exception", letter.exception),
        ("key", letter.key),
        ("headers", [f"{name}={value}" for name, value in letter.headers.items() if name not in _SHOWN]),
        ("body", plain(letter.body)),
    ]


def _shortened(body: bytes, limit: int = 60) -> str:
    text = str(plain(body))
    return text if len(text) <= limit else text[: limit - 1] + "…"
