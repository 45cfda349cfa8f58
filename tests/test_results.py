"""What a handler gives, as messages: keys, headers, conditions, fields, generators."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest

from headwater import App, ConfigurationError, Message, Response, Retry, TestApp
from headwater.codecs import MSGPACK


async def test_a_result_goes_to_every_publisher_with_the_key_of_the_message() -> None:
    app = App("shop")

    @app.publisher("a", "b")
    @app.subscriber("orders")
    @app.publisher("c")
    async def handle(body: int) -> int:
        return body + 1

    async with TestApp(app) as t:
        await t.publish(1, "orders", key="k")
        assert [(m.value, m.key) for topic in "abc" for m in t.published(topic)] == [(2, "k")] * 3


async def test_none_publishes_nothing_and_false_zero_and_empty_do() -> None:
    app = App("shop")

    @app.subscriber("orders")
    @app.publisher("out")
    async def handle(body: Any) -> Any:
        return body

    async with TestApp(app) as t:
        for value in (None, 0, "", False, []):
            await t.publish(value, "orders", key="k")
        assert [m.value for m in t.published("out")] == [0, "", False, []]


async def test_publisher_key_headers_condition_and_codec() -> None:
    app = App("shop")

    @app.subscriber("orders")
    @app.publisher("fixed", key="always", headers={"a": "1"})
    @app.publisher("computed", key=lambda result: f"k{result['n']}", when=lambda result: result["n"] > 1)
    @app.publisher("packed", codec=MSGPACK)
    async def handle(n: int) -> dict[str, int]:
        return {"n": n}

    async with TestApp(app) as t:
        await t.publish(1, "orders", key="own")
        await t.publish(2, "orders", key="own")
        assert [(m.key, m.headers["a"]) for m in t.published("fixed")] == [("always", "1")] * 2
        assert [(m.key, m.value) for m in t.published("computed")] == [("k2", {"n": 2})]
        assert msgspec.msgpack.decode(t.published("packed")[0].body) == {"n": 1}
        assert t.published("packed")[0].value == {"n": 1}


async def test_a_response_adds_headers_and_a_key() -> None:
    app = App("shop")

    @app.subscriber("orders")
    @app.publisher("out", headers={"a": "declared", "b": "declared"}, key="declared")
    async def handle(n: int) -> Response:
        return Response({"n": n} if n else None, headers={"b": "own", "c": b"raw"}, key=b"own")

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.publish(0, "orders")
        (message,) = t.published("out")
        assert message.key == "own"
        assert {name: message.headers[name] for name in "abc"} == {"a": "declared", "b": "own", "c": "raw"}


async def test_fields_of_the_publishers_topic_are_filled_from_the_message() -> None:
    app = App("shop")

    @app.subscriber("orders.{region}.{rest:path}")
    @app.publisher("bills.{region}", "copy.{rest:path}")
    async def handle(body: int) -> int:
        return body

    async with TestApp(app) as t:
        await t.publish(1, "orders.eu.a.b")
        assert [m.value for m in t.published("bills.eu")] == [1]
        assert [m.value for m in t.published("copy.a.b")] == [1]


async def test_a_field_nothing_fills_is_refused_at_start() -> None:
    app = App("shop")

    @app.subscriber("orders.{region}", "other")
    @app.publisher("bills.{region}")
    async def handle(body: int) -> int:
        return body

    with pytest.raises(ConfigurationError, match=r"'other' has no field 'region'"):
        async with TestApp(app):
            pass


async def test_generators_publish_each_item_as_it_comes() -> None:
    app, seen, threads = App("shop"), [], set()

    @app.subscriber("a")
    @app.publisher("out")
    async def asynchronous(n: int) -> AsyncIterator[Any]:
        for i in range(n):
            seen.append(len(t.published("out")))
            yield Response(i, key=f"k{i}") if i else None

    @app.subscriber("b")
    @app.publisher("out")
    def synchronous(n: int) -> Iterator[int]:
        for i in range(n):
            threads.add(threading.current_thread())
            yield i

    @app.subscriber("c")
    async def for_its_effect(n: int) -> AsyncIterator[int]:
        seen.append("begun")
        yield n
        seen.append("ended")

    async with TestApp(app) as t:
        await t.publish(3, "a")
        assert seen == [0, 0, 1]
        assert sorted((m.value, m.key) for m in t.published("out")) == [(1, "k1"), (2, "k2")]
        await t.publish(2, "b")
        assert len(t.published("out")) == 4
        await t.publish(1, "c")
    assert seen[3:] == ["begun", "ended"]
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("synchronous", [True, False])
async def test_a_generator_is_closed_when_its_items_cannot_be_published(synchronous: bool) -> None:
    app, closed = App("shop"), []

    def items(n: int) -> Iterator[Any]:
        try:
            yield object()
        finally:
            closed.append(n)

    async def async_items(n: int) -> AsyncIterator[Any]:
        try:
            yield object()
        finally:
            closed.append(n)

    handler: Any = items if synchronous else async_items
    app.subscriber("orders", retry=None)(app.publisher("out")(handler))
    async with TestApp(app) as t:
        with pytest.raises(Exception, match="cannot publish"):
            await t.publish(1, "orders")
        assert closed == [1]


async def test_a_generator_that_fails_half_way_is_called_again() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=2))
    @app.publisher("out")
    async def handle(n: int, message: Message) -> AsyncIterator[int]:
        calls.append(message.attempt)
        yield 1
        if message.attempt == 1:
            raise ValueError
        yield 2

    async with TestApp(app) as t:
        await t.publish(1, "orders", key="k")
        await t.advance(60)
        assert [m.value for m in t.published("out")] == [1, 1, 2]  # at least once
