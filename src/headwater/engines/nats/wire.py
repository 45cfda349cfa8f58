"""The protocol's bytes: messages on their way out, and headers both ways."""

from __future__ import annotations

import re
from typing import Final

from ...codecs.envelope import PACKED, from_text, to_text
from ...message import GROUP, ID, KEY, NO_HEADERS, ONLY_GROUP, TOPIC, Headers, Outgoing

MESSAGE_ID: Final = "Nats-Msg-Id"  # a stream drops a second message of one id
_SERVERS: Final = "Nats-"  # headers that speak to the server, or come from it
_BEGIN: Final = b"NATS/1.0\r\n"
_KEY: Final = KEY.encode() + b": "
_NAME: Final = re.compile(r"[!-9;-~]+")  # printable ASCII but for blank and colon
_CACHED: Final = 1024  # blocks of headers: those of many messages are the same
_AGAIN: Final = frozenset((TOPIC, GROUP, ONLY_GROUP))  # on letters and retries: another message of the same id

_lines: dict[Headers, bytes | None] = {}  # as they travel; None if not all of them can
_known: dict[bytes, tuple[bytes | None, Headers]] = {}


def publication(subject: bytes, reply: bytes, block: bytes, body: bytes) -> bytes:
    """A message for the server; `block` are its headers, or nothing."""
    if not block:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(body), body)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(block), len(block) + len(body), block, body)


def block_of(outgoing: Outgoing, extra: bytes = b"") -> bytes:
    """The headers and the key of a message as a block, nothing where there are none; `extra` are lines of it."""
    headers, key = outgoing.headers, outgoing.key_bytes
    assert isinstance(headers, Headers)  # it is ready to travel
    if key is None and not headers:
        return b"".join((_BEGIN, extra, b"\r\n")) if extra else b""
    lines = _lines_of(headers)
    if lines is not None and (key is None or _is_line(key)):
        named = b"" if key is None else b"".join((_KEY, key, b"\r\n"))
    else:
        lines, named = _written(to_text(key, headers, _fits, repeats=True)), _identity(headers)
    return b"".join((_BEGIN, extra, lines, named, b"\r\n"))


def _lines_of(headers: Headers) -> bytes | None:
    try:
        return _lines[headers]
    except KeyError:
        pass
    if len(_lines) >= _CACHED:
        _lines.clear()
    pairs = to_text(None, headers, _fits, repeats=True)
    whole = all(name != PACKED for name, _ in pairs)
    found = _lines[headers] = _written(pairs) + _identity(headers) if whole else None
    return found


def _written(pairs: list[tuple[str, str]]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in pairs]).encode()


def _identity(headers: Headers) -> bytes:
    """What has a stream drop the second of two messages of one id, unless the second is meant to be another."""
    identity = headers.get_bytes(ID)
    if not identity or not _is_line(identity) or not _AGAIN.isdisjoint(headers):
        return b""
    return b"%b: %b\r\n" % (MESSAGE_ID.encode(), identity)


def _fits(name: str, value: str) -> bool:
    return bool(_NAME.fullmatch(name)) and _is_line(value.encode())


def _is_line(value: bytes) -> bool:
    return b"\r" not in value and b"\n" not in value


def read(block: bytes) -> tuple[bytes | None, Headers]:
    """The key and the headers of a block. The server's own are left out, but for the id it knows the message by."""
    found = _known.get(block)
    if found is None:
        if len(_known) >= _CACHED:
            _known.clear()
        found = _known[block] = _read(block)
    return found


def _read(block: bytes) -> tuple[bytes | None, Headers]:
    pairs: list[tuple[str, bytes]] = []
    identity: bytes | None = None
    for line in block[len(_BEGIN) :].split(b"\r\n"):
        raw, colon, value = line.partition(b":")
        name, value = raw.decode("ascii", "backslashreplace"), value.removeprefix(b" ")
        if colon and not name.startswith(_SERVERS):
            pairs.append((name, value))
        elif name == MESSAGE_ID:
            identity = value
    names = dict(pairs)
    if PACKED in names:
        return from_text((name, value.decode(errors="replace")) for name, value in pairs)
    if identity is not None and ID not in names:
        pairs.append((ID, identity))
    kept = [pair for pair in pairs if pair[0] != KEY]
    return names.get(KEY), Headers(kept) if kept else NO_HEADERS


# --- what the server says instead of a message --------------------------------------------------------


def is_status(block: bytes) -> bool:
    """Whether this is no message: `status` says what it is."""
    return block[8:9] == b" "


def status(block: bytes) -> tuple[int, str]:
    """The code, such as 408 for a request that ended, and the words beside it."""
    return int(block[9:12]), block[13:].partition(b"\r\n")[0].decode(errors="replace")


def server_header(block: bytes, name: bytes) -> bytes | None:
    """The value of one of the server's own headers, or None."""
    _, found, rest = block.partition(b"\r\n%b:" % name)
    return rest.partition(b"\r\n")[0].strip() if found else None
