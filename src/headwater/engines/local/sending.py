"""Where each outgoing message belongs: partition by key, rotating without one; and its receipt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import NamedTuple
from zlib import crc32

from ...errors import TopicNotFoundError
from ...log import delays
from ...log.store import Committed, Run, Store
from ...message import NO_HEADERS, Outgoing, Receipt
from .records import encode_headers


class Parcel(NamedTuple):
    """What goes to one partition, and which of the messages that were. `which` is None for all of them."""

    topic: str
    partition: int
    run: Run
    which: Sequence[int] | None


class UnknownTopicsError(Exception):
    """Topics that would have to be made first."""

    def __init__(self, topics: set[str]) -> None:
        super().__init__(f"unknown topics: {sorted(topics)}")
        self.topics = topics


class Sorter:
    """Sorts outgoing messages into partitions.

    A key always goes to the same partition while their number stays: crc32 of its bytes, modulo. Messages
    without one share a partition per send, which is another one each time.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._generation = -1
        self._streams: dict[str, tuple[int, ...]] = {}
        self._turn = 0

    def sort(self, messages: Sequence[Outgoing]) -> list[Parcel]:
        """Raises UnknownTopicsError, and TopicNotFoundError for a partition that is not there."""
        if self._store.catalog_generation != self._generation:
            self._generation = self._store.catalog_generation
            self._streams = {name: topic.streams for name, topic in self._store.topics().items()}
        self._turn += 1
        if len(messages) == 1:
            message = messages[0]
            streams = self._find(message.topic, messages)
            key = key_bytes(message.key)
            partition = self._partition(message, key, streams)
            headers = b"" if message.headers is NO_HEADERS else encode_headers(message.headers)
            run = Run(streams[partition], (key,), (headers,), (message.body,))
            return [Parcel(message.topic, partition, run, None)]
        return self._sort_many(messages)

    def _sort_many(self, messages: Sequence[Outgoing]) -> list[Parcel]:
        keys = [key_bytes(m.key) for m in messages]
        headers = [b"" if m.headers is NO_HEADERS else encode_headers(m.headers) for m in messages]
        bodies = [m.body for m in messages]
        first = messages[0].topic
        one_topic = len({m.topic for m in messages}) == 1
        if one_topic and keys.count(None) == len(keys) and {m.partition for m in messages} == {None}:
            streams = self._find(first, messages)
            partition = self._turn % len(streams)
            return [Parcel(first, partition, Run(streams[partition], keys, headers, bodies), None)]
        lots: dict[tuple[str, int], list[int]] = {}
        for i, message in enumerate(messages):
            streams = self._find(message.topic, messages)
            at = message.topic, self._partition(message, keys[i], streams)
            lot = lots.get(at)
            if lot is None:
                lots[at] = [i]
            else:
                lot.append(i)
        return [
            Parcel(
                topic,
                partition,
                Run(
                    self._streams[topic][partition],
                    [keys[i] for i in lot],
                    [headers[i] for i in lot],
                    [bodies[i] for i in lot],
                ),
                lot,
            )
            for (topic, partition), lot in lots.items()
        ]

    def _find(self, topic: str, messages: Sequence[Outgoing]) -> tuple[int, ...]:
        streams = self._streams.get(topic)
        if streams is None:
            raise UnknownTopicsError({m.topic for m in messages if m.topic not in self._streams})
        return streams

    def _partition(self, message: Outgoing, key: bytes | None, streams: tuple[int, ...]) -> int:
        partition = message.partition
        if partition is not None:
            if not 0 <= partition < len(streams):
                raise TopicNotFoundError(f"{message.topic}[{partition}]", f"it has {len(streams)} partitions")
            return partition
        return crc32(key) % len(streams) if key is not None else self._turn % len(streams)


def key_bytes(key: str | bytes | None) -> bytes | None:
    """A key as it travels."""
    return key.encode() if isinstance(key, str) else key


def receipts_of(messages: Sequence[Outgoing], parcels: Sequence[Parcel], committed: Committed) -> list[Receipt]:
    """One receipt per message, in the order they were given; without an offset for those that wait."""
    time = committed.time
    if len(messages) == 1:
        message, parcel = messages[0], parcels[0]
        if message.delay:
            return [Receipt(message.topic, None, None, time)]
        return [Receipt(message.topic, parcel.partition, committed.bases[0], time)]
    found: list[Receipt] = [None] * len(messages)  # type: ignore[list-item]  # filled below
    for (topic, partition, run, which), base in zip(parcels, committed.bases, strict=False):
        offsets = range(base, base + len(run.values))
        made = map(Receipt, repeat(topic), repeat(partition), offsets, repeat(time))
        if which is None:
            found = list(made)
        else:
            for i, receipt in zip(which, made, strict=True):
                found[i] = receipt
    if any(parcel.topic == delays.TOPIC for parcel in parcels):
        for i, message in enumerate(messages):
            if message.delay:
                found[i] = Receipt(message.topic, None, None, time)
    return found


def streams_of(parcels: Iterable[Parcel]) -> list[int]:
    """The streams that get something new."""
    return [parcel.run.stream for parcel in parcels]
