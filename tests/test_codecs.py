"""Bodies: what is written for a value, and what is read for a type."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import App, Broker, DecodeError, EncodeError, Headers, Message, Outgoing, TestApp
from headwater.codecs import JSON, MSGPACK, RAW, TEXT, decoder_for, encode


class Colour(Enum):
    RED = "red"


class Order(msgspec.Struct):
    id: int


class Person(pydantic.BaseModel):
    name: str
    born: date


@dataclass
class Point:
    x: int


def sent(value: Any, **options: Any) -> Outgoing:
    outgoing = Outgoing(value, "t", **options)
    encode(outgoing)
    return outgoing


def received(outgoing: Outgoing) -> Message:
    return Message("t", outgoing.body, headers=Headers(outgoing.headers), partition=0, offset=3)


@pytest.mark.parametrize(
    ("value", "body", "content_type", "type_name"),
    [
        (b"\x00", b"\x00", None, None),
        (bytearray(b"x"), b"x", None, None),
        (memoryview(b"x"), b"x", None, None),
        ("é", "é".encode(), "text/plain", None),
        (None, b"null", "application/json", None),
        (1, b"1", "application/json", None),
        ([1, 2], b"[1,2]", "application/json", None),
        (Colour.RED, b'"red"', "application/json", None),
        (Order(1), b'{"id":1}', "application/json", "Order"),
        (Point(1), b'{"x":1}', "application/json", "Point"),
        (Person(name="A", born=date(2000, 1, 1)), b'{"name":"A","born":"2000-01-01"}', "application/json", "Person"),
        ([Person(name="A", born=date(2000, 1, 1))], b'[{"name":"A","born":"2000-01-01"}]', "application/json", None),
    ],
)
def test_values_are_written_by_their_type(value: Any, body: bytes, content_type: str, type_name: str) -> None:
    outgoing = sent(value)
    headers = Headers(outgoing.headers)
    assert (outgoing.body, headers.get("content-type"), headers.get("hw-type")) == (body, content_type, type_name)


def test_headers_of_the_publisher_win_over_those_of_the_codec() -> None:
    outgoing = sent({"a": 1}, headers={"content-type": "application/vnd.shop+json", "x": "y"})
    assert dict(Headers(outgoing.headers)) == {"content-type": "application/vnd.shop+json", "x": "y"}
    assert decoder_for(dict)(received(outgoing)) == {"a": 1}


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Order, Order(5)),
        (Point, Point(5)),
        (Person, Person(name="B", born=date(1999, 12, 31))),
        (list[Person], [Person(name="B", born=date(1999, 12, 31))]),
        (datetime, datetime(2026, 1, 1, tzinfo=UTC)),
        (Decimal, Decimal("1.50")),
        (UUID, UUID(int=1)),
        (Colour, Colour.RED),
        (bytes | None, None),
        (tuple[int, str], (1, "a")),
    ],
)
def test_a_value_comes_back_as_it_went(codec: Any, kind: Any, value: Any) -> None:
    message = received(sent(value, codec=codec))
    assert decoder_for(kind)(message) == value
    assert decoder_for(kind, codec)(message) == value


@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ).filter(lambda value: not isinstance(value, str))
)
def test_any_json_value_comes_back_as_it_went_through_json_and_msgpack(value: Any) -> None:
    for codec in (JSON, MSGPACK):
        assert decoder_for(Any)(received(sent(value, codec=codec))) == value


@given(body=st.binary(max_size=64))
def test_an_untyped_body_is_json_or_text_or_bytes_and_never_an_error(body: bytes) -> None:
    value = Message("t", body).value
    if isinstance(value, bytes):
        assert value == body
        with pytest.raises(ValueError):
            body.decode()
    elif isinstance(value, str):
        assert body in (value.encode(), msgspec.json.encode(value)) or msgspec.json.decode(body) == value


@given(body=st.binary(max_size=64), content_type=st.sampled_from([None, "application/json", "text/plain", "x/y"]))
def test_a_body_that_is_not_what_its_reader_expects_is_a_decode_error_and_no_other(
    body: bytes, content_type: str | None
) -> None:
    message = Message("t", body, headers=Headers({"content-type": content_type} if content_type else {}))
    for kind in (Order, Person, int, str, list[Point]):
        read = decoder_for(kind)
        with contextlib.suppress(DecodeError):
            read(message)  # no other error comes out of it


@pytest.mark.parametrize(
    ("content_type", "kind", "body", "expected"),
    [
        (None, Order, b'{"id":1}', Order(1)),
        ("application/json; charset=utf-8", Order, b'{"id":1}', Order(1)),
        ("Application/JSON", Order, b'{"id":1}', Order(1)),
        ("application/problem+json", Order, b'{"id":1}', Order(1)),
        ("application/msgpack", Order, b"\x81\xa2id\x01", Order(1)),
        ("application/x-msgpack", Order, b"\x81\xa2id\x01", Order(1)),
        ("text/plain", str, b"hi", "hi"),
        ("text/csv", str, b"a,b", "a,b"),
        (None, str, b"hi", "hi"),
        (None, str, b'"hi"', "hi"),
        ("application/json", str, b'"hi"', "hi"),
        ("text/plain", int, b"5", 5),
        ("application/octet-stream", bytes, b"x", b"x"),
        ("application/odd", bytes, b"x", b"x"),
        ("application/octet-stream", Order, b'{"id":1}', Order(1)),
    ],
)
def test_the_content_type_says_how_a_body_is_read(
    content_type: str | None, kind: Any, body: bytes, expected: Any
) -> None:
    headers = Headers({"content-type": content_type} if content_type else {})
    assert decoder_for(kind)(Message("t", body, headers=headers)) == expected


def test_an_untyped_value_goes_by_its_content_type_first() -> None:
    def value(body: bytes, content_type: str) -> Any:
        return Message("t", body, headers=Headers({"content-type": content_type})).value

    assert value(b"5", "text/plain") == "5"
    assert value(b"5", "application/json") == 5
    assert value(b"5", "application/octet-stream") == b"5"
    assert value(b"\x05", "application/msgpack") == 5
    assert value(b"{", "application/json") == b"{"
    assert value(b"5", "application/odd") == b"5"


def test_raw_and_text_write_only_what_they_are() -> None:
    assert RAW.encode(b"x") == b"x"
    for codec in (RAW, TEXT):
        with pytest.raises(EncodeError):
            sent(5, codec=codec)


async def test_a_codec_may_be_set_for_a_broker_a_publisher_a_publish_or_a_subscriber() -> None:
    class Upper:
        content_type = "text/upper"

        def encode(self, value: Any) -> bytes:
            return str(value).upper().encode()

        def decoder(self, kind: Any) -> Any:
            return lambda body: body.decode().lower()

    upper = Upper()
    app = App("shop", Broker("memory://", codec=MSGPACK))

    @app.subscriber("in", codec=upper)
    @app.publisher("out", codec=upper)
    @app.publisher("plain")
    async def handle(body: str) -> str:
        return body

    async with TestApp(app) as t:
        await t.publish("HeLLo", "in", codec=upper)
        assert t.calls(handle) == ["hello"]
        assert t.published("out")[0].body == b"HELLO"
        assert t.published("plain")[0].headers["content-type"] == "application/msgpack"
