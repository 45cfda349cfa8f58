"""Keys and headers on engines that carry less: in an envelope around the body, or as plain text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from ..errors import DecodeError
from ..message import CONTENT_TYPE, KEY, NO_HEADERS, Headers
from .json import JSON

PACKED: Final = "hw-packed"  # a header that carries all of them, where some are more than an engine can carry

_MAGIC: Final = b"\xc1hw1"  # no JSON, no UTF-8 text and no msgpack begins with 0xc1
_HEAD: Final = len(_MAGIC) + 4

Pairs = list[tuple[str, bytes]]


# --- no headers at all --------------------------------------------------------------------------------


def seal(key: bytes | None, headers: Headers, body: bytes) -> bytes:
    """A body that carries its key and headers: a magic number, the length of the msgpack that follows, the body.

    One that needs neither, plain JSON, travels as it is, for readers that know nothing of envelopes.
    """
    bare = key is None and not body.startswith(_MAGIC)
    if bare and (not headers or headers.pairs == _JSON_PAIRS):
        return body
    head = _WRITER.encode((key, headers.pairs))
    return b"".join((_MAGIC, len(head).to_bytes(4, "big"), head, body))


def unseal(sealed: bytes) -> tuple[bytes | None, Headers, bytes]:
    """Key, headers and body; a body that came without an envelope has neither. Raises DecodeError for a torn one."""
    if not sealed.startswith(_MAGIC):
        return None, NO_HEADERS, sealed
    start = _HEAD + int.from_bytes(sealed[len(_MAGIC) : _HEAD], "big")
    try:
        key, pairs = _READER.decode(sealed[_HEAD:start])
    except ValueError as error:
        raise DecodeError(f"an envelope of {len(sealed)} bytes is damaged: {error}") from error
    return key, Headers(pairs), sealed[start:]


# --- headers that are text ----------------------------------------------------------------------------


def to_text(
    key: bytes | None, headers: Headers, fits: Callable[[str, str], bool], *, repeats: bool
) -> list[tuple[str, str]]:
    """Key and headers as text, for an engine whose headers are that: what `fits` as it is, the rest packed.

    With `repeats` the engine carries a name more than once, and keeps the order.
    """
    pairs = headers.pairs if key is None else (*headers.pairs, (KEY, key))
    found: list[tuple[str, str]] = []
    names = {name for name, _ in headers.pairs}
    whole = names.isdisjoint(_OURS) and (repeats or len(names) == len(headers.pairs))
    for name, value in pairs:
        text = _text(value)
        if text is not None and name != PACKED and fits(name, text):
            found.append((name, text))
        else:
            whole = False
    if not whole:
        found.append((PACKED, base64.b64encode(_WRITER.encode((key, headers.pairs))).decode()))
    return found


def from_text(pairs: Iterable[tuple[str, str]]) -> tuple[bytes | None, Headers]:
    """The key and the headers that `to_text` wrote, or that somebody else did."""
    key, kept = None, Pairs()
    for name, text in pairs:
        if name == PACKED:
            try:
                packed_key, packed = _READER.decode(base64.b64decode(text))
                return packed_key, Headers(packed)
            except ValueError:
                pass  # some other program's header of that name
        if name == KEY:
            key = text.encode()
        else:
            kept.append((name, text.encode()))
    return key, Headers(kept) if kept else NO_HEADERS


def _text(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


_OURS: Final = frozenset((KEY, PACKED))  # what a key or a pack would be taken for
_JSON_PAIRS: Final = ((CONTENT_TYPE, JSON.content_type.encode()),)
_WRITER: Final = msgspec.msgpack.Encoder()
_READER: Final = msgspec.msgpack.Decoder(tuple[bytes | None, Pairs])
