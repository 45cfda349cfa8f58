"""Requests and their answers: the first one, in time, or the failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from headwater import (
    App,
    Broker,
    Depends,
    Message,
    NotConnectedError,
    Reject,
    RemoteError,
    RequestTimeoutError,
    Response,
    Retry,
    TestApp,
    Topic,
)
from headwater.engines.memory import MemoryEngine


class Price(msgspec.Struct):
    amount: float


async def test_what_the_handler_returns_is_the_answer() -> None:
    app = App("shop", "memory://")

    @app.subscriber("prices", concurrency=8)
    async def price(sku: str) -> Price:
        return Price(len(sku))

    async with app:
        answer = await app.request("chair", "prices")
        assert answer.value == {"amount": 5.0}
        assert answer.headers["hw-type"] == "Price"
        assert answer.correlation_id is not None
        answers = await asyncio.gather(*(app.request("x" * n, "prices") for n in range(50)))
        assert [answer.value["amount"] for answer in answers] == list(range(50))


async def test_an_answer_may_have_headers_be_none_or_the_first_item_of_a_generator() -> None:
    app = App("shop", "memory://")

    @app.subscriber("a")
    @app.publisher("also")
    async def with_headers(body: int) -> Response:
        return Response(body + 1, headers={"x": "y"})

    @app.subscriber("b")
    async def nothing(body: int) -> None: ...

    @app.subscriber("c")
    async def items(body: int) -> AsyncIterator[int]:
        yield body
        yield body + 1

    async with app:
        answer = await app.request(1, "a")
        assert (answer.value, answer.headers["x"]) == (2, "y")
        assert (await app.request(1, "b")).value is None
        assert (await app.request(1, "c")).value == 1
        assert (await app.admin.topics.describe("also")).messages == 1


async def test_the_final_failure_is_the_answer_too() -> None:
    app = App("shop", "memory://")

    @app.subscriber("prices", retry=Retry(attempts=2, backoff=(0, 0)))
    async def price(sku: str) -> float:
        if sku == "bad":
            raise Reject("unknown sku")
        raise LookupError("no such thing")

    async with app:
        with pytest.raises(RemoteError, match="LookupError: no such thing") as caught:
            await app.request("chair", "prices")
        assert (caught.value.type, caught.value.reason) == ("LookupError", "no such thing")
        with pytest.raises(RemoteError, match="unknown sku"):
            await app.request("bad", "prices")
        with pytest.raises(RemoteError, match="DecodeError"):
            await app.request({"not": "a str"}, "prices")
        assert len(await app.admin.dead.list("prices")) == 3


async def test_nobody_answering_is_a_request_timeout() -> None:
    async with Broker("memory://") as broker:
        with pytest.raises(RequestTimeoutError, match=r"'prices' within 0\.01 s") as caught:
            await broker.request("chair", "prices", timeout=0.01)
        assert isinstance(caught.value, TimeoutError)


async def test_the_first_reply_wins_and_strange_ones_are_ignored() -> None:
    app = App("shop", "memory://")

    @app.subscriber("prices")
    async def one(sku: str, message: Message) -> None:
        for n in range(3):
            headers = {"hw-correlation": message.headers["hw-correlation"]}
            await app.publish(n, message.headers["hw-reply-to"], headers=headers)
        await app.publish("stray", message.headers["hw-reply-to"])
        await app.publish("other", message.headers["hw-reply-to"], headers={"hw-correlation": "nobody"})

    async with app:
        assert (await app.request("chair", "prices")).value == 0
        assert (await app.request("table", "prices")).value == 0


async def test_the_reply_source_is_live_before_the_request_is_sent() -> None:
    class Instant(MemoryEngine):
        """Answers before the publish of the request returns."""

        def send(self, messages: Any) -> Any:
            receipts = super().send(messages)
            for request in messages:
                if "hw-reply-to" in request.headers:
                    from headwater import Outgoing

                    headers = {"hw-correlation": request.headers["hw-correlation"]}
                    super().send([Outgoing(None, request.headers["hw-reply-to"], headers=headers, body=b"1")])
            return receipts

    broker = Broker()
    broker.replace_engine(Instant())
    async with broker:
        assert (await broker.request(0, "prices", timeout=5)).value == 1


async def test_expired_requests_are_skipped_and_retries_end_at_the_deadline() -> None:
    app = App("shop")

    @app.subscriber("prices", retry=Retry(attempts=100, backoff=(10, 10), jitter=False))
    async def price(sku: str) -> float:
        raise LookupError(sku)

    async with TestApp(app) as t:

        def asking(seconds: float) -> dict[str, str]:
            return {
                "hw-reply-to": "answers",
                "hw-correlation": "c",
                "hw-deadline": str(t.clock.time() + seconds),
            }

        await t.publish("late", "prices", headers=asking(-1))
        assert t.calls(price) == []
        await t.publish("soon", "prices", headers=asking(25))
        with pytest.raises(LookupError):
            await t.advance(100)
        assert t.calls(price) == ["soon", "soon", "soon"]
        (answer,) = t.published("answers")
        assert answer.headers["hw-error"] == "LookupError"
        assert t.dead("prices")[0].headers["hw-reason"] == "nobody waits for the reply any more"


async def test_only_what_was_asked_is_answered() -> None:
    app = App("shop")

    @app.subscriber("prices")
    async def price(sku: str) -> float:
        return 1.0

    async with TestApp(app) as t:
        await t.publish("chair", "prices")
        assert t.published("hw.replies") == []
        assert (await t.request("chair", "prices")).value == 1.0


async def test_a_handler_may_ask_another() -> None:
    app = App("shop", "memory://")

    @app.subscriber("outer")
    async def outer(n: int, broker: Broker) -> int:
        return int((await broker.request(n, "inner")).value) + 1

    async def double(n: int = 2) -> int:
        return n

    @app.subscriber("inner")
    async def inner(n: int, d: int = Depends(lambda: 2)) -> int:
        return n * d

    async with app:
        assert (await app.request(4, "outer")).value == 9


async def test_who_still_waits_when_the_broker_closes_is_told() -> None:
    broker = Broker("memory://")
    await broker.connect()
    asking = asyncio.create_task(broker.request(1, "nowhere", timeout=60))
    while not (await broker.admin.topics.list()):
        await asyncio.sleep(0)
    await broker.close()
    with pytest.raises(NotConnectedError):
        await asking


async def test_a_request_that_is_never_confirmed_ends_in_time() -> None:
    class Silent(MemoryEngine):
        def send(self, messages: Any) -> Any:
            return asyncio.Event().wait()

    broker = Broker()
    broker.replace_engine(Silent())
    async with broker:
        with pytest.raises(RequestTimeoutError):
            await broker.request(1, "prices", timeout=0.01)


async def test_answers_survive_a_second_life_of_the_broker() -> None:
    app = App("shop", "memory://")

    @app.subscriber("double")
    async def double(n: int) -> int:
        return n * 2

    for _ in range(2):
        async with app:
            assert (await app.request(4, "double")).value == 8


async def test_answers_come_to_a_place_of_the_requesters_own_where_the_engine_has_one() -> None:
    class OwnPlaces(MemoryEngine):
        def reply_topic(self, mark: str) -> str:
            self.store.create(Topic(f"inbox.{mark}", partitions=1))  # as a subject or a queue that needs no declaring
            return f"inbox.{mark}"

    broker = Broker()
    broker.replace_engine(OwnPlaces())
    app, asked = App("shop", broker), list[str | None]()

    @app.subscriber("double")
    async def double(n: int, message: Message) -> int:
        asked.append(message.reply_to)
        return n * 2

    async with app:
        assert (await app.request(4, "double")).value == 8
        assert (await app.request(5, "double")).value == 10
        topics = {topic.name for topic in await app.admin.topics.list(internal=True)}
    assert len(set(asked)) == 1
    assert str(asked[0]).startswith("inbox.")
    assert "hw.replies" not in topics
