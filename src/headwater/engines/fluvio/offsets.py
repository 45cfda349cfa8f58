"""Where reading begins, and what groups have stored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from ...engine import Source, Start
from ...errors import ConfigurationError, ConnectError, OffsetOutOfRangeError
from . import names
from .apis import Place
from .cluster import Cluster
from .connection import ANSWER_WITHIN
from .membership import LITTLE, is_ours
from .options import NOTHING, Fluvio
from .streaming import PartitionStream

PROBE: Final = 1 << 16  # bytes read at once while looking for a time
_AT_ONCE: Final = 8  # partitions looked at beside each other


async def first(cluster: Cluster, source: Source, places: Sequence[Place]) -> dict[Place, int]:
    """Where a source begins on each of these partitions. Raises OffsetOutOfRangeError, ConfigurationError."""
    own = source.option(Fluvio) or NOTHING
    if own.from_beginning is not None:
        ranges = await cluster.ranges(places)
        return {place: min(earliest + own.from_beginning, latest) for place, (earliest, latest) in ranges.items()}
    if own.from_end is not None:
        ranges = await cluster.ranges(places)
        return {place: max(latest - own.from_end, earliest) for place, (earliest, latest) in ranges.items()}
    if isinstance(source.start, int) and len(places) != 1 and source.group is None:
        start = source.start
        raise ConfigurationError(f"start={start} needs one partition: give partitions=[n] or start={{n: {start}}}")
    return await resolve(cluster, source.start, places)


async def resolve(cluster: Cluster, start: Start, places: Sequence[Place]) -> dict[Place, int]:
    """The offset of this start on each partition. Raises OffsetOutOfRangeError, ConfigurationError."""
    if isinstance(start, datetime):
        return await offsets_at(cluster, places, start)
    ranges = await cluster.ranges(places)
    if start == "latest":
        return {place: latest for place, (_, latest) in ranges.items()}
    if start == "earliest":
        return {place: earliest for place, (earliest, _) in ranges.items()}
    if isinstance(start, str):
        raise ConfigurationError(f"start={start!r}: an offset of Fluvio is a number")
    asked = (
        dict.fromkeys(places, start) if isinstance(start, int) else {p: start[p[1]] for p in places if p[1] in start}
    )
    for place, offset in asked.items():
        check(place, offset, ranges[place])
    return {place: asked.get(place, earliest) for place, (earliest, _) in ranges.items()}


def check(place: Place, offset: int, kept: tuple[int, int]) -> None:
    """Raises OffsetOutOfRangeError."""
    if not kept[0] <= offset <= kept[1]:
        raise OffsetOutOfRangeError(names.ours(place[0]), place[1], offset, *kept)


async def offsets_at(cluster: Cluster, places: Sequence[Place], moment: datetime) -> dict[Place, int]:
    """On each partition the first offset at or after this time, or the next one if there is none.

    Fluvio keeps no index of times: they are looked for by halving, which reads about twenty messages per partition.
    Raises ConnectError.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(place: Place) -> int:
        async with room:
            return await _offset_at(cluster, place, round(moment.timestamp() * 1000))

    found = await asyncio.gather(*(one(place) for place in places))
    return dict(zip(places, found, strict=True))


async def _offset_at(cluster: Cluster, place: Place, time: int) -> int:
    low, high = await cluster.range(place)
    while low < high:
        middle = (low + high) // 2
        stream = PartitionStream(cluster, place, middle, fetch_bytes=PROBE)
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                record = (await stream.read())[0]
        except TimeoutError:
            raise ConnectError(cluster.address, f"no answer within {ANSWER_WITHIN:g} s") from None
        finally:
            stream.close()
        if record.time >= time:
            high = middle
        else:
            low = max(middle, record.offset) + 1
    return low


# --- groups -------------------------------------------------------------------------------------------


async def stored(cluster: Cluster, group: str, topic: str | None = None) -> dict[Place, int]:
    """The offset that comes next for a group, on the partitions of a topic, or on all where it has one."""
    found = await cluster.stored(None, group)
    return {one.place: one.offset + 1 for one in found if topic in (None, one.place[0])}


async def groups(cluster: Cluster) -> dict[str, set[Place]]:
    """All consumers that stored something, and where."""
    found: dict[str, set[Place]] = {}
    for one in await cluster.stored():
        if not is_ours(one.consumer):
            found.setdefault(one.consumer, set()).add(one.place)
    return found


async def store(cluster: Cluster, group: str, offsets: Mapping[Place, int]) -> None:
    """Have a group continue at these offsets; there must be nobody who reads for it."""
    for place, offset in offsets.items():
        latest = (await cluster.range(place))[1]
        stream = PartitionStream(cluster, place, latest, fetch_bytes=LITTLE, consumer=group)
        try:
            await stream.store(offset - 1)
        finally:
            stream.close()


async def prepare(
    cluster: Cluster, source: Source, places: Sequence[Place], known: Mapping[Place, int]
) -> tuple[int, bool]:
    """Have the source's group have a position on each of these partitions of one topic.

    A new one begins at its `start`, partitions that came later at their beginning. So do those whose position the
    cluster has lost, but for what is `known` here. Gives how many messages were skipped, and whether it is new.
    """
    assert source.group is not None
    there = await stored(cluster, source.group, places[0][0])
    missing = [place for place in places if place not in there]
    if not missing:
        return 0, False
    is_new = not there and not known
    starts = await (first(cluster, source, missing) if is_new else resolve(cluster, "earliest", missing))
    ranges = await cluster.ranges(missing)
    starts = {place: furthest(offset, known.get(place), ranges[place][1]) for place, offset in starts.items()}
    await store(cluster, source.group, starts)
    return sum(starts[place] - ranges[place][0] for place in missing) if is_new else 0, is_new


def furthest(stored: int, known: int | None, latest: int) -> int:
    """What was stored, or what is known to be done beyond it, unless that was in a topic that is another one now."""
    return known if known is not None and stored < known <= latest else stored
