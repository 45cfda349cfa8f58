"""`headwater partitions`: where the partitions of a topic begin and end, and more of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from ..admin import PartitionInfo
from ..broker import Broker
from .output import Columns, confirm, show
from .parameters import AsJson, Target, TopicName, Yes
from .target import ask

commands = typer.Typer(name="partitions", help="Look at the partitions of a topic, and add some.", no_args_is_help=True)

COLUMNS: Columns[PartitionInfo] = {
    "partition": lambda partition: partition.partition,
    "earliest": lambda partition: partition.earliest,
    "latest": lambda partition: partition.latest,
    "messages": lambda partition: partition.messages,
}


@commands.command("list")
def list_partitions(target: Target, topic: TopicName, as_json: AsJson = False) -> None:
    """All partitions of a topic, with their earliest and latest offsets."""
    show(ask(target, lambda broker: broker.admin.partitions.list(topic)), COLUMNS, as_json=as_json)


@commands.command("add")
def add_partitions(
    target: Target,
    topic: TopicName,
    total: Annotated[int, typer.Argument(min=1, help="How many there are then, in all.", show_default=False)],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Give a topic more partitions. Keys move, and no partition can be taken away again."""

    async def add(broker: Broker) -> Sequence[PartitionInfo]:
        info = await broker.admin.topics.describe(topic)
        confirm(f"have {total} partitions of topic {topic!r} instead of {info.partitions}: keys move", yes=yes)
        await broker.admin.partitions.add(topic, total)
        return await broker.admin.partitions.list(topic)

    show(ask(target, add), COLUMNS, as_json=as_json)
