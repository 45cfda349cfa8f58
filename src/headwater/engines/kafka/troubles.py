"""Errors that come where messages should: what is waited out, what is put right, what ends a subscription."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ...errors import HeadwaterError
from .handover import Handover
from .records import Claim, Place, Reading, failure

if TYPE_CHECKING:
    from confluent_kafka import Message as Record

ANSWER_WITHIN: Final = 5.0  # seconds

_HOPELESS: Final = frozenset(
    (
        "FENCED_INSTANCE_ID",
        "GROUP_AUTHORIZATION_FAILED",
        "INCONSISTENT_GROUP_PROTOCOL",
        "INVALID_GROUP_ID",
        "INVALID_SESSION_TIMEOUT",
        "TOPIC_AUTHORIZATION_FAILED",
        "_FATAL",
    )
)

_log = logging.getLogger("headwater.kafka")


class Troubles:
    """Judges the errors of one consumer. All of it is called in its thread."""

    def __init__(self, reading: Reading, handover: Handover, address: str) -> None:
        self._reading = reading
        self._handover = handover
        self._address = address
        self._out_of_range: list[Place] = []

    def met(self, record: Record) -> None:
        """What came was an error."""
        error = record.error()
        assert error is not None
        if error.name() == "_AUTO_OFFSET_RESET":
            self._out_of_range.append((record.topic() or "", record.partition() or 0))
        elif error.fatal() or error.name() in _HOPELESS:
            raise KafkaException(error)
        elif error.name() == "_MAX_POLL_EXCEEDED":
            _log.warning("group %r: %s", self._reading.group, error.str())
        else:  # the library goes on by itself: a server that is away, a topic that is not there
            _log.debug("a consumer of Kafka: %s", error.str())

    def settle(self, consumer: Consumer) -> None:
        """Read on where an offset is not kept any more, or not yet again, from the first that is."""
        places, self._out_of_range = self._out_of_range, []
        for place in places:
            claim = self._reading.claims.get(place)
            if claim is None:
                continue
            try:
                self._move(consumer, claim, consumer.get_watermark_offsets(TopicPartition(*place), ANSWER_WITHIN))
            except KafkaException as error:
                _log.debug("cannot see what is kept of %s[%d], asking again: %s", *place, error)
                self._out_of_range.append(place)

    def _move(self, consumer: Consumer, claim: Claim, kept: tuple[int, int] | None) -> None:
        if kept is None:
            raise KafkaException
        text = "%s[%d]: the next message is not kept any more: some are missed, reading goes on at offset %d"
        _log.warning(text, claim.topic, claim.partition, kept[0])
        consumer.seek(TopicPartition(claim.topic, claim.partition, kept[0]))
        claim.done = kept[0]

    def described(self, error: Exception) -> BaseException:
        """What to tell who receives, of an error that ends the thread."""
        if not isinstance(error, KafkaException):
            return error
        kafka = error.args[0]
        if kafka.name() == "FENCED_INSTANCE_ID" or "fenced" in kafka.str().lower():
            return HeadwaterError(
                f"another member of group {self._reading.group!r} took the place of this one, which has the same "
                f"instance: give each process a name of its own. {kafka.str()}"
            )
        return failure(kafka, self._address)
