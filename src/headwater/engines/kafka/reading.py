"""Reading without a group: partitions are chosen by hand, and nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ...engine import Source
from ...message import Message
from ...topics import is_pattern, match
from .records import EARLIEST, Claim, Place, to_messages
from .troubles import Troubles

if TYPE_CHECKING:
    from confluent_kafka import Message as Record

ANSWER_WITHIN: Final = 2.0  # seconds


class Reader:
    """Reads all partitions from where each begins, those that come later from their beginning.

    All but `__init__` is called in the thread that consumes.
    """

    def __init__(
        self,
        source: Source,
        claims: dict[Place, Claim],
        starts: Mapping[Place, int],
        *,
        discover: float,
        address: str,
    ) -> None:
        self.claims, self.group = claims, None
        self._source = source
        self._starts = starts
        self._discover = discover
        self._next_look = time.monotonic() + discover
        self._troubles = Troubles(None, address)

    def begin(self, consumer: Consumer) -> None:
        self._take(consumer, self._starts)

    def _take(self, consumer: Consumer, offsets: Mapping[Place, int]) -> None:
        for place, offset in offsets.items():
            self.claims[place] = Claim(*place, offset)
        consumer.incremental_assign([TopicPartition(*place, offset) for place, offset in offsets.items()])

    def between(self, consumer: Consumer) -> None:
        if self._source.partitions is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + self._discover
            try:
                self._look_for_more(consumer)
            except KafkaException:
                pass  # it is away: the next look may find more

    def _look_for_more(self, consumer: Consumer) -> None:
        new = [TopicPartition(*place, EARLIEST) for place in self._places(consumer) if place not in self.claims]
        if new:
            found = consumer.offsets_for_times(new, timeout=ANSWER_WITHIN)
            self._take(consumer, {(p.topic, p.partition): p.offset for p in found})

    def _places(self, consumer: Consumer) -> list[Place]:
        topics = self._source.topics
        if len(topics) == 1 and not is_pattern(topics[0]):
            found = consumer.list_topics(topics[0], ANSWER_WITHIN).topics
        else:
            found = consumer.list_topics(timeout=ANSWER_WITHIN).topics
        return [
            (name, number)
            for name, topic in found.items()
            if any(match(wanted, name) is not None for wanted in topics)
            for number in topic.partitions
        ]

    def end(self, consumer: Consumer) -> None:
        pass  # nothing is kept

    def convert(self, records: Sequence[Record]) -> list[Message]:
        return to_messages(records, self)

    def troubled(self, record: Record) -> None:
        self._troubles.met(record)

    def failed(self, error: Exception) -> BaseException:
        return self._troubles.described(error)
