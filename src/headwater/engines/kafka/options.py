"""What a user may say to Kafka: of the connection, of a subscriber, of a topic, of one message."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict

import msgspec

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
Rebalance = Literal["cooperative", "eager"]
Mechanism = Literal["plain", "scram-sha-256", "scram-sha-512"]


class KafkaOptions(TypedDict, total=False):
    """What a `kafka://` URL may ask for after its `?`; `Settings` says what each means."""

    client: str
    instance: str
    auto_create: bool
    partitions: int
    replication: int
    compression: Compression
    linger: float
    delivery_timeout: float
    buffer_bytes: int
    commit_interval: float
    rebalance: Rebalance
    session_timeout: float
    drain_timeout: float
    transaction_timeout: float
    discover: float
    user: str
    password: str
    sasl: Mechanism
    tls_ca: str
    tls_cert: str
    tls_key: str
    tls_key_password: str
    tls_verify: bool
    config: Mapping[str, Any]


class Kafka(msgspec.Struct, frozen=True, kw_only=True):
    """Options for Kafka, in `options=[Kafka(...)]` of a subscriber, a topic or a publish.

    Attributes:
        instance: of a subscriber: it is a static member of this name, see the option of the broker.
        rebalance: of a subscriber: instead of the broker's.
        session_timeout: of a subscriber, seconds: instead of the broker's.
        replication: of a topic: how many brokers keep it.
        compact: of a topic: keep the last message of each key; with a retention, that no longer than it says.
        config: of a topic: its configuration, such as `{"segment.bytes": 1 << 20}`; of a subscriber: that of its
            consumer in the client library. Both in Kafka's own words.
        tombstone: of a message: it has no value at all, and so deletes its key from a compacted topic.
        timestamp: of a message: an aware datetime, instead of the time it is published.
    """

    instance: str | None = None
    rebalance: Rebalance | None = None
    session_timeout: float | None = None
    replication: int | None = None
    compact: bool | None = None
    config: Mapping[str, Any] = {}
    tombstone: bool = False
    timestamp: datetime | None = None


NOTHING = Kafka()
