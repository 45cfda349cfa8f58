"""Where Kafka is and how it is used, and what that means in the words of its client library."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import SplitResult, unquote

import msgspec

from ...engine import Source
from ...errors import ConfigurationError
from ...places import number_of_process
from ...topics import is_internal, is_pattern
from .options import NOTHING, Compression, Kafka, Mechanism, Rebalance

PORT: Final = 9092

_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@/]+)(?::(\d+))?")
_FIELD = re.compile(r"\{[^{}:]*(:path)?\}")
_INTERNAL: Final = r"^hw\..*,.*\.dead$,.*\.retry$"  # what `topics.is_internal` says, for the client library
_OF_CONNECTIONS: Final = ("broker.", "ssl.", "sasl.", "security.", "socket.", "reconnect.")

Config = dict[str, Any]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All that was said of one connection. Times are in seconds.

    Attributes:
        servers: `host:port` of some brokers of the cluster; they tell of the others.
        tls: whether connections are encrypted.
        user: who logs in, with `password`; both may stand in the URL, `kafka://user:password@host`.
        password: see `user`.
        client: the name servers show of this client; by default the app's.
        instance: members of groups are static under this name and a number that tells the processes of one machine
            apart: one that restarts within `session_timeout` gets its partitions back, and nothing moves meanwhile.
            Unique among the machines of a group.
        auto_create: whether a missing topic is created when it is published to.
        partitions: of topics that are created and say nothing themselves; by default what the cluster says.
        replication: the same for how many brokers keep a topic.
        compression: of what is published.
        linger: how long a message waits for others to travel with.
        delivery_timeout: how long a message is tried to be delivered. It may still arrive so long after its publisher
            was told `DeliveryUnknownError`.
        buffer_bytes: published messages that may wait to be sent; a publish beyond that waits itself.
        commit_interval: acknowledgements are stored so often; and at once when partitions move, and at a stop.
        rebalance: "cooperative" moves few partitions and lets the others go on, "eager" all. One way for each group.
        session_timeout: a member that is not heard of for so long loses its partitions.
        drain_timeout: how long a rebalance waits for handlers that have messages of partitions that move.
        transaction_timeout: a transaction that takes longer is aborted by the server.
        discover: how soon new topics of a pattern, and new partitions, are found.
        sasl: how the user logs in.
        tls_ca: file with the certificates to trust, by default those of the system.
        tls_cert: file with a certificate to show to the server.
        tls_key: file with its key, and `tls_key_password` if that has one.
        tls_key_password: see `tls_key`.
        tls_verify: whether the server's certificate must be one to trust, and for its name.
        config: anything else for the client library, in its own words; it goes before all of the above.
    """

    servers: tuple[str, ...]
    tls: bool = False
    user: str | None = None
    password: str | None = None
    client: str | None = None
    instance: str | None = None
    auto_create: bool = True
    partitions: int | None = None
    replication: int | None = None
    compression: Compression = "none"
    linger: float = 0.0
    delivery_timeout: float = 30.0
    buffer_bytes: int = 64 << 20
    commit_interval: float = 0.1
    rebalance: Rebalance = "cooperative"
    session_timeout: float = 10.0
    drain_timeout: float = 30.0
    transaction_timeout: float = 30.0
    discover: float = 3.0
    sasl: Mechanism = "plain"
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_key_password: str | None = None
    tls_verify: bool = True
    config: Mapping[str, Any] = {}

    def __post_init__(self) -> None:
        if (self.user is None) != (self.password is None):
            raise ConfigurationError("Kafka wants both a user and a password, or neither: kafka://user:password@host")

    @property
    def address(self) -> str:
        """For logs and errors."""
        return ",".join(self.servers)

    def __repr__(self) -> str:
        return f"<Settings of Kafka at {self.address}>"  # without passwords

    def connection(self, client: str = "headwater") -> Config:
        """What every client handle needs."""
        config: Config = {
            "bootstrap.servers": self.address,
            "client.id": self.client or client,
            "security.protocol": ("SASL_" if self.user else "") + ("SSL" if self.tls else "PLAINTEXT"),
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "socket.keepalive.enable": True,
            "log.connection.close": False,
        }
        if self.user:
            config |= {"sasl.mechanism": self.sasl.upper(), "sasl.username": self.user, "sasl.password": self.password}
        if self.tls:
            files = {"ca": self.tls_ca, "certificate": self.tls_cert, "key": self.tls_key}
            config |= {f"ssl.{name}.location": path for name, path in files.items() if path}
            config |= {"ssl.key.password": self.tls_key_password} if self.tls_key_password else {}
            config |= {} if self.tls_verify else {"enable.ssl.certificate.verification": False}
        # Of what was said in the library's own words, that of connecting: not every handle knows all of the others.
        return config | {name: value for name, value in self.config.items() if name.startswith(_OF_CONNECTIONS)}

    def producer(self) -> Config:
        """For what is published outside transactions."""
        return {
            **self.connection(),
            **self._sending(),
            "message.timeout.ms": _ms(self.delivery_timeout),
            **self.config,
        }

    def transactions(self, source: Source) -> Config:
        """For what is published in the transactions of one subscription."""
        return {
            **self.connection(source.client),
            **self._sending(),
            "transactional.id": self._transactional_id(source),
            "transaction.timeout.ms": _ms(self.transaction_timeout),
            **self.config,
        }

    def _sending(self) -> Config:
        return {
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # as Java's, so that a key has one partition whoever publishes
            "compression.type": self.compression,
            "linger.ms": _ms(self.linger),
            "queue.buffering.max.kbytes": max(1, self.buffer_bytes >> 10),
            "queue.buffering.max.messages": 100_000,
            "message.max.bytes": min(max(1000, self.buffer_bytes), 1_000_000_000),  # the server has its own limit
            "topic.metadata.propagation.max.ms": 5000,
        }

    def consumer(self, source: Source) -> Config:
        """For one subscription."""
        own = source.option(Kafka) or NOTHING
        config = {
            **self.connection(source.client),
            # The library wants a group even of readers that take part in none.
            "group.id": source.group or f"{source.client}-reader",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",  # where an offset expires while it is read
            "isolation.level": "read_committed",
            "topic.metadata.refresh.interval.ms": _ms(self.discover),
            "session.timeout.ms": _ms(own.session_timeout or self.session_timeout),
            "heartbeat.interval.ms": _ms(min(1.0, (own.session_timeout or self.session_timeout) / 4)),
            "partition.assignment.strategy": "cooperative-sticky" if self.is_cooperative(source) else "range",
            "queued.min.messages": max(10_000, 2 * source.prefetch) if source.prefetch > 1 else 1,
            "queued.max.messages.kbytes": 16 << 10,
            "fetch.queue.backoff.ms": 20,
        }
        if any(map(is_pattern, source.topics)) and not any(map(is_internal, source.topics)):
            config["topic.blacklist"] = _INTERNAL
        instance = self._instance(source)
        if instance is not None and source.group is not None:
            config["group.instance.id"] = instance
        return {**config, **self.config, **own.config}

    def is_cooperative(self, source: Source) -> bool:
        """Whether only the partitions that move are taken from their members."""
        return ((source.option(Kafka) or NOTHING).rebalance or self.rebalance) == "cooperative"

    def _instance(self, source: Source) -> str | None:
        """Who this member is over restarts, if that is known."""
        instance = (source.option(Kafka) or NOTHING).instance or self.instance
        if instance is None:
            return None
        parts = [instance, str(number_of_process(f"{instance} {source.group}"))]
        if len(source.topics) > 1 or any(map(is_pattern, source.topics)):
            return "-".join([*parts, _digest(source.topics)])
        return "-".join([*parts, source.topics[0]])

    def _transactional_id(self, source: Source) -> str:
        """One for each process, and where it can be known the same after a restart.

        The server then ends at once what a process left open that was killed, instead of after its timeout.
        """
        worker = os.environ.get("HEADWATER_WORKER_ID")
        who = self._instance(source) or (f"{socket.gethostname()}-{worker}" if worker else secrets.token_hex(8))
        return ".".join([self.client or source.client, source.group or "", _digest(source.topics), who])


def servers_of(parts: SplitResult) -> dict[str, Any]:
    """Hosts and credentials of `kafka://user:password@h1:9092,h2:9092`. Raises ConfigurationError."""
    credentials, _, hosts = parts.netloc.rpartition("@")
    if parts.path.strip("/"):
        raise ConfigurationError(
            f"{parts.scheme}:// takes no path, but was given {parts.path!r}: topics are named later"
        )
    found: dict[str, Any] = {
        "servers": tuple(_address(host, parts.scheme) for host in (hosts or "localhost").split(","))
    }
    if credentials:
        user, separator, password = credentials.partition(":")
        found |= {"user": unquote(user), "password": unquote(password) if separator else None}
    return found | {"tls": parts.scheme.endswith("+ssl")}


def _address(host: str, scheme: str) -> str:
    found = _ADDRESS.fullmatch(host.strip())
    if found is None:
        raise ConfigurationError(f"{scheme}://: {host!r} is no address: give host:port, several with commas")
    return f"{found[1]}:{found[2] or PORT}"


def expression(topic: str) -> str:
    """A topic as the client library wants it: a name as it is, a name with fields as a regular expression."""
    if not is_pattern(topic):
        return topic
    escaped = topic.replace(".", r"\.")
    return "^" + _FIELD.sub(lambda field: ".+" if field[1] else "[^./]+", escaped) + "$"


def _digest(topics: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(sorted(topics)).encode()).hexdigest()[:12]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
