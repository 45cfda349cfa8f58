"""`headwater topics`: what topics there are, how long they keep messages, making and unmaking them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated

import typer

from ..admin import PartitionInfo, TopicChange, TopicInfo
from ..broker import Broker
from ..errors import NotSupportedError, StoreNotFoundError
from .output import Columns, Failure, confirm, counted, note, plain, show, show_details, show_json, size
from .parameters import (
    FOREVER,
    AsJson,
    Target,
    TopicName,
    Yes,
    read_duration,
    read_moment,
    read_places,
    read_size,
)
from .partitions import COLUMNS as PARTITIONS
from .target import ask, load_app

commands = typer.Typer(name="topics", help="List, make, change and delete topics.", no_args_is_help=True)

Retention = Annotated[str | None, typer.Option(help="Keep messages so long: 90s, 12h, 7d, or forever.")]
RetentionBytes = Annotated[str | None, typer.Option(help="Keep so much: 512MiB, 1GB, or forever.")]

_COLUMNS: Columns[TopicInfo] = {
    "topic": lambda topic: topic.name,
    "partitions": lambda topic: topic.partitions,
    "messages": lambda topic: topic.messages,
    "size": lambda topic: size(topic.size),
    "retention": lambda topic: _kept(topic),
}


_CHANGES: Columns[TopicChange] = {
    "topic": lambda change: change.topic,
    "action": lambda change: change.action,
    "change": lambda change: str(change).partition(": ")[2] or "-",
}


@commands.command("list")
def list_topics(
    target: Target,
    internal: Annotated[bool, typer.Option(help="Also those Headwater made: dead letters, retries, replies.")] = False,
    as_json: AsJson = False,
) -> None:
    """All topics."""
    topics = ask(target, lambda broker: broker.admin.topics.list(internal=internal))
    show(topics, _COLUMNS, as_json=as_json, nothing="no topics yet")


@commands.command("show")
@commands.command("describe", hidden=True)
def show_topic(target: Target, topic: TopicName, as_json: AsJson = False) -> None:
    """One topic, and the offsets of its partitions."""

    async def look(broker: Broker) -> tuple[TopicInfo, list[PartitionInfo]]:
        info = await broker.admin.topics.describe(topic)
        try:
            return info, list(await broker.admin.partitions.list(topic))
        except NotSupportedError:  # it keeps nothing, or the engine has no offsets
            return info, []

    info, partitions = ask(target, look)
    if as_json:
        show_json([plain(info) | {"offsets": plain(partitions)}])
    else:
        show_details((title, column(info)) for title, column in _COLUMNS.items())
        show(partitions, PARTITIONS, as_json=False)


@commands.command("create")
def create_topic(
    target: Target,
    topic: TopicName,
    partitions: Annotated[int | None, typer.Option(min=1, help="How many; by default what the engine says.")] = None,
    retention: Retention = None,
    retention_bytes: RetentionBytes = None,
    as_json: AsJson = False,
) -> None:
    """Make a topic."""
    age = read_duration(retention or FOREVER)
    amount = read_size(retention_bytes or FOREVER)

    async def create(broker: Broker) -> TopicInfo:
        topics = broker.admin.topics
        with suppress(StoreNotFoundError):  # the first topic makes the store
            known = await topics.list(internal=True)
            if any(one.name == topic for one in known):
                raise Failure(f"topic {topic!r} is there already: change it with `headwater topics alter`")
        await topics.create(topic, partitions=partitions, retention=age, retention_bytes=amount)
        return await topics.describe(topic)

    show([ask(target, create)], _COLUMNS, as_json=as_json)


@commands.command("alter")
def alter_topic(
    target: Target,
    topic: TopicName,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="So many in all; they only grow, and keys move.")
    ] = None,
    retention: Retention = None,
    retention_bytes: RetentionBytes = None,
    as_json: AsJson = False,
) -> None:
    """Change how long a topic keeps its messages, or give it more partitions. What is not named stays."""
    if partitions is None and retention is None and retention_bytes is None:
        raise typer.BadParameter("say what to change: --retention, --retention-bytes or --partitions")
    age = None if retention is None else read_duration(retention)
    amount = None if retention_bytes is None else read_size(retention_bytes)

    async def alter(broker: Broker) -> TopicInfo:
        topics = broker.admin.topics
        wanted = await topics.describe(topic)
        if retention is not None:
            wanted = replace(wanted, retention=age)
        if retention_bytes is not None:
            wanted = replace(wanted, retention_bytes=amount)
        if retention is not None or retention_bytes is not None:
            await topics.alter(topic, retention=wanted.retention, retention_bytes=wanted.retention_bytes)
        if partitions is not None:
            await broker.admin.partitions.add(topic, partitions)
        return await topics.describe(topic)

    show([ask(target, alter)], _COLUMNS, as_json=as_json)


@commands.command("ensure")
def ensure_topics(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="An app, with topics=.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what differs.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Also delete those the app does not have.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Have the topics that an app declares with topics=, with their settings; print what differed."""
    wanted = load_app(target, only_apps=True).topics

    async def ensure(broker: Broker) -> Sequence[TopicChange]:
        changes = await broker.admin.ensure(wanted, delete=delete, dry_run=True)
        gone = [change for change in changes if change.action == "delete"]
        if gone and not dry_run:
            messages = counted(sum(change.before["messages"] for change in gone), "message")
            confirm(f"delete {', '.join(change.topic for change in gone)} and their {messages}", yes=yes)
        return changes if dry_run else await broker.admin.ensure(wanted, delete=delete)

    show(ask(target, ensure), _CHANGES, as_json=as_json, nothing="nothing differs")


@commands.command("delete")
def delete_topic(target: Target, topic: TopicName, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete a topic and all its messages."""

    async def delete(broker: Broker) -> TopicInfo:
        info = await broker.admin.topics.describe(topic)
        confirm(f"delete topic {topic!r} and its {counted(info.messages, 'message')}", yes=yes)
        await broker.admin.topics.delete(topic)
        return info

    _say_gone(ask(target, delete), f"deleted {topic}", as_json)


@commands.command("purge")
def purge_topic(
    target: Target,
    topic: TopicName,
    before: Annotated[str | None, typer.Option(help="Only what is older than this time.")] = None,
    offset: Annotated[list[str] | None, typer.Option(metavar="P:O", help="Only below this offset; repeatable.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make the messages of a topic unreadable; the topic stays."""
    if before and offset:
        raise typer.BadParameter("--before and --offset say the same thing in two ways: give one")
    bound = read_moment(before) if before else read_places(offset) if offset else None

    async def purge(broker: Broker) -> TopicInfo:
        info = await broker.admin.topics.describe(topic)
        part = "all" if bound is None else "some"
        confirm(f"purge {part} of the {counted(info.messages, 'message')} of topic {topic!r}", yes=yes)
        await broker.admin.topics.purge(topic, before=bound)
        return await broker.admin.topics.describe(topic)

    info = ask(target, purge)
    _say_gone(info, f"purged {topic}: {counted(info.messages, 'message')} left", as_json)


def _say_gone(info: TopicInfo, text: str, as_json: bool) -> None:
    if as_json:
        show_json([info])
    else:
        note(text)


def _kept(topic: TopicInfo) -> object:
    return [limit for limit in (topic.retention, size(topic.retention_bytes)) if limit is not None] or FOREVER
