"""Messages as entries of a stream: which field is the body, the key, a header.

An entry of ours has the fields `body`, `key` if there is one, and `h:NAME` for each header, in order and as often as it
comes. What others wrote is read like this: fields beside a `body` are headers, a field that stands alone is the body
whatever its name, and of any other entry the body is a JSON object of its fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from ...message import CONTENT_TYPE, NO_HEADERS, Headers, Message, Outgoing

BODY: Final = b"body"
KEY: Final = b"key"
HEADER: Final = b"h:"

Fields = Sequence[bytes]  # names and values by turns

_JSON: Final = Headers({CONTENT_TYPE: "application/json"})


# --- out ----------------------------------------------------------------------------------------------


def fields_of(outgoing: Outgoing) -> tuple[bytes, ...]:
    """The fields of a message, ready to travel."""
    headers = outgoing.headers
    assert isinstance(headers, Headers)
    named = _named(headers) if headers else ()
    key = outgoing.key_bytes
    if key is None:
        return (BODY, outgoing.body, *named)
    return (BODY, outgoing.body, KEY, key, *named)


@lru_cache(maxsize=1024)  # the same headers come with many messages
def _named(headers: Headers) -> tuple[bytes, ...]:
    return tuple(part for name, value in headers.pairs for part in (HEADER + name.encode(), value))


# --- in -----------------------------------------------------------------------------------------------


def read(topic: str, group: str | None, entries: Sequence[Any]) -> list[Message]:
    """The messages in entries, as the server gives them: each an id and its fields."""
    messages: list[Message] = []
    last, time = "", 0.0
    for raw, fields in entries:
        offset = raw.decode()
        milliseconds = offset.partition("-")[0]
        if milliseconds != last:  # one after the other they often have the same
            last, time = milliseconds, int(milliseconds) / 1000
        body, key, headers = (fields[1], None, NO_HEADERS) if len(fields) == 2 else _taken_apart(fields)
        messages.append(Message(topic, body, key, headers, 0, offset, time, group))
    return messages


def time_of(offset: str) -> float:
    """When an entry was added, in seconds since the epoch: its id begins with that."""
    return int(offset.partition("-")[0]) / 1000


def _taken_apart(fields: Fields) -> tuple[bytes, bytes | None, Headers]:
    if fields[0] == BODY:  # as we write them
        if fields[2] == KEY:
            return fields[1], fields[3], _read_headers(tuple(fields[4:]))
        if fields[2].startswith(HEADER):
            return fields[1], None, _read_headers(tuple(fields[2:]))
    return _foreign(fields)


@lru_cache(maxsize=1024)
def _read_headers(fields: tuple[bytes, ...]) -> Headers:
    if not fields:
        return NO_HEADERS
    names = (name.removeprefix(HEADER).decode(errors="backslashreplace") for name in fields[::2])
    return Headers(list(zip(names, fields[1::2], strict=True)))


def _foreign(fields: Fields) -> tuple[bytes, bytes | None, Headers]:
    names = fields[::2]
    if BODY in names:
        body = fields[2 * names.index(BODY) + 1]
        key = fields[2 * names.index(KEY) + 1] if KEY in names else None
        rest = [part for pair in zip(names, fields[1::2], strict=True) if pair[0] not in (BODY, KEY) for part in pair]
        return body, key, _read_headers(tuple(rest))
    text = [value.decode(errors="backslashreplace") for value in fields]
    return msgspec.json.encode(dict(zip(text[::2], text[1::2], strict=True))), None, _JSON
