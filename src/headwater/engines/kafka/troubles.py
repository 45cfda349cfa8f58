"""Errors that come where messages should: what is waited out, and what ends a subscription."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException

from ...errors import HeadwaterError
from .records import failure

if TYPE_CHECKING:
    from confluent_kafka import Message as Record

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

    def __init__(self, group: str | None, address: str) -> None:
        self._group = group
        self._address = address

    def met(self, record: Record) -> None:
        """What came was an error."""
        error = record.error()
        assert error is not None
        if error.fatal() or error.name() in _HOPELESS:
            raise KafkaException(error)
        if error.name() == "_MAX_POLL_EXCEEDED":
            _log.warning("group %r: %s", self._group, error.str())
        else:  # the library goes on by itself: a server that is away, a topic that is not there
            _log.debug("a consumer of Kafka: %s", error.str())

    def described(self, error: Exception) -> BaseException:
        """What to tell who receives, of an error that ends the thread."""
        if not isinstance(error, KafkaException):
            return error
        kafka = error.args[0]
        if kafka.name() == "FENCED_INSTANCE_ID" or "fenced" in kafka.str().lower():
            return HeadwaterError(
                f"another member of group {self._group!r} took the place of this one, which has the same "
                f"instance: give each machine a name of its own. {kafka.str()}"
            )
        return failure(kafka, self._address, what=(self._group or "") if kafka.name().startswith("GROUP_") else "")
