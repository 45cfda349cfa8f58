"""What travels: a message as received, as published, its headers and its receipt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

if TYPE_CHECKING:
    from .codecs import Codec

# Every header name Headwater gives a meaning to.
CONTENT_TYPE: Final = "content-type"
TYPE: Final = "hw-type"  # class name of the published value
ID: Final = "hw-id"  # message id, where the publisher chose one
KEY: Final = "hw-key"  # the key, on engines that have none of their own
CORRELATION: Final = "hw-correlation"  # binds a reply to its request
REPLY_TO: Final = "hw-reply-to"  # topic that takes the reply
DEADLINE: Final = "hw-deadline"  # seconds since the epoch after which nobody waits for the reply
ERROR: Final = "hw-error"  # on a reply: the exception's name; the body is its text
ATTEMPTS: Final = "hw-attempts"  # handler calls so far
REASON: Final = "hw-reason"  # on a dead letter: why
EXCEPTION: Final = "hw-exception"  # on a dead letter: the exception's name and text
TOPIC: Final = "hw-topic"  # on a dead letter or a retry: where it came from
PARTITION: Final = "hw-partition"
OFFSET: Final = "hw-offset"
GROUP: Final = "hw-group"  # on a dead letter: the group that gave it up
ONLY_GROUP: Final = "hw-only-group"  # on a replayed letter: groups other than this one skip it
SETTLED: Final = "hw-settled"  # on a mark in a dead-letter topic: the letters that left the list

_CONTROL: Final = frozenset((REPLY_TO, DEADLINE, ONLY_GROUP))

HeaderPairs = Iterable[tuple[str, str | bytes]]
HeadersLike = Mapping[str, str | bytes] | HeaderPairs


class Headers(Mapping[str, str]):
    """Headers of a message: a read-only mapping of str to str that keeps repeats, order and raw bytes.

    Looking up a repeated name gives its last value. Values that are not UTF-8 come back from
    `get_bytes` untouched; as text their undecodable bytes are escaped.
    """

    __slots__ = ("_items", "_map", "content_type", "control")

    control: bool
    """Whether some header asks the core for something before the handler runs."""
    content_type: bytes | None
    """The value of `content-type`, looked up once: the same headers come with many messages."""

    def __init__(self, items: HeadersLike = ()) -> None:
        pairs = items.items() if isinstance(items, Mapping) else items
        self._items: tuple[tuple[str, bytes], ...] = tuple(
            (name, value.encode() if isinstance(value, str) else bytes(value)) for name, value in pairs
        )
        self._map: dict[str, bytes] = dict(self._items)
        self.content_type = self._map.get(CONTENT_TYPE)
        self.control = not _CONTROL.isdisjoint(self._map)

    def __getitem__(self, name: str) -> str:
        return self._map[name].decode(errors="backslashreplace")

    def __iter__(self) -> Iterator[str]:
        return iter(self._map)

    def __len__(self) -> int:
        return len(self._map)

    def __contains__(self, name: object) -> bool:
        return name in self._map

    def __bool__(self) -> bool:
        return bool(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Headers):
            return self._items == other._items
        return Mapping.__eq__(self, other)

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Headers({dict(self)!r})"

    def get_bytes(self, name: str) -> bytes | None:
        """The last value of `name` as it travelled, or None."""
        return self._map.get(name)

    def get_all(self, name: str) -> list[str]:
        """All values of `name`, in order."""
        return [value.decode(errors="backslashreplace") for key, value in self._items if key == name]

    @property
    def pairs(self) -> tuple[tuple[str, bytes], ...]:
        """All headers in order, repeats included, values as they travelled."""
        return self._items

    def merged(self, other: HeadersLike) -> Headers:
        """These headers, with those of `other` in place of their namesakes."""
        added = other if isinstance(other, Headers) else Headers(other)
        if not self._items:
            return added
        kept = (pair for pair in self._items if pair[0] not in added._map)
        return Headers((*kept, *added._items))


NO_HEADERS: Final = Headers()


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Proof that an engine accepted a message.

    `offset` is the engine's own: an int on logs, a str on Redis, None where there is none.
    `time` is in seconds since the epoch.
    """

    topic: str
    partition: int | None = None
    offset: int | str | None = None
    time: float = 0.0

    @property
    def timestamp(self) -> datetime:
        """When the engine accepted the message, as an aware datetime."""
        return datetime.fromtimestamp(self.time, UTC)


class Position(msgspec.Struct, frozen=True):
    """A place in a topic: the message at `offset` comes next."""

    topic: str
    partition: int
    offset: int | str


class Outgoing(msgspec.Struct, eq=False):
    """A message to publish.

    `delay` is in seconds; `options` are typed per engine, and those of other engines are ignored. The publisher
    fills `body` and completes `headers` from `value`; a publish middleware may change any field before that.
    """

    value: Any
    topic: str
    key: str | bytes | None = None
    headers: HeadersLike = NO_HEADERS
    partition: int | None = None
    delay: float | None = None
    codec: Codec | None = None
    body: bytes = b""
    options: tuple[Any, ...] = ()

    @property
    def key_bytes(self) -> bytes | None:
        """The key as it travels."""
        key = self.key
        return key.encode() if isinstance(key, str) else key


class Message(msgspec.Struct, eq=False):
    """A message as received.

    `key` and headers are text, with their raw bytes in `key_bytes` and `headers.get_bytes`.
    `attempt` counts the handler's calls from 1. `offset` is the engine's own, as in `Receipt`.
    """

    topic: str
    body: bytes
    key_bytes: bytes | None = None
    headers: Headers = NO_HEADERS
    partition: int | None = None
    offset: int | str | None = None
    time: float = 0.0  # seconds since the epoch; `timestamp` is the readable form
    group: str | None = None
    attempt: int = 1
    token: Any = None  # what the engine needs to settle this delivery
    _decode: Callable[[Message], Any] | None = None
    _value: Any = msgspec.UNSET
    _settlement: Settlement | None = None
    _delivery: Message | None = None  # the delivery to settle, when it came by way of a retry topic
    _called: bool = False  # its earlier attempts ended in a verdict, not in the death of a process
    _deferred: int = 0  # how many of them ended in the wish to be called again later

    def __repr__(self) -> str:
        key = "" if self.key_bytes is None else f" key={self.key!r}"
        return f"<Message {self.id}{key} attempt={self.attempt} {len(self.body)} bytes>"

    @property
    def value(self) -> Any:
        """The decoded body: by the handler's type, or JSON if it parses, else text, else bytes.

        Raises DecodeError if the body is not what the handler's type says.
        """
        if self._value is msgspec.UNSET:
            if self._decode is None:
                from .codecs import decode_any

                self._decode = decode_any
            self._value = self._decode(self)
        return self._value

    @property
    def key(self) -> str | None:
        """The key as text, or None; bytes that are not UTF-8 are escaped."""
        raw = self.key_bytes
        return None if raw is None else raw.decode(errors="backslashreplace")

    @property
    def timestamp(self) -> datetime:
        """When the engine accepted the message, as an aware datetime."""
        return datetime.fromtimestamp(self.time, UTC)

    @property
    def id(self) -> str:
        """The same for every delivery of this message: what its publisher chose, or topic/partition/offset."""
        chosen = self.headers.get(ID)
        return chosen if chosen is not None else f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def correlation_id(self) -> str | None:
        """What binds a reply to its request."""
        return self.headers.get(CORRELATION)

    @property
    def reply_to(self) -> str | None:
        """The topic that waits for a reply, or None."""
        return self.headers.get(REPLY_TO)

    async def ack(self) -> None:
        """Acknowledge: this message is done. Only under `ack="manual"`."""
        await self._settle_with().ack(self)

    async def nack(self, delay: float | None = None) -> None:
        """Give it back, to be handled again after `delay` seconds, by default after the wait of its retry policy.

        Only under `ack="manual"`.
        """
        await self._settle_with().nack(self, delay)

    async def reject(self, reason: str = "") -> None:
        """Send it to the dead letters. Only under `ack="manual"`."""
        await self._settle_with().reject(self, reason)

    async def extend(self) -> None:
        """Say that work goes on, where the engine leases messages. Only under `ack="manual"`."""
        await self._settle_with().extend(self)

    def _settle_with(self) -> Settlement:
        if self._settlement is None:
            raise RuntimeError('this message is settled by Headwater: declare ack="manual" to settle it yourself')
        return self._settlement


class Settlement(Protocol):
    """What `Message.ack` and its siblings act on; the worker gives one to messages settled by hand."""

    async def ack(self, message: Message) -> None: ...
    async def nack(self, message: Message, delay: float | None) -> None: ...
    async def reject(self, message: Message, reason: str) -> None: ...
    async def extend(self, message: Message) -> None: ...


Messages = Sequence[Message]
