"""A user's function, compiled: what its parameters get, and what it may be."""

from __future__ import annotations

import functools
import logging
import threading
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import msgspec
import pydantic
import pytest

from headwater import App, Broker, ConfigurationError, Context, Depends, Header, Key, Message, Path, TestApp


class Order(msgspec.Struct):
    id: int
    amount: float = 0.0


@dataclass
class Point:
    x: int
    y: int


class Person(pydantic.BaseModel):
    name: str
    age: int


class Song(TypedDict):
    title: str


async def given(kind: Any, value: Any) -> Any:
    """What a handler annotated with `kind` is called with when `value` is published."""
    app, got = App("shop"), []

    async def handler(body: Any) -> None:
        got.append(body)

    handler.__annotations__["body"] = kind
    app.subscriber("orders")(handler)
    async with TestApp(app) as t:
        await t.publish(value, "orders")
    return got[0] if got else None


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Order, {"id": 1, "amount": 2.5}, Order(1, 2.5)),
        (Order, Order(7), Order(7)),
        (Point, Point(1, 2), Point(1, 2)),
        (Person, Person(name="Ada", age=36), Person(name="Ada", age=36)),
        (list[Person], [Person(name="Ada", age=36)], [Person(name="Ada", age=36)]),
        (dict[str, Person], {"a": {"name": "Ada", "age": 1}}, {"a": Person(name="Ada", age=1)}),
        (Song, {"title": "x"}, {"title": "x"}),
        (dict, {"a": [1]}, {"a": [1]}),
        (list[int], [1, 2], [1, 2]),
        (int, 5, 5),
        (float, 5, 5.0),
        (bool, True, True),
        (int | None, None, None),
        (str, "text", "text"),
        (str, b"raw", "raw"),
        (bytes, b"\x00\xff", b"\x00\xff"),
        (bytes, "text", b"text"),
        (Any, {"a": 1}, {"a": 1}),
        (Any, "text", "text"),
        (Any, b"\xff\x00", b"\xff\x00"),
        (Annotated[int, msgspec.Meta(ge=0)], 3, 3),
    ],
)
async def test_the_body_arrives_as_the_type_the_handler_asks_for(kind: Any, value: Any, expected: Any) -> None:
    assert await given(kind, value) == expected


async def test_an_unannotated_parameter_takes_the_body_as_it_comes() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(body):  # type: ignore[no-untyped-def]
        assert body == {"a": 1}

    async with TestApp(app) as t:
        await t.publish({"a": 1}, "orders")
        assert t.calls(handle) == [{"a": 1}]


async def test_a_typed_body_beside_the_message_is_still_typed() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders")
    async def handle(order: Order, message: Message) -> None:
        got.append((order, message.value, message.topic))

    async with TestApp(app) as t:
        await t.publish({"id": 1}, "orders")
    assert got == [(Order(1), Order(1), "orders")]


async def test_several_body_parameters_take_the_fields_of_the_body() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders")
    async def handle(id: int, amount: float, note: str = "none") -> None:
        got.append((id, amount, note))

    async with TestApp(app) as t:
        await t.publish({"id": 1, "amount": 2, "more": "ignored"}, "orders")
        await t.publish({"id": 2, "amount": 3, "note": "hi"}, "orders")
    assert got == [(1, 2.0, "none"), (2, 3.0, "hi")]


async def test_several_body_parameters_keep_their_fields_beside_the_message_and_a_middleware() -> None:
    seen: list[Any] = []

    async def look(message: Message, call_next: Any) -> Any:
        seen.append(message.value.id)
        return await call_next(message)

    app = App("shop", middleware=[look])

    @app.subscriber("orders")
    async def handle(message: Message, id: int, amount: float = 1.0) -> None:
        seen.append((id, amount, message.offset))

    async with TestApp(app) as t:
        await t.publish({"id": 1}, "orders")
    assert seen == [1, (1, 1.0, 0)]


async def test_a_body_is_decoded_once_for_several_parameters() -> None:
    class Counting:
        content_type = "application/json"
        decoded = 0

        def encode(self, value: Any) -> bytes:
            return msgspec.json.encode(value)

        def decoder(self, kind: Any) -> Any:
            def decode(body: bytes) -> Any:
                self.decoded += 1
                return msgspec.json.decode(body, type=kind)

            return decode

    app, codec = App("shop", broker=Broker("memory://")), Counting()

    @app.subscriber("orders", codec=codec)
    async def handle(a: int, b: int, c: int) -> None: ...

    async with app:
        call = app.consuming[0].consumer.routes[0].call
        await call(Message("orders", b'{"a": 1, "b": 2, "c": 3}'))
    assert codec.decoded == 1


async def test_parameters_are_filled_by_type() -> None:
    app, got = App("shop"), {}

    @app.subscriber("orders")
    async def handle(body: int, message: Message, it: App, broker: Broker, log: logging.Logger) -> None:
        got.update(body=body, message=message.value, app=it, broker=broker, logger=log.name)

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert got == {"body": 1, "message": 1, "app": app, "broker": app.broker, "logger": "headwater.shop"}


async def test_a_handler_may_take_nothing() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders")
    async def handle() -> None:
        calls.append(1)

    async with TestApp(app) as t:
        await t.publish(b"\xff not json", "orders")
    assert calls == [1]


async def test_keyword_only_and_positional_only_parameters_are_filled() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders.{region}")
    async def handle(body: int, /, region: str, *, key: str | None = Key()) -> None:
        got.append((body, region, key))

    async with TestApp(app) as t:
        await t.publish(5, "orders.eu", key="k")
    assert got == [(5, "eu", "k")]


async def test_a_method_a_partial_and_a_callable_object_are_handlers() -> None:
    app, got = App("shop"), []

    class Service:
        async def handle(self, body: int) -> None:
            got.append(("method", body))

        async def __call__(self, body: int) -> None:
            got.append(("object", body))

    async def partly(tag: str, body: int) -> None:
        got.append((tag, body))

    service = Service()
    app.subscriber("a")(service.handle)
    app.subscriber("b")(service)
    app.subscriber("c")(functools.partial(partly, "partial"))
    async with TestApp(app) as t:
        for topic in "abc":
            await t.publish(1, topic)
    assert got == [("method", 1), ("object", 1), ("partial", 1)]


async def test_a_class_defined_inside_a_function_can_be_a_type_although_annotations_are_text() -> None:
    @dataclass
    class Local:
        id: int

    app, got = App("shop"), []

    @app.subscriber("orders")
    async def handle(local: Local) -> None:
        got.append(local)

    async with TestApp(app) as t:
        await t.publish({"id": 3}, "orders")
    assert got == [Local(3)]


async def test_the_decorated_function_stays_the_plain_function_it_was() -> None:
    app = App("shop")

    async def double(n: int) -> int:
        return n * 2

    decorated = app.subscriber("in")(app.publisher("out")(double))
    assert decorated is double
    assert await decorated(4) == 8


async def test_a_def_handler_runs_in_a_thread_of_its_own() -> None:
    app, threads = App("shop"), []

    @app.subscriber("orders")
    def handle(body: int) -> None:
        threads.append(threading.current_thread())

    async with TestApp(app) as t:
        await t.publish(1, "orders")
    assert threads[0] is not threading.main_thread()


@pytest.mark.parametrize(
    ("declare", "says"),
    [
        (lambda app: app.subscriber("a")(lambda *bodies: None), "name its parameters"),
        (lambda app: app.subscriber("a")(lambda **fields: None), "name its parameters"),
    ],
)
async def test_a_signature_nothing_can_fill_is_refused_at_start(declare: Any, says: str) -> None:
    app = App("shop")
    declare(app)
    with pytest.raises(ConfigurationError, match=says):
        async with TestApp(app):
            pass


async def test_an_annotation_that_does_not_exist_is_refused_at_start() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(order: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="Missing"):
        async with TestApp(app):
            pass


async def test_a_missing_context_entry_and_an_unknown_field_are_refused_at_start() -> None:
    for parameter, says in ((Context("db"), "'db'.*lifespan"), (Path("region"), "'region'")):
        app = App("shop")

        async def handle(body: int, it: Any) -> None: ...

        handle.__defaults__ = (parameter,)
        app.subscriber("orders")(handle)
        with pytest.raises(ConfigurationError, match=says):
            async with TestApp(app):
                pass


async def test_headers_are_converted_to_the_type_of_their_parameter() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders")
    async def handle(
        body: int,
        x_count: int = Header(),
        tag: Annotated[str, Header("x-tag")] = "none",
        flag: bool | None = Header("x-flag"),
    ) -> None:
        got.append((x_count, tag, flag))

    async with TestApp(app) as t:
        await t.publish(1, "orders", headers={"x-count": "3", "x-tag": "a", "x-flag": "true"})
        await t.publish(1, "orders", headers={"x-count": "4"})
    assert got == [(3, "a", True), (4, "none", None)]


@pytest.mark.parametrize("headers", [{}, {"x-count": "many"}])
async def test_a_missing_or_wrong_header_is_a_dead_letter_at_once(headers: dict[str, str]) -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(body: int, count: int = Header("x-count")) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders", headers=headers)
        (letter,) = t.dead("orders")
        assert letter.headers["hw-reason"] == "undecodable"
        assert letter.headers["hw-attempts"] == "1"


async def test_the_key_comes_as_text_bytes_number_or_none() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders")
    async def handle(
        body: int,
        text: str | None = Key(),
        raw: bytes | None = Key(),
        number: Annotated[int | None, Key()] = -1,
    ) -> None:
        got.append((text, raw, number))

    async with TestApp(app) as t:
        await t.publish(1, "orders", key="12")
        await t.publish(1, "orders")
    assert got == [("12", b"12", 12), (None, None, -1)]


async def test_a_missing_key_is_no_text() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(body: int, key: str = Key()) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert "no key" in t.dead("orders")[0].headers["hw-exception"]


async def test_fields_of_the_topic_fill_parameters_by_name_or_marker() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders.{region}.{year}")
    async def handle(body: int, region: str, when: int = Path("year")) -> None:
        got.append((body, region, when))

    async with TestApp(app) as t:
        await t.publish(1, "orders.eu.2026")
        await t.publish(2, "orders.us.soon")
        assert [m.value for m in t.dead("orders.us.soon")] == [2]
    assert got == [(1, "eu", 2026)]


async def test_context_comes_from_what_the_lifespan_yielded() -> None:
    import contextlib
    from collections.abc import AsyncIterator

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[dict[str, Any]]:
        yield {"db": "the database", "limit": 3}

    app, got = App("shop", lifespan=lifespan), []

    def limited(limit: int = Context()) -> int:
        return limit

    @app.subscriber("orders")
    async def handle(
        body: int, db: str = Context(), n: int = Depends(limited), other: Annotated[str, Context("x")] = "d"
    ) -> None:
        got.append((db, n, other))

    async with TestApp(app) as t:
        await t.publish(1, "orders")
    assert got == [("the database", 3, "d")]
    assert app.context == {}
