"""Kafka's records and errors as messages, receipts and errors of ours, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from ...errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    DeliveryUnknownError,
    HeadwaterError,
    MessageTooLargeError,
    NotConnectedError,
    RefusedError,
    TopicNotFoundError,
)
from ...message import NO_HEADERS, Headers, Message, Outgoing, Receipt
from .options import NOTHING, Kafka

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer
    from confluent_kafka import Message as Record

TOMBSTONE: Final = "kafka-tombstone"
"""The header by which a received message tells that it has no value at all; its body reads as JSON's null."""

Place = tuple[str, int]  # a partition of a topic
Delivered = Callable[[Any, Any], None]

EARLIEST: Final = -2  # asked as a time, it is the first offset kept
_NULL: Final = b"null"
_REMEMBERED: Final = 4096  # different headers, as messages share them

UNKNOWN_TOPIC: Final = frozenset(("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"))
_REFUSED: Final = frozenset(
    (
        "_AUTHENTICATION",
        "SASL_AUTHENTICATION_FAILED",
    )
)
_PASSING: Final = frozenset(
    (
        "COORDINATOR_LOAD_IN_PROGRESS",
        "COORDINATOR_NOT_AVAILABLE",
        "FENCED_LEADER_EPOCH",
        "LEADER_NOT_AVAILABLE",
        "NOT_CONTROLLER",
        "NOT_COORDINATOR",
        "NOT_LEADER_FOR_PARTITION",
        "OFFSET_NOT_AVAILABLE",
        "REPLICA_NOT_AVAILABLE",
        "UNKNOWN_LEADER_EPOCH",
        "_WAIT_COORD",
    )
)
_UNKNOWN: Final = frozenset(("_MSG_TIMED_OUT", "_TIMED_OUT", "REQUEST_TIMED_OUT", "_PURGE_INFLIGHT"))


class Claim:
    """A partition that is read here, from when it was given until it is taken away: how far it is done and stored."""

    __slots__ = ("done", "live", "partition", "stored", "topic")

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        self.topic, self.partition = topic, partition
        self.done = self.stored = offset  # all below it
        self.live = True


class Reading(Protocol):
    """What converting asks of whom it converts for."""

    claims: dict[Place, Claim]

    @property
    def group(self) -> str | None: ...
    def troubled(self, record: Record) -> None:
        """What came is not a message but an error."""
        ...


_headers: dict[tuple[tuple[str, bytes | None], ...], Headers] = {}


def to_messages(records: Sequence[Record], reading: Reading) -> list[Message]:
    """Messages of the partitions that are claimed; what came of others meanwhile is somebody else's."""
    claims, group, found = reading.claims, reading.group, list[Message]()
    before: tuple[str | None, int | None] = None, None
    claim: Claim | None = None
    for record in records:
        if record.error() is not None:
            reading.troubled(record)
            continue
        topic, partition = record.topic(), record.partition()
        if partition != before[1] or topic != before[0]:  # they come in runs
            before = topic, partition
            claim = claims.get(before)  # type: ignore[arg-type]  # a message without an error has both
        if claim is None:
            continue
        raw, value = record.headers(), record.value()
        headers = _to_headers(tuple(raw)) if raw else NO_HEADERS  # type: ignore[arg-type]  # received ones are pairs
        if value is None:
            value, headers = _NULL, Headers((*headers.pairs, (TOMBSTONE, b"1")))
        found.append(
            Message(
                claim.topic,
                value,
                record.key(),
                headers,
                partition,
                record.offset(),
                record.timestamp()[1] / 1000,
                group,
                1,
                claim,
            )
        )
    return found


def _to_headers(pairs: tuple[tuple[str, bytes | None], ...]) -> Headers:
    headers = _headers.get(pairs)
    if headers is None:
        if len(_headers) >= _REMEMBERED:
            _headers.clear()
        headers = _headers[pairs] = Headers([(name, value or b"") for name, value in pairs])
    return headers


def produce(producer: Producer, outgoing: Outgoing, delivered: Delivered) -> None:
    """Hand a message to the client library. Raises BufferError while it has no room, KafkaException."""
    headers = outgoing.headers
    pairs = headers.pairs if isinstance(headers, Headers) else Headers(headers).pairs
    partition = -1 if outgoing.partition is None else outgoing.partition
    if not outgoing.options:
        producer.produce(
            outgoing.topic, outgoing.body, outgoing.key_bytes, partition, on_delivery=delivered, headers=list(pairs)
        )
        return
    own = next((option for option in outgoing.options if isinstance(option, Kafka)), NOTHING)
    producer.produce(
        outgoing.topic,
        None if own.tombstone else outgoing.body,
        outgoing.key_bytes,
        partition,
        on_delivery=delivered,
        headers=list(pairs),
        timestamp=0 if own.timestamp is None else round(own.timestamp.timestamp() * 1000),
    )


def to_receipt(outgoing: Outgoing, record: Record) -> Receipt:
    """The receipt of a message that was delivered.

    Without an offset the library only concluded so from a later one, and that is no proof: see `Sender.know`.
    """
    return Receipt(outgoing.topic, record.partition(), record.offset(), record.timestamp()[1] / 1000)


def passes(error: KafkaError) -> bool:
    """Whether this is only so until the cluster has settled down, as right after a topic was made or a restart."""
    return error.name() in _PASSING


def failure(
    error: KafkaError, address: str, outgoing: Outgoing | None = None, timeout: float = 0.0, what: str = ""
) -> HeadwaterError:
    """What to raise for an error of the client library, about this message, or this topic or group, if there is one."""
    name, reason = error.name(), error.str()
    if name.endswith("_AUTHORIZATION_FAILED"):
        what = what if outgoing is None else outgoing.topic
        subject = f" on {what!r}" if what else ""
        return AuthenticationError(address, f"{reason}{subject}: this user needs an ACL that allows it")
    if name in _REFUSED:
        return AuthenticationError(address, reason)
    if outgoing is not None:
        if name == "MSG_SIZE_TOO_LARGE":
            return MessageTooLargeError(outgoing.topic, len(outgoing.body))
        if name == "_UNKNOWN_PARTITION":
            return ConfigurationError(f"{outgoing.topic!r} has no partition {outgoing.partition}")
        if name in UNKNOWN_TOPIC:
            return TopicNotFoundError(outgoing.topic)
        if name in _UNKNOWN:
            return DeliveryUnknownError(outgoing.topic, timeout)
        if name == "_PURGE_QUEUE":
            return NotConnectedError(f"Kafka at {address}")
        return RefusedError(outgoing.topic, reason)
    if name.startswith("_"):  # the library's own: it did not get as far as the server
        return ConnectError(address, reason)
    return HeadwaterError(f"Kafka at {address} refused: {reason}")
