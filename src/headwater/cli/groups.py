"""`headwater groups`: who consumes what, how far behind, and moving or forgetting a group."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from ..admin import GroupInfo, Lag, LagSample, MemberInfo, PartitionLag, ResetTo
from ..broker import Broker
from .output import Columns, confirm, duration, note, plain, show, show_details, show_json, to_json, write
from .parameters import AsJson, GroupName, Target, TopicName, Yes, read_places, read_start
from .target import ask

commands = typer.Typer(name="groups", help="Look at consumer groups, move and forget them.", no_args_is_help=True)

_COLUMNS: Columns[GroupInfo] = {
    "group": lambda group: group.name,
    "members": lambda group: len(group.members),
    "topics": lambda group: group.topics,
}
_MEMBERS: Columns[MemberInfo] = {
    "member": lambda member: member.id,
    "client": lambda member: member.client,
    "partitions": lambda member: [f"{topic}[{partition}]" for topic, partition in member.partitions],
}
_LAG: Columns[PartitionLag] = {
    "topic": lambda partition: partition.topic,
    "partition": lambda partition: partition.partition,
    "committed": lambda partition: partition.committed,
    "latest": lambda partition: partition.latest,
    "lag": lambda partition: partition.lag,
}
_OFFSETS: Columns[dict[str, object]] = {
    name: lambda row, name=name: row[name]  # type: ignore[misc]  # the default binds the name of this round
    for name in ("topic", "partition", "offset")
}


@commands.command("list")
def list_groups(target: Target, as_json: AsJson = False) -> None:
    """All groups."""
    groups = ask(target, lambda broker: broker.admin.groups.list())
    show(groups, _COLUMNS, as_json=as_json, nothing="no groups yet")


@commands.command("show")
@commands.command("describe", hidden=True)
def show_group(target: Target, group: GroupName, as_json: AsJson = False) -> None:
    """One group, and its live members."""
    info = ask(target, lambda broker: broker.admin.groups.describe(group))
    if as_json:
        show_json([info])
    else:
        show_details((title, column(info)) for title, column in _COLUMNS.items())
        show(info.members, _MEMBERS, as_json=False, nothing="no live members")


@commands.command("lag")
def show_lag(
    target: Target,
    group: GroupName,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="By default all of its topics.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on looking, a line each time.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """How many messages a group has still to handle; with --watch also how that moves."""
    if watch:
        ask(target, lambda broker: _watch(broker, group, topic, every, as_json))
        return

    async def look(broker: Broker) -> Lag:
        if topic is not None:
            await broker.admin.topics.describe(topic)  # a topic that is not there is no lag of 0
        return await broker.admin.groups.lag(group, topic)

    lag = ask(target, look)
    show(lag.partitions, _LAG, as_json=as_json, nothing=f"{group} has no position on any topic")
    if not as_json and lag.partitions:
        note(f"total lag {lag.total}")


async def _watch(broker: Broker, group: str, topic: str | None, every: float, as_json: bool) -> None:
    if not as_json:
        write(f"{'TIME':8}  {'LAG':>10}  {'PUBLISHED/s':>11}  {'HANDLED/s':>11}  LEFT\n")
    async for sample in broker.admin.watch_lag(group, topic, every=every):
        write(f"{_json_sample(sample) if as_json else _line(sample)}\n")


def _json_sample(sample: LagSample) -> str:
    return to_json(plain(sample) | {"total": sample.total, "remaining": sample.remaining})


def _line(sample: LagSample) -> str:
    published, handled = ("-" if rate is None else f"{rate:,.1f}" for rate in (sample.published, sample.handled))
    left = "-" if sample.remaining is None else duration(timedelta(seconds=round(sample.remaining)))
    time = f"{sample.time.astimezone():%H:%M:%S}"
    return f"{time}  {sample.total:>10}  {published:>11}  {handled:>11}  {left}"


@commands.command("reset")
def reset_group(
    target: Target,
    group: GroupName,
    topic: TopicName,
    to: Annotated[str | None, typer.Option(help="earliest, latest, an offset, or a time in ISO 8601.")] = None,
    shift: Annotated[int | None, typer.Option(help="Move by so many messages; negative is back.")] = None,
    offset: Annotated[list[str] | None, typer.Option(metavar="P:O", help="To this offset; repeatable.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print where it would be.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Move a group that has no live member: what it handles next."""
    wanted: ResetTo | None = read_places(offset) if offset else read_start(to) if to else None
    if sum(given is not None for given in (to, shift, offset or None)) != 1:
        raise typer.BadParameter("give one of --to, --shift and --offset")

    async def reset(broker: Broker) -> list[dict[str, object]]:
        groups = broker.admin.groups
        await broker.admin.topics.describe(topic)
        if not dry_run:
            await groups.describe(group)
            confirm(f"move group {group!r} on topic {topic!r}", yes=yes)
        offsets = await groups.reset(group, topic, to=wanted, shift=shift, dry_run=dry_run)
        return [{"topic": topic, "partition": p, "offset": o} for p, o in sorted(offsets.items())]

    show(ask(target, reset), _OFFSETS, as_json=as_json, nothing="nothing moves")


@commands.command("delete")
def delete_group(target: Target, group: GroupName, yes: Yes = False, as_json: AsJson = False) -> None:
    """Forget a group that has no live member, and its position."""

    async def delete(broker: Broker) -> GroupInfo:
        info = await broker.admin.groups.describe(group)
        confirm(f"delete group {group!r} and its position on {', '.join(info.topics) or 'no topic'}", yes=yes)
        await broker.admin.groups.delete(group)
        return info

    info = ask(target, delete)
    if as_json:
        show_json([info])
    else:
        note(f"deleted group {group}")
