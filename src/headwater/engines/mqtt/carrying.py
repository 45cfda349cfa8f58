"""Keys, headers and bodies as MQTT carries them: in the properties of 5.0, or in an envelope on 3.1.1."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers, writeUTF

from ...codecs.envelope import from_text, seal, to_text, unseal
from ...errors import DecodeError
from ...message import CONTENT_TYPE, CORRELATION, KEY, NO_HEADERS, REPLY_TO, Headers

SERIAL: Final = "hw-serial"  # tells one message from another, since MQTT numbers nothing

Content = tuple[str | None, bytes | None, Headers]  # serial, key, headers

# What no text of MQTT may hold: servers close the connection over it.
_FORBIDDEN: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufeff\ud800-\udfff"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
LONGEST: Final = 65_535  # bytes of a text
_NATIVE: Final = {CONTENT_TYPE: "ContentType", REPLY_TO: "ResponseTopic", CORRELATION: "CorrelationData"}
_USER: Final = bytes((38,))  # what a user property begins with

_encode: Any = VariableByteIntegers.encode  # paho's have no types
_decode: Any = VariableByteIntegers.decode
_write_text: Any = writeUTF


def fits(name: str, value: str) -> bool:
    """Whether a user property can carry this."""
    return not (_FORBIDDEN.search(name) or _FORBIDDEN.search(value)) and (
        len(name) + len(value) < LONGEST // 4 or max(len(name.encode()), len(value.encode())) <= LONGEST
    )


# --- 5.0 ----------------------------------------------------------------------------------------------


def properties(kind: int, **values: Any) -> Properties:
    """Those of a packet of this kind, by the names that paho gives them."""
    made = Properties(kind)  # type: ignore[no-untyped-call]  # paho's has no types
    for name, value in values.items():
        setattr(made, name, value)
    return made


class Packed(Properties):
    """Properties of a message that were packed before: paho needs longer for them than for all the rest."""

    packed: bytes

    def __init__(self, packed: bytes) -> None:
        object.__setattr__(self, "packed", _encode(len(packed)) + packed)  # what its parent sets are properties

    def pack(self) -> bytes:
        return self.packed


def write_properties(serial: str, key: bytes | None, headers: Headers, expiry: float | None) -> Packed:
    """`content-type` and what binds replies in MQTT's own properties, the rest as user's. Raises ValueError."""
    text = None if key is None or KEY in headers else _text(KEY, key)
    if text is None:
        return Packed(_user(SERIAL, serial) + _pack(key, headers, expiry))
    return Packed(_user(SERIAL, serial) + _user(KEY, text) + _pack(None, headers, expiry))


def _user(name: str, text: str) -> bytes:
    return b"".join((_USER, _write_text(name), _write_text(text)))


@lru_cache(maxsize=1024)
def _pack(key: bytes | None, headers: Headers, expiry: float | None) -> bytes:
    native: dict[str, Any] = {}
    own: list[tuple[str, bytes]] = []
    names = [name for name, _ in headers.pairs]
    for place, (name, value) in enumerate(headers.pairs):
        fitting = _native(name, value) if name in _NATIVE and names.count(name) == 1 else None
        if fitting is not None:
            native[_NATIVE[name]] = fitting
        if fitting is None or (name == CONTENT_TYPE and place):  # reading puts it first if it comes only natively
            own.append((name, value))
    if expiry is not None:
        native["MessageExpiryInterval"] = max(1, round(expiry))
    texts = to_text(key, Headers(own), fits, repeats=True)
    made: Any = properties(PacketTypes.PUBLISH, **native, UserProperty=texts)
    packed: bytes = made.pack()
    return packed[_decode(packed)[1] :]  # without its length


def _text(name: str, value: bytes) -> str | None:
    """The value as text, where a property can carry it."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if fits(name, text) else None


def _native(name: str, value: bytes) -> str | bytes | None:
    if name == CORRELATION:
        return value if len(value) <= LONGEST else None
    text = _text(name, value)
    return None if name == REPLY_TO and (not text or "+" in text or "#" in text) else text


def read_properties(about: Properties) -> Content:
    """What `write_properties` wrote, or another program did."""
    found = vars(about)
    texts = found.get("UserProperty", [])
    at, serial, key = 0, None, None
    if len(texts) > at and texts[at][0] == SERIAL:
        serial, at = texts[at][1], at + 1
    if len(texts) > at and texts[at][0] == KEY:
        key, at = texts[at][1].encode(), at + 1
    inner, headers = _unpack(tuple(texts[at:]), *map(found.get, _NATIVE.values()))
    return serial, key if inner is None else inner, headers


@lru_cache(maxsize=1024)
def _unpack(texts: tuple[tuple[str, str], ...], *native: Any) -> tuple[bytes | None, Headers]:
    key, headers = from_text(texts)
    missing = [
        (name, value) for name, value in zip(_NATIVE, native, strict=True) if value is not None and name not in headers
    ]
    return key, Headers((*missing, *headers.pairs)) if missing else headers


# --- 3.1.1 --------------------------------------------------------------------------------------------


def write_envelope(serial: str, key: bytes | None, headers: Headers, body: bytes) -> bytes:
    """The body, in an envelope if it has a key or headers to carry; then the serial travels in it, too."""
    sealed = seal(key, headers, body)
    if sealed is body:
        return body
    return seal(key, Headers((*headers.pairs, (SERIAL, serial.encode()))), body)


def read_envelope(sealed: bytes) -> tuple[Content, bytes]:
    try:
        key, headers, body = unseal(sealed)
    except DecodeError:
        return (None, None, NO_HEADERS), sealed  # its handler says that it cannot be decoded
    serial = headers.get(SERIAL)
    if serial is not None:
        headers = Headers(pair for pair in headers.pairs if pair[0] != SERIAL)
    return (serial, key, headers), body
