"""What a message looks like in AMQP: its key and headers as properties and a table, written and read."""

from __future__ import annotations

import json
import struct
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ...codecs.envelope import PACKED, from_text, to_text
from ...message import CONTENT_TYPE, CORRELATION, DEADLINE, ID, KEY, NO_HEADERS, REPLY_TO, TYPE, Headers
from .names import QUEUE_PREFIX

if TYPE_CHECKING:
    from pamqp.commands import Basic

GENERATED: Final = "hw-"  # how the ids begin of messages whose publisher chose none
DELAYED_TO: Final = "hw-delayed-to"  # the exchange a delayed message goes to in the end
DELAY_LEVEL: Final = "hw-delay-"  # with a number: a level at which it waits

_ENCODING: Final = "content-encoding"
_STREAM_OFFSET: Final = "x-stream-offset"
_DELIVERY_COUNT: Final = "x-delivery-count"  # how often a quorum queue was given the message back
_DEATHS: Final = ("x-death", "x-first-death-exchange", "x-first-death-queue", "x-first-death-reason")

# Headers that are properties in AMQP, in the order in which they come back, and what says that they are there.
_PROPERTIES: Final = {
    CONTENT_TYPE: 0x8000,
    TYPE: 0x20,
    _ENCODING: 0x4000,
    REPLY_TO: 0x200,
    CORRELATION: 0x400,
    ID: 0x80,
}
_TABLE, _MODE, _PRIORITY, _EXPIRATION, _TIMESTAMP = 0x2000, 0x1000, 0x800, 0x100, 0x40
_ALWAYS: Final = _MODE | _PROPERTIES[ID] | _TIMESTAMP
_BASIC: Final = 60  # the class of messages
_FRAME: Final = struct.Struct(">BHI")  # kind, channel, size
_HEAD: Final = struct.Struct(">HHQH")  # class, weight, size of the body, flags
_END: Final = b"\xce"

Pairs = tuple[tuple[str, bytes], ...]


# --- writing ------------------------------------------------------------------------------------------


class Written(msgspec.Struct, frozen=True, gc=False):
    """Headers as they travel, cut where that which differs from message to message goes between."""

    flags: int
    content: bytes  # its type and encoding
    table: bytes  # its entries
    addresses: bytes  # the correlation id and whom to answer
    chosen_id: bytes | None
    kind: bytes  # the type of the value


@lru_cache(maxsize=4096)
def written(headers: Headers) -> Written:
    """Headers as properties and a table.

    RabbitMQ sorts a table, and it holds a name once. Headers that would not come back as they are travel packed, too.
    """
    pairs = headers.pairs
    properties = {name: value for name, value in pairs if _is_property(name, value)}
    table = {name: value for name, value in pairs if name not in properties and 0 < len(name.encode()) < 256}
    in_order = [(name, properties[name]) for name in _PROPERTIES if name in properties]
    entries = b"".join(_entry(name, table[name]) for name in sorted(table))
    if (*in_order, *sorted(table.items())) != pairs:
        entries += _entry(*_packed(headers))
    if REPLY_TO in properties:
        properties[REPLY_TO] = properties[REPLY_TO][len(QUEUE_PREFIX) :]
    short = {name: _short(value) for name, value in properties.items()}
    return Written(
        sum(_PROPERTIES[name] for name in properties if name != ID),
        short.get(CONTENT_TYPE, b"") + short.get(_ENCODING, b""),
        entries,
        short.get(CORRELATION, b"") + short.get(REPLY_TO, b""),
        properties.get(ID),
        short.get(TYPE, b""),
    )


def _is_property(name: str, value: bytes) -> bool:
    if name not in _PROPERTIES or not 0 < len(value) < 256 or not _is_text(value):
        return False
    if name == REPLY_TO:  # of an answer to a topic only Headwater knows
        return value.startswith(QUEUE_PREFIX.encode())
    return name != ID or not value.startswith(GENERATED.encode())


def _packed(headers: Headers) -> tuple[str, bytes]:
    ((name, text),) = to_text(None, headers, lambda _name, _text: False, repeats=False)
    return name, text.encode()


def head_frame(
    channel: int,
    size: int,
    headers: Headers,
    key: bytes | None,
    message_id: bytes,
    time: float,
    *,
    more: bytes = b"",
    persistent: bool = True,
    priority: int | None = None,
    expiration: float | None = None,
) -> bytes:
    """The frame before a body of `size` bytes; `more` are further entries of the table, `expiration` is in seconds."""
    parts = written(headers)
    table = parts.table + more if key is None else b"".join((parts.table, more, _entry(KEY, key)))
    flags = parts.flags | _ALWAYS
    fields = [parts.content]
    if table:
        flags |= _TABLE
        fields += (len(table).to_bytes(4, "big"), table)
    fields.append(b"\x02" if persistent else b"\x01")
    if priority is not None:
        flags |= _PRIORITY
        fields.append(bytes((priority,)))
    fields.append(parts.addresses)
    if expiration is not None:
        flags |= _EXPIRATION
        fields.append(_short(str(max(0, round(expiration * 1000))).encode()))
    fields += (_short(parts.chosen_id or message_id), int(time).to_bytes(8, "big"), parts.kind)
    body = b"".join(fields)
    return b"".join((_FRAME.pack(2, channel, 14 + len(body)), _HEAD.pack(_BASIC, 0, size, flags), body, _END))


def body_frames(channel: int, body: bytes, largest: int) -> list[bytes]:
    """The frames of a body, each of at most `largest` bytes."""
    room = largest - 8
    if len(body) <= room:
        return [_FRAME.pack(3, channel, len(body)), body, _END] if body else []
    found = list[bytes]()
    for start in range(0, len(body), room):
        part = body[start : start + room]
        found += (_FRAME.pack(3, channel, len(part)), part, _END)
    return found


def table_entries(pairs: dict[str, str]) -> bytes:
    """Entries of a table, for `more`."""
    return b"".join(_entry(name, value.encode()) for name, value in pairs.items())


def _entry(name: str, value: bytes) -> bytes:
    kind = b"S" if _is_text(value) else b"x"
    return b"".join((_short(name.encode()), kind, len(value).to_bytes(4, "big"), value))


def _short(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


# --- reading ------------------------------------------------------------------------------------------


class Read(msgspec.Struct, gc=False):
    """What properties say of a message."""

    key: bytes | None
    headers: Headers
    given_back: int = 0  # how often, as far as its queue counts that
    delayed_to: str | None = None
    offset: int | str | None = None  # in a stream its place, else the message's id


def read(properties: Basic.Properties, now: float) -> Read:
    """The key and headers that `head_frame` wrote, or that somebody else's program did."""
    table: dict[str, Any] = properties.headers or {}
    found = Read(None, NO_HEADERS, offset=properties.message_id)
    if table:
        found.offset = table.pop(_STREAM_OFFSET, found.offset)
        key = table.pop(KEY, None)
        found.key = None if key is None else _bytes(key)
        found.given_back = table.pop(_DELIVERY_COUNT, 0)
        if DELAYED_TO in table:
            found.delayed_to = table.pop(DELAYED_TO)
            for name in [name for name in table if name.startswith(DELAY_LEVEL) or name in _DEATHS]:
                del table[name]
        if PACKED in table:
            _, found.headers = from_text([(PACKED, str(table[PACKED]))])
            return found
    message_id: str = properties.message_id or GENERATED
    if table or properties.reply_to or properties.correlation_id or not message_id.startswith(GENERATED):
        found.headers = Headers(_pairs(properties, table, now))
    else:
        found.headers = _content(properties.content_type, properties.message_type, properties.content_encoding)
    return found


@lru_cache(maxsize=1024)
def _content(content_type: str | None, kind: str | None, encoding: str | None) -> Headers:
    """The headers of most messages, which share them: what they contain."""
    pairs = ((CONTENT_TYPE, content_type), (TYPE, kind), (_ENCODING, encoding))
    return (
        Headers([(name, value) for name, value in pairs if value])
        if any((content_type, kind, encoding))
        else NO_HEADERS
    )


def _pairs(properties: Basic.Properties, table: dict[str, Any], now: float) -> list[tuple[str, bytes]]:
    found = list(_content(properties.content_type, properties.message_type, properties.content_encoding).pairs)
    if properties.reply_to:
        found.append((REPLY_TO, f"{QUEUE_PREFIX}{properties.reply_to}".encode()))
        if properties.expiration and DEADLINE not in table:  # somebody else's request, that lives no longer than this
            table[DEADLINE] = f"{now + float(properties.expiration) / 1000:.3f}"
    if properties.correlation_id:
        found.append((CORRELATION, str(properties.correlation_id).encode()))
    if properties.message_id and not properties.message_id.startswith(GENERATED):
        found.append((ID, properties.message_id.encode()))
    return found + [(name, _bytes(value)) for name, value in table.items()]


def _bytes(value: Any) -> bytes:
    """A value of any type of AMQP as bytes: text as it is, everything else as text."""
    match value:
        case str():
            return value.encode()
        case bytes() | bytearray():
            return bytes(value)
        case None:
            return b""
        case bool():
            return b"true" if value else b"false"
        case datetime():
            return value.isoformat().encode()
        case dict() | list():
            return json.dumps(value, default=lambda one: _bytes(one).decode(errors="backslashreplace")).encode()
        case _:
            return str(value).encode()
