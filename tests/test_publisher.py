"""Publishing: in order, confirmed in time or not known, bounded, through middleware, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from headwater import (
    App,
    Broker,
    ConfigurationError,
    DeliveryUnknownError,
    EncodeError,
    HeadwaterError,
    NotConnectedError,
    Outgoing,
    PublishError,
    Receipt,
    TestApp,
    TopicNameError,
    publisher,
)
from headwater.engine import option_of
from headwater.engines.memory import MemoryEngine
from waiting import until


class Slow(MemoryEngine):
    """Accepts messages only once it is let, as a server far away."""

    def __init__(self) -> None:
        super().__init__()
        self.answering = asyncio.Event()
        self.sends: list[int] = []
        self.given_up = 0

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:  # type: ignore[override]
        self.sends.append(len(messages))
        return self._answer(messages)

    async def _answer(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        try:
            await self.answering.wait()
        except asyncio.CancelledError:
            self.given_up += len(messages)
            raise
        return MemoryEngine.send(self, messages)


class Promising(Slow):
    """The same, and what it answers with is a future already."""

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:  # type: ignore[override]
        return asyncio.ensure_future(super().send(messages))


either_slow = pytest.mark.parametrize("slow", [Slow, Promising])


class Picky(MemoryEngine):
    """Accepts each message by itself, and no odd numbers."""

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        receipts: list[Receipt | None] = []
        errors: list[BaseException | None] = []
        for outgoing in messages:
            odd = outgoing.value % 2
            receipts.append(None if odd else super().send([outgoing])[0])
            errors.append(HeadwaterError(f"{outgoing.value} is odd") if odd else None)
        if any(errors):
            raise PublishError(receipts, errors)
        return [receipt for receipt in receipts if receipt is not None]


def on(engine: MemoryEngine, **options: Any) -> Broker:
    broker = Broker(**options)
    broker.replace_engine(engine)
    return broker


async def test_a_receipt_says_where_and_when_the_message_was_accepted() -> None:
    async with Broker("memory://") as broker:
        first = await broker.publish({"a": 1}, "orders", key="k")
        second = await broker.publish({"a": 2}, "orders", key="k")
        assert (first.topic, first.offset, second.offset) == ("orders", 0, 1)
        assert first.partition == second.partition
        assert datetime.now(UTC) - first.timestamp < timedelta(minutes=1)


async def test_messages_of_one_task_arrive_in_the_order_they_were_published() -> None:
    async with Broker("memory://") as broker:
        for n in range(10):
            await broker.publish(n, "orders", key="k", confirm=n % 3 == 0)
        await broker.publish_many([Outgoing(n, "orders", key="k") for n in range(10, 13)])
        await asyncio.gather(*(broker.publish(n, "orders", key="k") for n in range(13, 16)))
        async with broker.stream("orders", start="earliest", limit=16) as stream:
            assert [message.value async for message in stream] == list(range(16))


async def test_what_is_published_together_goes_to_the_engine_together() -> None:
    engine = Slow()
    engine.answering.set()
    async with on(engine) as broker:
        await asyncio.gather(*(broker.publish(n, "orders") for n in range(100)))
        await asyncio.gather(*(broker.publish(n, "orders") for n in range(100)))
    assert sum(engine.sends) == 200
    assert len(engine.sends) < 10


@either_slow
async def test_no_confirmation_in_time_is_an_unknown_delivery_and_the_send_is_given_up(slow: type[Slow]) -> None:
    engine = slow()
    async with on(engine) as broker:
        with pytest.raises(DeliveryUnknownError, match="'orders'") as caught:
            await broker.publish(1, "orders", timeout=0.01)
        assert isinstance(caught.value, TimeoutError)
        assert (caught.value.topic, caught.value.timeout) == ("orders", 0.01)
        with pytest.raises(DeliveryUnknownError):
            await broker.publish_many([Outgoing(1, "orders")], timeout=0.01)
        results = await asyncio.gather(
            *(broker.publish(n, "orders", timeout=0.01 * n) for n in (1, 2, 3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [DeliveryUnknownError] * 3
        await asyncio.sleep(0)
        assert engine.given_up == 5
        assert await broker.flush(0)


@either_slow
async def test_each_publisher_waits_for_its_own_timeout(slow: type[Slow]) -> None:
    engine = slow()
    async with on(engine) as broker:
        short = asyncio.create_task(broker.publish(1, "orders", timeout=0.01))
        long = asyncio.create_task(broker.publish(2, "orders", timeout=10))
        with pytest.raises(DeliveryUnknownError):
            await short
        engine.answering.set()
        assert (await long).topic == "orders"


@either_slow
async def test_closing_tells_who_still_waits(monkeypatch: pytest.MonkeyPatch, slow: type[Slow]) -> None:
    broker = on(slow())
    await broker.connect()
    waiting = asyncio.create_task(broker.publish(1, "orders", timeout=60))
    await asyncio.sleep(0)
    monkeypatch.setattr("headwater.broker.DRAIN", 0.01)
    await broker.close()
    with pytest.raises(DeliveryUnknownError):
        await waiting


@either_slow
async def test_what_is_published_while_it_closes_is_refused_and_not_cut_off(slow: type[Slow]) -> None:
    engine = slow()
    broker = on(engine)
    await broker.connect()
    before = asyncio.create_task(broker.publish(1, "orders"))
    await until(lambda: engine.sends == [1])
    closing = asyncio.create_task(broker.close())
    await asyncio.sleep(0)
    with pytest.raises(NotConnectedError):
        await broker.publish(2, "orders")
    engine.answering.set()
    await closing
    assert (await before).topic == "orders"
    assert engine.sends == [1]


@either_slow
async def test_flushing_waits_for_what_was_published_before_and_no_longer(slow: type[Slow]) -> None:
    engine = slow()
    async with on(engine) as broker:
        before = asyncio.create_task(broker.publish(1, "orders"))
        await until(lambda: engine.sends == [1])
        flushing = asyncio.create_task(broker.flush())
        after = asyncio.create_task(broker.publish(2, "orders"))
        await until(lambda: engine.sends == [1, 1])
        engine.answering.set()
        engine.answering.clear()  # who comes now waits on
        last = asyncio.create_task(broker.publish(3, "orders"))
        assert await flushing
        assert before.done()
        assert not last.done()
        engine.answering.set()
        await asyncio.gather(before, after, last)


@either_slow
async def test_a_cancelled_publisher_leaves_the_others_alone(slow: type[Slow]) -> None:
    engine = slow()
    async with on(engine) as broker:
        tasks = [asyncio.create_task(broker.publish(n, "orders")) for n in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks[1].cancel()
        engine.answering.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Receipt", "CancelledError", "Receipt"]


async def test_not_confirming_returns_when_it_is_handed_over_and_a_loss_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Slow()
    async with on(engine) as broker:
        receipt = await broker.publish(1, "orders", confirm=False)
        assert (receipt.topic, receipt.offset) == ("orders", None)
        assert not await broker.flush(0.01)
        engine.answering.set()
        assert await broker.flush()
        await broker.publish(1, " bad ", confirm=False)
        assert await broker.flush()
        await asyncio.sleep(0)
    assert "was lost" in caplog.text


async def test_the_outbox_is_bounded_also_within_one_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "MAX_PENDING", 10)
    engine = Slow()
    async with on(engine) as broker:
        for n in range(10):
            await broker.publish(n, "orders", confirm=False)
        with pytest.raises(DeliveryUnknownError):
            await broker.publish(10, "orders", confirm=False, timeout=0.01)
        waiting = asyncio.create_task(broker.publish(11, "orders", key="k"))
        await asyncio.sleep(0)
        engine.answering.set()
        await waiting
        assert max(engine.sends) <= 10
    async with Broker("memory://") as memory:
        await asyncio.gather(*(memory.publish(n, "orders") for n in range(50)))
        assert (await memory.admin.topics.describe("orders")).messages == 50


async def test_one_bad_message_does_not_fail_those_beside_it() -> None:
    async with Broker("memory://") as broker:
        results = await asyncio.gather(
            *(broker.publish(1, topic) for topic in ("good", "{bad}", "fine")), return_exceptions=True
        )
    assert [type(result) for result in results] == [Receipt, TopicNameError, Receipt]


async def test_publish_many_gives_receipts_in_order_or_one_error_with_all_of_them() -> None:
    async with Broker("memory://") as broker:
        receipts = await broker.publish_many([Outgoing(n, "orders", partition=0) for n in range(3)])
        assert [receipt.offset for receipt in receipts] == [0, 1, 2]
        assert await broker.publish_many([]) == []
    async with on(Picky()) as broker:
        with pytest.raises(PublishError, match="1 of 3") as caught:
            await broker.publish_many([Outgoing(n, "orders") for n in (2, 3, 4)])
        assert [receipt and receipt.topic for receipt in caught.value.receipts] == ["orders", None, "orders"]
        assert [str(error) for error in caught.value.errors] == ["None", "3 is odd", "None"]
        results = await asyncio.gather(*(broker.publish(n, "orders") for n in (2, 3, 4)), return_exceptions=True)
        assert [type(result) for result in results] == [Receipt, HeadwaterError, Receipt]


async def test_where_the_engine_takes_all_or_nothing_a_refused_item_leaves_nothing_behind() -> None:
    async with Broker("memory://") as broker:
        for bad in (Outgoing(1, "{bad}"), Outgoing(object(), "orders"), Outgoing(1, "orders", partition=99)):
            with pytest.raises(HeadwaterError):
                await broker.publish_many([Outgoing(1, "orders"), bad])
        assert await broker.admin.topics.list() == []


async def test_a_value_no_codec_writes_is_refused() -> None:
    async with Broker("memory://") as broker:
        with pytest.raises(EncodeError, match="a object to 'orders'"):
            await broker.publish(object(), "orders")


async def test_a_message_may_be_published_again() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestApp(app) as t:
        outgoing = Outgoing(1, "orders", delay=5)
        await app.publish_many([outgoing])
        await app.publish_many([outgoing])
        await t.settle()
        assert t.calls(handle) == []
        await t.advance(5)
        assert t.calls(handle) == [1, 1]


async def test_a_delayed_message_is_received_after_its_delay() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders", delay=60)
        await t.advance(59)
        assert (t.calls(handle), t.published("orders")) == ([], [])
        await t.advance(1)
        assert t.calls(handle) == [1]


async def test_publish_middleware_goes_around_every_publish_the_first_outermost() -> None:
    steps: list[str] = []

    def layer(name: str) -> Any:
        async def mw(outgoing: Outgoing, call_next: Any) -> Receipt:
            steps.append(f"{name} {outgoing.topic}")
            outgoing.headers = {**dict(outgoing.headers), name: "1"}
            receipt: Receipt = await call_next(outgoing)
            return receipt

        return mw

    app = App("shop", Broker("memory://", publish_middleware=[layer("outer"), layer("inner")]))

    @app.subscriber("orders")
    @app.publisher("done")
    async def handle(body: int) -> int:
        return body

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await app.publish(2, "plain", confirm=False)
        await app.publish_many([Outgoing(3, "many")])
        await t.settle()
        for topic in ("orders", "done", "plain", "many"):
            (message,) = t.published(topic)
            assert message.headers["outer"] == message.headers["inner"] == "1"
            assert message.headers["content-type"] == "application/json"
    assert steps == [f"{n} {topic}" for topic in ("orders", "done", "plain", "many") for n in ("outer", "inner")]


async def test_publish_middleware_may_swallow_or_refuse_a_message() -> None:
    async def door(outgoing: Outgoing, call_next: Any) -> Receipt:
        if outgoing.value == "drop":
            return Receipt(outgoing.topic)
        if outgoing.value == "refuse":
            raise HeadwaterError("refused")
        receipt: Receipt = await call_next(outgoing)
        return receipt

    async with Broker("memory://", publish_middleware=[door]) as broker:
        await broker.publish("drop", "orders")
        await broker.publish_many([Outgoing("drop", "orders")])
        with pytest.raises(HeadwaterError, match="refused"):
            await broker.publish("refuse", "orders")
        await broker.publish("pass", "orders")
        assert (await broker.admin.topics.describe("orders")).messages == 1


async def test_a_partition_may_be_named_and_one_that_is_not_there_is_refused() -> None:
    async with Broker("memory://") as broker:
        assert (await broker.publish(1, "orders", partition=5)).partition == 5
        with pytest.raises(ConfigurationError, match="0 to 7"):
            await broker.publish(1, "orders", partition=8)


async def test_publishing_after_closing_says_so() -> None:
    async with Broker("memory://") as broker:
        pass
    with pytest.raises(NotConnectedError):
        await broker.publish(1, "orders")


async def test_bodies_say_what_they_are_and_models_their_type() -> None:
    @dataclass
    class Paid:
        id: int

    async with Broker("memory://") as broker:
        for value in (b"raw", "text", {"a": 1}, Paid(1)):
            await broker.publish(value, "orders", partition=0)
        async with broker.stream("orders", start="earliest", limit=4) as stream:
            got = [(m.body, m.headers.get("content-type"), m.headers.get("hw-type")) async for m in stream]
    assert got == [
        (b"raw", None, None),
        (b"text", "text/plain", None),
        (b'{"a":1}', "application/json", None),
        (b'{"id":1}', "application/json", "Paid"),
    ]


class Wanted(msgspec.Struct, frozen=True):
    """Options of some engine."""

    retain: bool


class Keeping(MemoryEngine):
    """Keeps what it was asked to send."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Outgoing] = []

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        self.sent += messages
        return super().send(messages)


async def test_options_of_a_publish_and_of_a_publisher_reach_the_engine() -> None:
    engine = Keeping()
    app = App("shop", on(engine))

    @app.subscriber("orders")
    @app.publisher("plain")
    @app.publisher("kept", options=[Wanted(True)])
    async def handle(n: int) -> int:
        return n

    async with app:
        await app.publish(1, "orders", options=[Wanted(False)])
        await app.publish(2, "orders", options=[Wanted(False)], confirm=False)
        await app.publish_many([Outgoing(3, "orders", options=(Wanted(False),))])
        await until(lambda: len(engine.sent) == 9)
    assert {(outgoing.topic, outgoing.options) for outgoing in engine.sent} == {
        ("orders", (Wanted(False),)),
        ("plain", ()),
        ("kept", (Wanted(True),)),
    }
    assert option_of(engine.sent[0].options, Wanted) == Wanted(False)
    assert option_of((), Wanted) is None
