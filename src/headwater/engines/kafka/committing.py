"""Acknowledgements on their way to the group's coordinator."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from .records import Claim, Place

ANSWER_WITHIN: Final = 30.0  # seconds, after which a commit is taken for lost

_log = logging.getLogger("headwater.kafka")


class Committer:
    """Stores how far each claim is done: every moment, all that was acknowledged since. Lives in the consuming thread.

    One commit is under way at a time, and never one of a partition that was taken away. What could not be stored is
    tried again; at the worst it is handled twice.
    """

    def __init__(self, claims: dict[Place, Claim], interval: float) -> None:
        self._claims = claims
        self._interval = interval
        self._next = 0.0  # on the monotonic clock
        self._answer_by = 0.0  # the same, while a commit is under way

    def store_some(self, consumer: Consumer) -> None:
        """Have what is done stored, if the last time was long enough ago. Waits for nothing."""
        now = time.monotonic()
        if now < self._next or now < self._answer_by:
            return
        self._next = now + self._interval
        due = self._due(self._claims)
        if not due:
            return
        self._answer_by = now + ANSWER_WITHIN
        try:
            consumer.commit(offsets=due, asynchronous=True)
        except KafkaException as error:
            self.answered(error, due)

    def answered(self, error: Any, offsets: Sequence[TopicPartition]) -> None:
        """The coordinator answered; called by the client library."""
        self._answer_by = 0.0
        if error is None:
            self._note(offsets)
        else:
            _log.debug("acknowledgements could not be stored, they are tried again: %s", error)

    def store_all(self, consumer: Consumer, places: Collection[Place] | None = None) -> None:
        """Have what is done on these, or on all, stored before this returns."""
        due = self._due(self._claims if places is None else places)
        if not due:
            return
        try:
            self._note(consumer.commit(offsets=due, asynchronous=False) or ())
        except KafkaException as error:
            _log.warning("the last acknowledgements could not be stored, what they were for comes again: %s", error)

    def _due(self, places: Collection[Place]) -> list[TopicPartition]:
        found = [claim for place in places if (claim := self._claims.get(place)) is not None]
        return [TopicPartition(c.topic, c.partition, c.done) for c in found if c.done != c.stored]

    def _note(self, offsets: Sequence[TopicPartition]) -> None:
        for position in offsets:
            claim = self._claims.get((position.topic, position.partition))
            if claim is not None and position.error is None:
                claim.stored = position.offset
