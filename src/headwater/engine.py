"""The protocol an engine implements, and the capabilities by which the core knows what is left to do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import msgspec

from .clock import Clock
from .errors import ConfigurationError
from .message import Message, Outgoing, Position, Receipt

if TYPE_CHECKING:
    from .admin import EngineAdmin

T = TypeVar("T")

Start = Literal["latest", "earliest"] | str | int | datetime | Mapping[int, int]
"""Where reading begins: `earliest` is the first kept, `latest` what the next message will get; an
offset, which is a str on some engines; an offset per partition; or an aware datetime."""

DeclareMode = Literal["create", "check", "off"]


class Ack(Enum):
    """How a source takes acknowledgements."""

    NONE = "none"  # it keeps nothing that could be acknowledged
    EACH = "each"  # every message by itself, in any order
    UP_TO = "up_to"  # an offset: everything below it is done


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What one source of an engine can do. The core supplies the rest, or refuses at start."""

    ack: Ack = Ack.NONE
    lease: float | None = None  # seconds until an unsettled message is given to somebody else
    counts_deliveries: bool = False  # Message.attempt survives our death, see Subscription.begin ...
    counts_unbegun: bool = False  # ... but counts what was never begun, too: it shows deaths, and no number of calls
    nack: bool = False  # an unsettled message can be given back
    delayed_nack: bool = False
    reject: bool = False
    delayed_send: bool = False
    headers: bool = False
    keys: bool = False  # a key decides the partition, and one consumer has a partition at a time
    partitions: bool = False
    patterns: bool = False
    groups: bool = False
    exclusive: bool = False  # a single active consumer per group
    replay: bool = False  # reading can start anywhere in what is kept
    durable: bool = False  # what was accepted survives the death of our process
    redistributes: bool = True  # what a member of a group leaves unsettled goes to the others, at once or by lease
    atomic_batch: bool = False  # all of one send, or nothing
    atomic_commit: bool = False  # acknowledgements and sends in one transaction


class Topic(msgspec.Struct, frozen=True):
    """A topic as its owner wants it. `None` leaves a setting to the engine.

    `retention` is the age and `retention_bytes` the size after which messages expire; with neither they
    are kept for ever. `options` are typed per engine; those of other engines are ignored.
    """

    name: str
    partitions: int | None = None
    retention: timedelta | None = None
    retention_bytes: int | None = None
    options: tuple[Any, ...] = ()


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscription reads, and how.

    With a `group` the members share the messages and positions are kept; without one (broadcast and
    streams) every reader sees everything and nothing is kept.
    """

    topics: tuple[str, ...]  # may carry fields: "orders.{region}", "files.{rest:path}"
    group: str | None = None
    start: Start = "latest"
    partitions: tuple[int, ...] | None = None  # read just these; only without a group
    exclusive: bool = False
    exactly_once: bool = False
    prefetch: int = 1000  # messages the engine may hold ready
    client: str = "headwater"  # who reads, for servers that show the names of their clients
    options: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.start, datetime) and self.start.tzinfo is None:
            raise ConfigurationError(
                f"start={self.start!r} is naive: give an aware datetime, such as datetime.now(UTC)"
            )

    def option(self, kind: type[T]) -> T | None:
        """This source's options of one engine, or None."""
        return option_of(self.options, kind)


def option_of(options: Sequence[Any], kind: type[T]) -> T | None:
    """The options of one engine among those of several, or None."""
    return next((option for option in options if isinstance(option, kind)), None)


class Assigned(msgspec.Struct, frozen=True):
    """These partitions are ours from now on. Acknowledgements of an older epoch are dropped."""

    partitions: frozenset[tuple[str, int]]
    epoch: int


class Revoked(msgspec.Struct, frozen=True):
    """These partitions go to somebody else: finish and acknowledge what is in flight before returning."""

    partitions: frozenset[tuple[str, int]]
    epoch: int


class Lost(msgspec.Struct, frozen=True):
    """These partitions are gone already: drop what is in flight, acknowledge nothing."""

    partitions: frozenset[tuple[str, int]]
    epoch: int


Change = Assigned | Revoked | Lost
OnChange = Callable[[Change], Awaitable[None]]
"""Told of one change after the other, before each takes effect. It waits for acknowledgements: none may wait for it."""


class Subscription(Protocol):
    """A place in one source. One task receives; settling may happen beside it."""

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """The next messages, at most `limit`; () after `wait` quiet seconds, or once `wake` was called.

        Never cancelled by the core.
        """
        ...

    def wake(self) -> None:
        """Make a waiting `receive` return at once."""
        ...

    def begin(self, message: Message) -> None:
        """Note that attempt number `message.attempt` starts, so that the count survives our death.

        The core calls it for repeated attempts only: a first one that dies shows as attempt 2 by having been
        received. Without the `counts_deliveries` capability it does nothing.
        """
        ...

    async def ack(self, messages: Sequence[Message]) -> None:
        """These are done. With `UP_TO` the last one of each partition stands for all below it.

        A call may come while another is not over: those of one partition begin in the order of their messages.
        """
        ...

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        """Give these back, to come again after `delay` seconds. Only with the `nack` capability."""
        ...

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        """These can never be handled. Only with the `reject` capability."""
        ...

    async def extend(self, messages: Sequence[Message]) -> None:
        """Keep the lease on these. Without leases it does nothing."""
        ...

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        """Acknowledge and send in one transaction. Only with the `atomic_commit` capability."""
        ...

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        """Receive nothing more from these until `resume`. One that was taken away and comes back is not paused."""
        ...

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None: ...

    async def seek(self, position: Position) -> None:
        """The message at this position comes next, then those after it."""
        ...


class Engine(Protocol):
    """One broker. Everything a broker can do that others cannot shows in its capabilities."""

    name: str
    clock: Clock

    @property
    def available(self) -> bool:
        """Whether the server could be reached when it was last heard of. Costs nothing: readiness asks it often."""
        ...

    @property
    def admin(self) -> EngineAdmin | None:
        """Management of topics and groups; None where the engine has none."""
        ...

    def capabilities(self, source: Source) -> Capabilities:
        """What this source can do. Pure: asked at start, before connecting."""
        ...

    def check_topic(self, name: str) -> None:
        """Raise TopicNameError if the engine cannot carry this name. Pure."""
        ...

    def reply_topic(self, mark: str) -> str:
        """Where the requester of this mark takes its answers: a place of its own, or `REPLIES`, which all share.

        Only the shared one is declared; either can be read without a group.
        """
        ...

    async def connect(self) -> None:
        """Reach the server. Raises ConnectError, AuthenticationError if it refuses who asks. Idempotent.

        From then on the engine stays connected by itself: it comes back with backoff and jitter, logs once that the
        server is away and once that it is back, and subscriptions go on where they were.
        """
        ...

    async def close(self) -> None:
        """Give everything back. Idempotent; `connect` may follow."""
        ...

    async def check(self) -> None:
        """Raise if the engine could not take a message now."""
        ...

    async def declare(self, topics: Sequence[Topic], mode: DeclareMode) -> None:
        """Make what is missing (`create`), raise TopicNotFoundError for it (`check`), or do nothing (`off`)."""
        ...

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt] | Awaitable[Sequence[Receipt]]:
        """Have these accepted, in order: `body`, `key_bytes` and `headers` are ready to travel.

        An engine that is done at once returns the receipts; one that must wait returns an awaitable of them.
        With the `atomic_batch` capability all are accepted or none; otherwise PublishError says which.
        """
        ...

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Subscription]:
        """Take a place in a source. Leaving the context gives it up, unsettled messages go to others."""
        ...
