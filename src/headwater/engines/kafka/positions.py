"""Where reading begins."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime

from ...engine import Source, Start
from ...errors import ConfigurationError, TopicNotFoundError
from ...topics import is_pattern, match
from .cluster import Cluster
from .records import Place

_log = logging.getLogger("headwater.kafka")


async def resolve(cluster: Cluster, start: Start, places: Sequence[Place]) -> dict[Place, int]:
    """The offset of this start on each partition. Raises OffsetOutOfRangeError."""
    if isinstance(start, datetime):
        return await cluster.offsets(places, start)
    if isinstance(start, str):
        if start in ("earliest", "latest"):
            return await cluster.offsets(places, "earliest" if start == "earliest" else "latest")
        raise ConfigurationError(f"start={start!r}: an offset of Kafka is a number")
    if isinstance(start, int):
        offsets, others = dict.fromkeys(places, start), list[Place]()
    else:
        offsets = {place: start[place[1]] for place in places if place[1] in start}
        others = [place for place in places if place[1] not in start]
    await cluster.check(offsets)
    return offsets | await cluster.offsets(others, "earliest")


async def first_start(cluster: Cluster, source: Source, places: Sequence[Place]) -> dict[Place, int]:
    """Where a group begins on those of these partitions it has never read; nothing where it is known already.

    A name or a pattern is known once the group has a position on one of its partitions: what comes later is read from
    its beginning.
    """
    assert source.group is not None
    stored = await cluster.stored(source.group, places)
    known = {topic for topic in source.topics if any(match(topic, name) is not None for name, _ in stored)}
    new = [place for place in places if not any(match(topic, place[0]) is not None for topic in known)]
    starts = await resolve(cluster, source.start, new)
    if starts and source.start != "earliest":
        await _tell_skipped(cluster, source, starts)
    return starts


async def _tell_skipped(cluster: Cluster, source: Source, starts: Mapping[Place, int]) -> None:
    earliest = await cluster.offsets(list(starts), "earliest")
    skipped = sum(offset - earliest[place] for place, offset in starts.items())
    if skipped:
        _log.info("the new group %r begins at %s and skips %d message(s)", source.group, source.start, skipped)


async def reader_places(cluster: Cluster, source: Source) -> list[Place]:
    """The partitions that a reader without a group wants. Raises TopicNotFoundError for a name that is not there."""
    names = [topic for topic in source.topics if not is_pattern(topic)]
    there = await cluster.partitions(names)
    for name in names:
        if name not in there:
            raise TopicNotFoundError(name)
    places = await cluster.places(source.topics)
    return [place for place in places if source.partitions is None or place[1] in source.partitions]


async def reader_start(cluster: Cluster, source: Source) -> dict[Place, int]:
    """Where such a reader begins. Raises OffsetOutOfRangeError, ConfigurationError for an offset of several."""
    places, start = await reader_places(cluster, source), source.start
    if isinstance(start, int) and len(places) != 1:
        raise ConfigurationError(f"start={start} needs one partition: give partitions=[n] or start={{n: {start}}}")
    return await resolve(cluster, start, places)
