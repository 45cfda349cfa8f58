"""Bodies: how a value becomes bytes and how bytes become the type a handler asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from ..errors import DecodeError, EncodeError
from ..message import CONTENT_TYPE, NO_HEADERS, TYPE, Headers, Message, Outgoing
from .json import JSON
from .msgpack import MSGPACK
from .raw import RAW, TEXT

__all__ = ["JSON", "MSGPACK", "RAW", "TEXT", "Codec", "Decode", "decode_any", "decoder_for", "encode"]

Decode = Callable[[Message], Any]


class Codec(Protocol):
    """A way to write values. Give one to `codec=` of a subscriber, a publisher or a broker."""

    @property
    def content_type(self) -> str:
        """What the `content-type` header says of its bodies."""
        ...

    def encode(self, value: Any) -> bytes:
        """Raises TypeError or ValueError for a value it cannot write."""
        ...

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        """A function from a body to `kind`. It raises ValueError for a body that is not one."""
        ...


_BY_CONTENT_TYPE: Final[dict[str, Codec]] = {
    JSON.content_type: JSON,
    MSGPACK.content_type: MSGPACK,
    "application/x-msgpack": MSGPACK,
    RAW.content_type: RAW,
    TEXT.content_type: TEXT,
}

# What a value of each class needs when published, by (class, codec): classes are few, so this stays small.
_ENCODERS: dict[tuple[type, Codec | None], tuple[Callable[[Any], bytes], Headers]] = {}


def encode(outgoing: Outgoing, default: Codec | None = None) -> None:
    """Fill `body` and complete the headers from `value`. Raises EncodeError."""
    value, codec = outgoing.value, outgoing.codec or default
    found = _ENCODERS.get((value.__class__, codec))
    if found is None:
        found = _ENCODERS[value.__class__, codec] = _encoder(value.__class__, codec)
    write, headers = found
    try:
        outgoing.body = write(value)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise EncodeError(f"cannot publish a {type(value).__qualname__} to {outgoing.topic!r}: {error}") from error
    if not outgoing.headers:
        outgoing.headers = headers
    elif headers:
        outgoing.headers = headers.merged(outgoing.headers)
    elif not isinstance(outgoing.headers, Headers):
        outgoing.headers = Headers(outgoing.headers)


def _encoder(kind: type, codec: Codec | None) -> tuple[Callable[[Any], bytes], Headers]:
    if codec is None:
        if issubclass(kind, (bytes, bytearray, memoryview)):
            return RAW.encode, NO_HEADERS
        codec = TEXT if issubclass(kind, str) else JSON
    headers = {CONTENT_TYPE: codec.content_type}
    if _is_model(kind):
        headers[TYPE] = kind.__name__
    return codec.encode, Headers(headers)


def _is_model(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind) or hasattr(kind, "__pydantic_validator__")


def decoder_for(kind: Any, codec: Codec | None = None) -> Decode:
    """A function from a message to `kind`, by this type and the message's content type (absent: JSON).

    It raises DecodeError. `bytes` is always the body as it travelled.
    """
    if kind in (Any, object):
        return decode_any if codec is None else _checked(codec.decoder(Any))
    if kind is bytes:
        return _body
    if codec is not None:
        return _checked(codec.decoder(kind))
    return _by_content_type(kind)


def _body(message: Message) -> bytes:
    return message.body


def _checked(decode: Callable[[bytes], Any]) -> Decode:
    def decode_with_codec(message: Message) -> Any:
        try:
            return decode(message.body)
        except ValueError as error:
            raise _undecodable(message, error) from error

    return decode_with_codec


def _by_content_type(kind: Any) -> Decode:
    json = _text_or_json if kind is str else JSON.decoder(kind)
    text = TEXT.decoder(kind) if kind is str else json
    decoders: dict[bytes | None, Callable[[bytes], Any]] = {
        None: json,
        JSON.content_type.encode(): JSON.decoder(kind),
        TEXT.content_type.encode(): text,
        RAW.content_type.encode(): json,
    }

    def decode(message: Message) -> Any:
        found = decoders.get(message.headers.content_type)
        if found is None:
            found = codec_named(message).decoder(kind)
        try:
            return found(message.body)
        except ValueError as error:
            raise _undecodable(message, error) from error

    return decode


def _text_or_json(body: bytes) -> str:
    """A str from a producer that says no content type: a JSON string if it is one, else the text itself."""
    if body[:1] == b'"':
        try:
            return msgspec.json.decode(body, type=str)
        except ValueError:
            pass
    return body.decode()


def codec_named(message: Message) -> Codec:
    """The codec of the message's content type. Raises DecodeError for one nobody here reads."""
    content_type = message.headers.get(CONTENT_TYPE, JSON.content_type)
    name = content_type.partition(";")[0].strip().lower()
    if name.endswith("+json"):
        return JSON
    if name.startswith("text/"):
        return TEXT
    codec = _BY_CONTENT_TYPE.get(name)
    if codec is None:
        raise DecodeError(
            f"{message.id} has the content type {content_type!r}, which nothing here reads: "
            f"give its subscriber a codec=, or take the body as bytes"
        )
    return codec


def decode_any(message: Message) -> Any:
    """A body nobody gave a type: by its content type; without one JSON if it parses, else text, else bytes."""
    if message.headers and CONTENT_TYPE in message.headers:
        try:
            return codec_named(message).decoder(Any)(message.body)
        except (ValueError, DecodeError):
            return message.body
    try:
        return JSON.decoder(Any)(message.body)
    except ValueError:
        pass
    try:
        return message.body.decode()
    except ValueError:
        return message.body


def _undecodable(message: Message, error: Exception) -> DecodeError:
    return DecodeError(f"{message.id} is not what its handler expects: {error}")
