"""A set of topics as it should be: what differs, and how that is mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..engine import Topic
from ..errors import ConfigurationError, StoreNotFoundError
from ..topics import is_internal
from .results import TopicInfo

if TYPE_CHECKING:
    from .surface import Admin

_KEPT = ("retention", "retention_bytes")


@dataclass(frozen=True, slots=True)
class TopicChange:
    """One difference between what is there and what is wanted: `before` and `after`, by the names of settings.

    "alter" is how long, or how much, is kept; "grow" is more partitions, by which keys move.
    """

    topic: str
    action: Literal["create", "alter", "grow", "delete"]
    before: Mapping[str, Any]
    after: Mapping[str, Any]

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {self.before.get(name)} → {self.after[name]}" for name in self.after)
        return f"{self.action} {self.topic}" + (f": {settings}" if settings else "")


async def ensure(admin: Admin, wanted: Sequence[Topic], *, delete: bool, dry_run: bool) -> Sequence[TopicChange]:
    """See `Admin.ensure`."""
    try:
        there = {topic.name: topic for topic in await admin.topics.list(internal=True)}
    except StoreNotFoundError:  # the first topic makes the store
        there = {}
    changes = [change for topic in wanted for change in _differences(topic, there.get(topic.name))]
    if delete:
        unwanted = there.keys() - {topic.name for topic in wanted}
        changes += [
            TopicChange(name, "delete", {"messages": there[name].messages}, {})
            for name in sorted(unwanted)
            if not (there[name].internal or is_internal(name))
        ]
    if not dry_run:
        by_name = {topic.name: topic for topic in wanted}
        for change in changes:
            await _apply(admin, change, by_name.get(change.topic), there.get(change.topic))
    return changes


def _differences(wanted: Topic, there: TopicInfo | None) -> Iterator[TopicChange]:
    """What is not as it should be; a setting of None is the engine's, and whatever it is is right."""
    given = {name: value for name in ("partitions", *_KEPT) if (value := getattr(wanted, name)) is not None}
    if there is None:
        yield TopicChange(wanted.name, "create", {}, given)
        return
    differing = {name: value for name, value in given.items() if getattr(there, name) != value}
    before = {name: getattr(there, name) for name in differing}
    if (partitions := differing.get("partitions")) is not None:
        if partitions < there.partitions:
            raise ConfigurationError(
                f"{wanted.name} has {there.partitions} partitions, and {partitions} are wanted: none can be taken "
                f"away. Make another topic, and copy"
            )
        yield TopicChange(wanted.name, "grow", {"partitions": before["partitions"]}, {"partitions": partitions})
    kept = {name: differing[name] for name in _KEPT if name in differing}
    if kept:
        yield TopicChange(wanted.name, "alter", {name: before[name] for name in kept}, kept)


async def _apply(admin: Admin, change: TopicChange, wanted: Topic | None, there: TopicInfo | None) -> None:
    match change.action:
        case "delete":
            await admin.topics.delete(change.topic)
        case "grow":
            await admin.partitions.add(change.topic, change.after["partitions"])
        case "alter":
            assert wanted is not None
            assert there is not None
            after = replace(there, **change.after)  # what is not wanted otherwise stays as it is
            await admin.topics.alter(
                change.topic,
                retention=after.retention,
                retention_bytes=after.retention_bytes,
                options=wanted.options,
            )
        case "create":
            assert wanted is not None
            await admin.topics.create(
                wanted.name,
                partitions=wanted.partitions,
                retention=wanted.retention,
                retention_bytes=wanted.retention_bytes,
                options=wanted.options,
            )
