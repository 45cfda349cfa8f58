"""What becomes of a message: done, tried again, a dead letter; settling by hand; batches; exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from headwater import (
    App,
    Batch,
    BatchError,
    Broker,
    ConfigurationError,
    Depends,
    Message,
    NotSupportedError,
    Outgoing,
    Reject,
    Retry,
    Skip,
    StopApp,
    StopConsuming,
    TestApp,
    TopicNameError,
)
from headwater.engines.memory import MemoryEngine, received
from recording import recording
from waiting import until


class Order(msgspec.Struct):
    id: int


async def lag(app: App, topic: str = "orders", group: str = "shop") -> int:
    """How many messages the group has not acknowledged."""
    return (await app.admin.groups.lag(group, topic)).total


# --- retries ------------------------------------------------------------------------------------------


async def test_a_failing_message_is_tried_again_with_growing_waits_and_then_kept_as_a_dead_letter() -> None:
    app, moments = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=4, backoff=(1, 3), jitter=False))
    async def handle(body: dict[str, int], message: Message) -> None:
        moments.append((message.attempt, t.clock.time()))
        raise ValueError("no good")

    async with TestApp(app) as t:
        start = t.clock.time()
        await t.publish({"a": 1}, "orders", key="k", headers={"x": "y"})
        with pytest.raises(ValueError, match="no good"):
            await t.advance(100)
        assert [(n, round(at - start, 3)) for n, at in moments] == [(1, 0), (2, 1), (3, 3), (4, 6)]
        (letter,) = t.dead("orders")
        assert letter.value == {"a": 1}
        assert letter.key == "k"
        about = {name: value for name, value in letter.headers.items() if name.startswith("hw-")}
        assert about.pop("hw-partition").isdigit()
        assert about == {
            "hw-reason": "attempts exhausted",
            "hw-exception": "ValueError: no good",
            "hw-topic": "orders",
            "hw-offset": "0",
            "hw-attempts": "4",
            "hw-group": "shop",
        }
        assert letter.headers["x"] == "y"
        assert letter.headers["content-type"] == "application/json"
        assert await lag(app) == 0


async def test_an_always_failing_handler_never_spins() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=1000, backoff=(0.5, 30)))
    async def handle(body: int) -> None:
        calls.append(body)
        raise ValueError

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert len(calls) == 1
        await t.advance(600)
    assert 20 <= len(calls) <= 60


async def test_jitter_takes_up_to_half_of_the_wait_off() -> None:
    waits = {Retry(backoff=(8, 8)).delay(1) for _ in range(200)}
    assert len(waits) > 50
    assert all(4 <= wait <= 8 for wait in waits)


async def test_a_handler_that_always_fails_does_not_hold_up_the_one_beside_it() -> None:
    app, good = App("shop"), []

    @app.subscriber("bad", retry=Retry(attempts=1000))
    async def fails(body: int) -> None:
        raise ValueError

    @app.subscriber("good")
    async def works(body: int) -> None:
        good.append(body)

    async with TestApp(app) as t:
        for n in range(20):
            await t.publish(n, "bad")
            await t.publish(n, "good")
    assert good == list(range(20))


async def test_only_the_named_exceptions_are_retried() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", retry=Retry(on=(OSError, TimeoutError)))
    async def handle(body: int) -> None:
        calls.append(body)
        raise KeyError("x") if body == 1 else OSError

    async with TestApp(app) as t:
        with pytest.raises(KeyError):
            await t.publish(1, "orders")
        await t.publish(2, "orders")
        with pytest.raises(OSError):
            await t.advance(60)
        assert [letter.headers["hw-reason"] for letter in t.dead("orders")] == ["not retried", "attempts exhausted"]
    assert calls == [1, 2, 2, 2]


async def test_retry_none_calls_once() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=None)
    async def handle(body: int) -> None:
        raise ValueError

    async with TestApp(app) as t:
        with pytest.raises(ValueError):
            await t.publish(1, "orders")
        assert t.calls(handle) == [1]


async def test_retry_later_comes_again_after_so_many_seconds_and_counts_no_failure() -> None:
    app, attempts = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=2))
    async def handle(body: int, message: Message) -> None:
        attempts.append((message.attempt, round(t.clock.time() - start)))
        if len(attempts) < 5:
            raise Retry.later(30)

    async with TestApp(app) as t:
        start = t.clock.time()
        await t.publish(1, "orders")
        await t.advance(300)
        assert attempts == [(1, 0), (2, 30), (3, 60), (4, 90), (5, 120)]
        assert t.dead("orders") == []
        assert await lag(app) == 0


async def test_a_long_wait_goes_through_the_retry_topic_and_keeps_the_count_and_the_origin() -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders.{region}", concurrency=2, retry=Retry(attempts=3, backoff=(120, 120), jitter=False))
    async def handle(order: Order, message: Message, region: str) -> None:
        seen.append((message.attempt, message.topic, message.key, message.offset, region, order))
        raise ValueError("again")

    async with TestApp(app) as t:
        await t.publish(Order(1), "orders.eu", key="k")
        assert await lag(app, "orders.eu") == 0  # it is safe in the retry topic
        assert len(t.published("orders.region.shop.retry")) == 0  # not due yet
        await t.advance(119)
        assert len(seen) == 1
        with pytest.raises(ValueError):
            await t.advance(200)
        assert seen == [(n, "orders.eu", "k", 0, "eu", Order(1)) for n in (1, 2, 3)]
        (letter,) = t.dead("orders.eu")
        assert letter.headers["hw-attempts"] == "3"
        assert letter.headers["hw-offset"] == "0"


async def test_an_ordered_message_waits_in_place_however_long() -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=(600, 600), jitter=False))
    async def handle(body: int) -> None:
        seen.append(body)
        if seen == [1]:
            raise ValueError

    async with TestApp(app) as t:
        await t.publish(1, "orders", key="k")
        await t.publish(2, "orders", key="k")
        assert seen == [1]
        await t.advance(601)
    assert seen == [1, 1, 2]


# --- signals ------------------------------------------------------------------------------------------


async def test_reject_is_a_dead_letter_at_once_with_its_reason() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        raise Reject("too small")

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        (letter,) = t.dead("orders")
        assert letter.headers["hw-reason"] == "too small"
        assert "hw-exception" not in letter.headers
        assert t.calls(handle) == [1]


async def test_skip_acknowledges_and_publishes_nothing() -> None:
    app = App("shop")

    @app.subscriber("orders")
    @app.publisher("done")
    async def handle(body: int) -> int:
        raise Skip

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert (t.published("done"), t.dead("orders"), await lag(app)) == ([], [], 0)


@pytest.mark.parametrize("ack", ["auto", "manual", "on_receive"])
async def test_stop_consuming_acknowledges_its_message_and_ends_this_subscriber_alone(ack: Any) -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders", ack=ack)
    async def ends(body: int) -> None:
        seen.append(body)
        raise StopConsuming

    @app.subscriber("other")
    async def goes_on(body: int) -> None:
        seen.append(-body)

    async with TestApp(app) as t:
        await t.publish(1, "orders", key="k")
        await t.publish(2, "orders", key="k")
        await t.publish(3, "other")
        assert seen == [1, -3]
        assert await lag(app) == 1
        assert not (await app.admin.groups.describe("shop")).members[1:]


async def test_stop_app_acknowledges_its_message_and_stops_the_app() -> None:
    app = App("shop", "memory://stop-app")

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        raise StopApp

    @app.after_startup
    async def feed() -> None:
        await app.publish(1, "orders")

    await asyncio.wait_for(app.run(), 5)
    async with app.broker as broker:
        assert (await broker.admin.groups.lag("shop", "orders")).total == 0


# --- what cannot be handled ---------------------------------------------------------------------------


async def test_an_undecodable_message_is_a_dead_letter_alone() -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders")
    async def handle(order: Order) -> None:
        seen.append(order.id)

    async with TestApp(app) as t:
        await t.publish(b"{not json", "orders")
        await t.publish({"id": "wrong"}, "orders")
        await t.publish({"id": 1}, "orders")
        assert sorted(letter.body for letter in t.dead("orders")) == [b'{"id":"wrong"}', b"{not json"]
        assert {letter.headers["hw-reason"] for letter in t.dead("orders")} == {"undecodable"}
        assert {letter.headers["hw-attempts"] for letter in t.dead("orders")} == {"1"}
        assert await lag(app) == 0
    assert seen == [1]


async def test_an_unknown_content_type_is_a_dead_letter_that_says_what_to_do() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def handle(order: Order) -> None: ...

    async with TestApp(app) as t:
        await t.publish(b"\x00", "orders", headers={"content-type": "application/x-odd"})
        assert "codec=" in t.dead("orders")[0].headers["hw-exception"]


async def test_dead_letters_may_go_elsewhere_or_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop")

    @app.subscriber("a", dead_letter="graveyard")
    async def elsewhere(body: int) -> None:
        raise Reject

    @app.subscriber("b", dead_letter=False)
    async def nowhere(body: int) -> None:
        raise Reject("gone")

    async with TestApp(app) as t:
        await t.publish(1, "a")
        await t.publish(2, "b")
        assert [letter.headers["hw-topic"] for letter in t.published("graveyard")] == ["a"]
        assert t.dead("a") == t.dead("b") == []
        assert await lag(app, "b") == 0
    assert "dropped" in caplog.text


async def test_a_failing_dead_letter_publish_acknowledges_nothing_and_is_tried_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = True

    async def door(outgoing: Outgoing, call_next: Any) -> Any:
        if closed and outgoing.topic.endswith(".dead"):
            raise OSError("the disk is full")
        return await call_next(outgoing)

    app = App("shop", Broker("memory://", publish_middleware=[door]))

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        raise Reject("bad")

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.advance(10)
        assert (t.dead("orders"), await lag(app)) == ([], 1)
        assert "stays unacknowledged" in caplog.text
        closed = False
        await t.advance(60)
        assert (len(t.dead("orders")), await lag(app)) == (1, 0)
        assert t.calls(handle) == [1]


async def test_a_stop_while_the_dead_letter_cannot_be_written_is_quick_and_loses_nothing() -> None:
    async def door(outgoing: Outgoing, call_next: Any) -> Any:
        if outgoing.topic.endswith(".dead"):
            refused.set()
            raise OSError
        return await call_next(outgoing)

    refused = asyncio.Event()
    app = App("shop", Broker("memory://", publish_middleware=[door]))

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        raise Reject

    async with app:
        await app.publish(1, "orders")
        await refused.wait()
        stopping = asyncio.create_task(app.drain())
        async with asyncio.timeout(2):
            await stopping
        assert await lag(app) == 1


async def test_a_stop_before_the_dead_letter_was_refused_is_quick_too() -> None:
    async def door(outgoing: Outgoing, call_next: Any) -> Any:
        if outgoing.topic.endswith(".dead"):
            raise OSError
        return await call_next(outgoing)

    app, begun, go_on = App("shop", Broker("memory://", publish_middleware=[door])), asyncio.Event(), asyncio.Event()

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        begun.set()
        await go_on.wait()
        raise Reject

    async with app:
        await app.publish(1, "orders")
        await begun.wait()
        draining = asyncio.create_task(app.drain())
        await asyncio.sleep(0)
        go_on.set()
        async with asyncio.timeout(2):
            await draining
        assert await lag(app) == 1


async def test_a_failing_result_publish_is_a_failure_of_the_message() -> None:
    refuse = True

    async def door(outgoing: Outgoing, call_next: Any) -> Any:
        if refuse and outgoing.topic == "done":
            raise OSError("not now")
        return await call_next(outgoing)

    app = App("shop", Broker("memory://", publish_middleware=[door]))

    @app.subscriber("orders", retry=Retry(attempts=10))
    @app.publisher("done")
    async def handle(body: int) -> int:
        return body

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert await lag(app) == 1
        refuse = False
        await t.advance(5)
        assert ([m.value for m in t.published("done")], await lag(app)) == ([1], 0)


async def test_a_result_no_codec_can_write_ends_as_a_dead_letter() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=None)
    @app.publisher("done")
    async def handle(body: int) -> object:
        return object()

    async with TestApp(app) as t:
        with pytest.raises(Exception, match="cannot publish a object to 'done'"):
            await t.publish(1, "orders")
        assert t.dead("orders")[0].headers["hw-exception"].startswith("EncodeError")


@pytest.mark.parametrize("deadline", ["soon", "", "nan"])
async def test_a_deadline_that_is_no_number_does_not_end_the_worker(deadline: str) -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        seen.append(body)

    async with TestApp(app) as t:
        await t.publish(1, "orders", headers={"hw-deadline": deadline})
        await t.publish(2, "orders")
        assert app.consuming[0].task.done() is False
    assert seen == [1, 2]


async def test_a_reply_topic_nobody_can_write_to_does_not_hold_its_message_for_ever() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=Retry(attempts=2))
    async def handle(body: int) -> int:
        return body

    async with TestApp(app) as t:
        await t.publish(1, "orders", headers={"hw-reply-to": ""})
        with pytest.raises(TopicNameError):
            await t.advance(100)
        assert await lag(app) == 0


# --- cancellation -------------------------------------------------------------------------------------


async def test_cancellation_acknowledges_nothing() -> None:
    app, begun = App("shop", "memory://", graceful_timeout=0.01), asyncio.Event()

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    await app.start()
    await app.publish(1, "orders")
    await begun.wait()
    broker = app.broker
    await app.drain()
    assert (await broker.admin.groups.lag("shop", "orders")).total == 1
    await app.shutdown()


def test_an_event_loop_that_ends_acknowledges_nothing_and_writes_no_dead_letter() -> None:
    broker, engine = recording()
    app, inside, topics = App("shop", broker), asyncio.Semaphore(0), [f"orders-{n}" for n in range(20)]

    async def handle(body: int) -> None:
        inside.release()
        await asyncio.Event().wait()

    for topic in topics:
        app.subscriber(topic, retry=None)(handle)

    async def main() -> None:
        await app.start()
        for topic in topics:
            await app.publish(1, topic)
            await inside.acquire()
        # returns without a stop: the loop cancels all of its tasks, in any order

    asyncio.run(main())
    assert engine.calls("ack") == []
    assert [letter for topic in topics for letter in received(engine.store, f"{topic}.dead")] == []


async def test_a_cancellation_the_handler_made_up_is_a_failure_like_any_other() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=Retry(attempts=3, on=asyncio.CancelledError))
    async def handle(body: int) -> None:
        raise asyncio.CancelledError

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        with pytest.raises(asyncio.CancelledError):
            await t.advance(60)
        assert t.calls(handle) == [1, 1, 1]
        assert len(t.dead("orders")) == 1


async def test_a_handler_that_cancels_its_own_task_does_not_end_the_worker() -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=2, on=asyncio.CancelledError))
    async def handle(body: int) -> None:
        seen.append(body)
        if body == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        with pytest.raises(asyncio.CancelledError):
            await t.advance(60)
        await t.publish(2, "orders")
        assert seen == [1, 1, 2]
        assert (len(t.dead("orders")), await lag(app)) == (1, 0)


# --- settling by hand ---------------------------------------------------------------------------------


async def test_manual_ack_nack_and_reject() -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders", ack="manual", concurrency=4)
    async def handle(body: str, message: Message) -> None:
        seen.append((body, message.attempt))
        if body == "nack" and message.attempt == 1:
            await message.nack(5)
        elif body == "reject":
            await message.reject("unwanted")
        else:
            await message.extend()
            await message.ack()

    async with TestApp(app) as t:
        for body in ("ack", "nack", "reject"):
            await t.publish(body, "orders")
        assert await lag(app) == 1
        await t.advance(5)
        assert await lag(app) == 0
        assert [letter.headers["hw-reason"] for letter in t.dead("orders")] == ["unwanted"]
    assert seen == [("ack", 1), ("nack", 1), ("reject", 1), ("nack", 2)]


async def test_a_nack_without_a_delay_waits_as_a_retry_would() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", ack="manual", concurrency=2, retry=Retry(backoff=(2, 30), jitter=False))
    async def handle(body: int, message: Message) -> None:
        calls.append(t.clock.time())
        await message.nack()

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.advance(300)
    assert 5 < len(calls) < 20


async def test_a_manual_message_may_be_settled_after_its_handler_by_another_task() -> None:
    app, kept, handled = App("shop", "memory://"), [], asyncio.Event()

    @app.subscriber("orders", ack="manual")
    async def handle(body: int, message: Message) -> None:
        kept.append(message)
        if len(kept) == 3:
            handled.set()

    async with app:
        for n in range(3):
            await app.publish(n, "orders", key="k")
        await handled.wait()
        assert await lag(app) == 3
        await kept[1].ack()
        assert await lag(app) == 2
        await kept[0].reject("late")
        assert await lag(app) == 1
        await kept[2].ack()
        assert await lag(app) == 0


async def test_a_manual_message_that_is_settled_late_lets_the_next_of_its_key_go_on() -> None:
    app, kept, handled = App("shop", "memory://"), [], asyncio.Semaphore(0)

    @app.subscriber("orders", ack="manual", concurrency=4, order_by="key")
    async def handle(body: int, message: Message) -> None:
        kept.append(message)
        handled.release()

    async with app, asyncio.timeout(5):
        await app.publish_many([Outgoing(n, "orders", key="k") for n in range(3)])
        for n in range(3):
            await handled.acquire()
            assert len(kept) == n + 1
            await kept[n].ack()


async def test_a_manual_handler_that_settles_nothing_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop")

    @app.subscriber("orders", ack="manual")
    async def handle(body: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.publish(2, "orders")
        assert await lag(app) == 2
    assert [r.levelname for r in caplog.records if "without settling" in r.getMessage()] == ["WARNING"]


async def test_a_manual_handler_that_raises_is_retried_and_dead_lettered_like_any_other() -> None:
    app = App("shop")

    @app.subscriber("orders", ack="manual", retry=Retry(attempts=2))
    async def handle(body: int, message: Message) -> None:
        raise ValueError

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        with pytest.raises(ValueError):
            await t.advance(60)
        assert (len(t.dead("orders")), await lag(app)) == (1, 0)


async def test_a_failure_after_settling_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop")

    @app.subscriber("orders", ack="manual")
    async def handle(body: int, message: Message) -> None:
        await message.ack()
        raise ValueError("afterwards")

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert (t.dead("orders"), await lag(app)) == ([], 0)
    assert "after it settled" in caplog.text


async def test_settling_twice_or_without_manual_is_an_error() -> None:
    app, errors = App("shop"), []

    @app.subscriber("a")
    async def automatic(body: int, message: Message) -> None:
        await message.ack()

    @app.subscriber("b", ack="manual")
    async def twice(body: int, message: Message) -> None:
        await message.ack()
        try:
            await message.ack()
        except RuntimeError as error:
            errors.append(str(error))

    async with TestApp(app) as t:
        await t.publish(1, "b")
        await t.publish(1, "a")
        with pytest.raises(RuntimeError, match="manual"):
            await t.advance(60)
    assert "settled already" in errors[0]


async def test_on_receive_acknowledges_before_the_handler() -> None:
    app, lags = App("shop"), []

    @app.subscriber("orders", ack="on_receive", retry=None)
    async def handle(body: int) -> None:
        lags.append(await lag(app))
        raise ValueError

    async with TestApp(app) as t:
        with pytest.raises(ValueError):
            await t.publish(1, "orders")
        assert (lags, len(t.dead("orders"))) == ([0], 1)


# --- batches ------------------------------------------------------------------------------------------


async def test_a_batch_comes_when_it_is_full_or_after_its_wait() -> None:
    app = App("shop")

    @app.subscriber("orders", batch=Batch(size=3, wait=5))
    async def handle(orders: list[Order]) -> None: ...

    async with TestApp(app) as t:
        for n in range(4):
            await t.publish(Order(n), "orders", key="k")
        assert t.calls(handle) == [[Order(0), Order(1), Order(2)]]
        await t.advance(4.9)
        assert len(t.calls(handle)) == 1
        await t.advance(0.2)
        assert t.calls(handle)[1] == [Order(3)]
        assert await lag(app) == 0


async def test_a_batch_handler_may_take_messages_untyped_values_and_tuples_of_topics() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders", batch=Batch(2, 0))
    async def handle(bodies: list[dict], messages: list[Message]) -> None:  # type: ignore[type-arg]
        got.append((bodies, [m.offset for m in messages]))

    @app.subscriber("other", batch=Batch(2, 0))
    async def only_messages(messages: list[Message]) -> None:
        got.append([m.value for m in messages])

    async with TestApp(app) as t:
        for topic in ("orders", "other"):
            for n in range(2):
                await t.publish({"n": n}, topic, key="k")
    await asyncio.sleep(0)
    assert got == [([{"n": 0}, {"n": 1}], [0, 1]), [{"n": 0}, {"n": 1}]]


async def test_undecodable_members_go_to_the_dead_letters_alone() -> None:
    app = App("shop")

    @app.subscriber("orders", batch=Batch(3, 1))
    async def handle(orders: list[Order]) -> None: ...

    async with TestApp(app) as t:
        for body in ({"id": 1}, b"?", {"id": 3}):
            await t.publish(body, "orders", key="k")
        assert t.calls(handle) == [[Order(1), Order(3)]]
        assert [letter.body for letter in t.dead("orders")] == [b"?"]
        assert await lag(app) == 0


async def test_batch_error_acknowledges_the_rest_and_retries_the_failed() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", batch=Batch(3, 1), retry=Retry(attempts=2))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        bad = {index: ValueError(n) for index, n in enumerate(numbers) if n == 2}
        if bad:
            raise BatchError(bad)

    async with TestApp(app) as t:
        for n in (1, 2, 3):
            await t.publish(n, "orders", key="k")
        assert await lag(app) == 1
        with pytest.raises(ValueError):
            await t.advance(60)
        assert calls == [[1, 2, 3], [2]]
        assert [m.value for m in t.dead("orders")] == [2]
        assert await lag(app) == 0


async def test_a_failing_batch_is_tried_again_whole_and_once_exhausted_one_by_one() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", batch=Batch(3, 1), retry=Retry(attempts=2))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if 2 in numbers:
            raise ValueError("two")

    async with TestApp(app) as t:
        for n in (1, 2, 3):
            await t.publish(n, "orders", key="k")
        with pytest.raises(ValueError):
            await t.advance(120)
        assert calls == [[1, 2, 3], [1, 2, 3], [1], [2], [3]]
        assert [m.value for m in t.dead("orders")] == [2]
        assert await lag(app) == 0


async def test_a_partition_waits_for_all_retried_members_of_its_batch() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", batch=Batch(3, 1), retry=Retry(attempts=2))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if 2 in numbers:
            raise ValueError("two")

    async with TestApp(app) as t:
        for n in range(1, 6):
            await t.publish(n, "orders", key="k")
        with pytest.raises(ValueError):
            await t.advance(120)
        await t.advance(5)
    assert calls == [[1, 2, 3], [1, 2, 3], [1], [2], [3], [4, 5]]


async def test_rejecting_a_batch_rejects_each_of_its_members() -> None:
    app = App("shop")

    @app.subscriber("orders", batch=Batch(2, 1))
    async def handle(numbers: list[int]) -> None:
        raise Reject("all of it")

    async with TestApp(app) as t:
        for n in (1, 2):
            await t.publish(n, "orders", key="k")
        assert [m.value for m in t.dead("orders")] == [1, 2]


async def test_what_a_batch_handler_returns_is_published_once() -> None:
    app = App("shop")

    @app.subscriber("numbers", batch=Batch(3, 1))
    @app.publisher("sums")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with TestApp(app) as t:
        for n in (1, 2, 3):
            await t.publish(n, "numbers")
        await t.advance(1)
        assert sum(m.value for m in t.published("sums")) == 6


@pytest.mark.parametrize(
    "declare",
    [
        lambda app: app.subscriber("a", batch=Batch(), filter=lambda m: True)(lambda bodies: None),
        lambda app: app.subscriber("a.{x}", batch=Batch())(app.publisher("b.{x}")(_numbers)),
    ],
)
async def test_what_makes_no_sense_for_a_batch_is_refused_at_start(declare: Any) -> None:
    app = App("shop")
    declare(app)
    with pytest.raises(ConfigurationError, match="batch"):
        async with TestApp(app):
            pass


async def _numbers(numbers: list[int]) -> int:
    return len(numbers)


async def test_a_batch_of_a_wrong_type_or_with_headers_of_one_message_is_refused_at_start() -> None:
    from headwater import Header

    async def wrong(number: int) -> None: ...

    async def header(numbers: list[int], x: str = Header("x")) -> None: ...

    for handler in (wrong, header):
        app = App("shop")
        app.subscriber("a", batch=Batch())(handler)
        with pytest.raises(ConfigurationError, match="batches"):
            async with TestApp(app):
                pass


# --- exactly once -------------------------------------------------------------------------------------


async def test_exactly_once_commits_the_acknowledgement_and_the_results_together() -> None:
    app, inside = App("shop"), []

    @app.subscriber("orders", exactly_once=True)
    @app.publisher("done")
    async def handle(body: int) -> int:
        inside.append((await lag(app), len(t.published("done"))))
        return body * 2

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert ([m.value for m in t.published("done")], await lag(app)) == ([2], 0)
    assert inside == [(1, 0)]


async def test_exactly_once_publishes_nothing_of_a_generator_that_fails_half_way() -> None:
    app, calls = App("shop"), []

    @app.subscriber("orders", exactly_once=True)
    @app.publisher("done")
    async def handle(body: int) -> AsyncIterator[int]:
        calls.append(body)
        yield 1
        if len(calls) == 1:
            raise ValueError
        yield 2

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert t.published("done") == []
        await t.advance(60)
        assert [m.value for m in t.published("done")] == [1, 2]


async def test_exactly_once_works_for_batches_and_dead_letters() -> None:
    app = App("shop")

    @app.subscriber("orders", exactly_once=True, batch=Batch(2, 1), retry=None)
    @app.publisher("sums")
    async def add(numbers: list[int]) -> int:
        if 13 in numbers:
            raise Reject("thirteen")
        return sum(numbers)

    async with TestApp(app) as t:
        for n in (1, 2, 13, 14):
            await t.publish(n, "orders", key="k")
        assert [m.value for m in t.published("sums")] == [3]
        assert [m.value for m in t.dead("orders")] == [13, 14]
        assert await lag(app) == 0


@pytest.mark.parametrize("batch", [None, Batch(1, 0)])
async def test_a_cleanup_that_fails_after_the_commit_is_logged_and_undoes_nothing(
    batch: Batch | None, caplog: pytest.LogCaptureFixture
) -> None:
    app = App("shop")

    async def leaky() -> AsyncIterator[int]:
        yield 1
        raise OSError("cannot close")

    async def one(body: int, resource: int = Depends(leaky)) -> int:
        return 1

    async def many(body: list[int], resource: int = Depends(leaky)) -> int:
        return 1

    app.subscriber("orders", exactly_once=True, batch=batch)(app.publisher("done")(many if batch else one))
    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.advance(60)
        assert (len(t.published("done")), t.dead("orders"), await lag(app)) == (1, [], 0)
    assert "after it settled" in caplog.text


async def test_exactly_once_gives_one_failure_as_the_answer_to_a_request() -> None:
    app = App("shop")

    @app.subscriber("prices", exactly_once=True, retry=None)
    async def price(sku: str) -> float:
        raise LookupError(sku)

    async with TestApp(app) as t:
        with pytest.raises(LookupError):
            await t.publish("x", "prices", headers={"hw-reply-to": "answers", "hw-correlation": "1"})
        assert [(m.headers["hw-error"], m.body) for m in t.published("answers")] == [("LookupError", b"x")]


@pytest.mark.parametrize("options", [{"order_by": "key"}, {"ack": "manual"}, {"broadcast": True}])
async def test_exactly_once_refuses_what_contradicts_it(options: dict[str, Any]) -> None:
    async def declare_and_start() -> None:
        app = App("shop")
        app.subscriber("orders", exactly_once=True, **options)(_numbers)
        async with TestApp(app):
            pass

    with pytest.raises(ConfigurationError):
        await declare_and_start()


async def test_exactly_once_is_refused_at_start_where_the_engine_cannot(less_capable: Any) -> None:
    app = App("shop", less_capable(atomic_commit=False))

    @app.subscriber("orders", exactly_once=True)
    async def handle(body: int) -> None: ...

    with pytest.raises(NotSupportedError, match="exactly_once"):
        await app.start()


# --- filters and sharing ------------------------------------------------------------------------------


async def test_the_first_filter_that_wants_a_message_gets_it_and_the_unfiltered_takes_the_rest() -> None:
    app, got = App("shop"), []

    @app.subscriber("orders")
    async def rest(body: dict[str, Any]) -> None:
        got.append(("rest", body["n"]))

    async def is_even(message: Message) -> bool:
        return bool(message.value["n"] % 2 == 0)

    @app.subscriber("orders", filter=is_even)
    async def even(body: dict[str, Any]) -> None:
        got.append(("even", body["n"]))

    @app.subscriber("orders", filter=lambda m: m.value["n"] > 2)
    async def large(body: dict[str, Any]) -> None:
        got.append(("large", body["n"]))

    async with TestApp(app) as t:
        for n in range(1, 6):
            await t.publish({"n": n}, "orders", key="k")
    assert got == [("rest", 1), ("even", 2), ("large", 3), ("even", 4), ("large", 5)]


async def test_what_no_filter_wants_goes_to_the_dead_letters() -> None:
    app = App("shop")

    @app.subscriber("orders", filter=lambda m: m.value == 1)
    async def handle(body: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(2, "orders")
        assert [letter.headers["hw-reason"] for letter in t.dead("orders")] == ["no handler takes it"]


async def test_a_filter_sees_the_untyped_value_at_every_attempt() -> None:
    app, seen, calls = App("shop"), [], []

    def wants(message: Message) -> bool:
        seen.append(message.value)
        return True

    @app.subscriber("orders", filter=wants)
    async def handle(order: Order) -> None:
        calls.append(order)
        if len(calls) == 1:
            raise ValueError

    async with TestApp(app) as t:
        await t.publish({"id": 1}, "orders")
        await t.advance(60)
    assert seen == [{"id": 1}, {"id": 1}]
    assert calls == [Order(1), Order(1)]


async def test_a_failing_filter_is_retried_like_a_failing_handler() -> None:
    app = App("shop")

    @app.subscriber("orders", filter=lambda m: m.value["missing"], retry=Retry(attempts=2))
    async def handle(body: Any) -> None: ...

    async with TestApp(app) as t:
        await t.publish({}, "orders")
        with pytest.raises(KeyError):
            await t.advance(60)
        assert t.dead("orders")[0].headers["hw-attempts"] == "2"


async def test_tagged_types_and_class_names_tell_the_messages_of_one_topic_apart() -> None:
    class Created(msgspec.Struct, tag=True):
        id: int

    class Deleted(msgspec.Struct, tag=True):
        id: int

    class Plain(msgspec.Struct):
        id: int

    class Other(msgspec.Struct):
        id: int

    app, got = App("shop"), []

    @app.subscriber("tagged")
    async def created(event: Created) -> None:
        got.append(event)

    @app.subscriber("tagged")
    async def deleted(event: Deleted) -> None:
        got.append(event)

    @app.subscriber("typed")
    async def plain(event: Plain) -> None:
        got.append(event)

    @app.subscriber("typed")
    async def other(event: Other) -> None:
        got.append(event)

    async with TestApp(app) as t:
        await t.publish({"type": "Deleted", "id": 1}, "tagged")
        await t.publish(Created(2), "tagged")
        await t.publish({"type": "Unknown"}, "tagged")
        await t.publish(Other(3), "typed")
        await t.publish(Plain(4), "typed")
        await t.publish({"id": 5}, "typed")
        assert [letter.body for letter in t.dead("tagged")] == [b'{"type":"Unknown"}']
        assert [letter.body for letter in t.dead("typed")] == [b'{"id":5}']
    assert got == [Deleted(1), Created(2), Other(3), Plain(4)]


async def test_pydantic_discriminators_tell_messages_apart() -> None:
    from typing import Literal

    import pydantic

    class Cat(pydantic.BaseModel):
        kind: Literal["cat"]

    class Dog(pydantic.BaseModel):
        kind: Literal["dog"]

    app, got = App("shop"), []

    @app.subscriber("pets")
    async def cat(pet: Cat) -> None:
        got.append(pet)

    @app.subscriber("pets")
    async def dog(pet: Dog) -> None:
        got.append(pet)

    async with TestApp(app) as t:
        await t.publish({"kind": "dog"}, "pets")
        await t.publish({"kind": "cat"}, "pets")
    assert got == [Dog(kind="dog"), Cat(kind="cat")]


async def test_two_unfiltered_handlers_on_one_subscription_are_refused_with_a_way_out() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def one(body: int) -> None: ...

    @app.subscriber("orders")
    async def two(body: int) -> None: ...

    with pytest.raises(ConfigurationError, match="group="):
        async with TestApp(app):
            pass


async def test_handlers_that_share_a_subscription_must_agree_on_its_options() -> None:
    app = App("shop")

    @app.subscriber("orders", filter=lambda m: True, concurrency=2)
    async def one(body: int) -> None: ...

    @app.subscriber("orders", filter=lambda m: True)
    async def two(body: int) -> None: ...

    with pytest.raises(ConfigurationError, match="concurrency"):
        async with TestApp(app):
            pass


@pytest.mark.parametrize("topics", [("orders", "more"), ("orders",), ("{any}",)])
async def test_overlapping_subscriptions_of_one_group_are_refused(topics: tuple[str, ...]) -> None:
    app = App("shop")
    app.subscriber("orders", "others")(_numbers)
    app.subscriber(*topics)(_numbers)
    with pytest.raises(ConfigurationError, match="overlap"):
        async with TestApp(app):
            pass


async def test_other_groups_get_their_own_copy() -> None:
    app = App("shop")

    @app.subscriber("orders")
    async def one(body: int) -> None: ...

    @app.subscriber("orders", group="audit")
    async def two(body: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert t.calls(one) == t.calls(two) == [1]


async def test_the_failure_of_one_group_is_no_matter_of_another() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=None)
    async def fails(body: int) -> None:
        raise ValueError

    @app.subscriber("orders", group="audit")
    async def works(body: int) -> None: ...

    async with TestApp(app) as t:
        with pytest.raises(ValueError):
            await t.publish(1, "orders")
        assert t.calls(works) == [1]
        assert [letter.headers["hw-group"] for letter in t.dead("orders")] == ["shop"]


# --- broadcast ----------------------------------------------------------------------------------------


async def test_a_broadcast_reaches_every_app_from_now_on_and_keeps_nothing() -> None:
    got: list[str] = []
    seen = asyncio.Semaphore(0)

    def make(name: str) -> App:
        app = App(name, "memory://broadcast")

        @app.subscriber("news", broadcast=True)
        async def handle(body: str) -> None:
            got.append(f"{name} {body}")
            seen.release()

        return app

    async with Broker("memory://broadcast") as broker:
        await broker.publish("old", "news")
        async with make("a"), make("b"):
            await broker.publish("new", "news")
            await seen.acquire()
            await seen.acquire()
        assert sorted(got) == ["a new", "b new"]
        assert await broker.admin.groups.list() == []


async def test_a_broadcast_is_retried_in_place_and_dropped_in_the_end() -> None:
    app = App("shop")

    @app.subscriber("news", broadcast=True, retry=Retry(attempts=2))
    async def handle(body: int) -> None:
        raise ValueError

    async with TestApp(app) as t:
        await t.publish(1, "news")
        with pytest.raises(ValueError):
            await t.advance(60)
        assert (t.calls(handle), t.dead("news")) == ([1, 1], [])


# --- logging ------------------------------------------------------------------------------------------


async def test_failures_are_logged_once_each_with_the_handler_and_the_message(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop")

    @app.subscriber("orders", retry=Retry(attempts=2))
    async def invoice(body: int, d: None = Depends(lambda: None)) -> None:
        raise ValueError("wrong")

    caplog.set_level(logging.WARNING)
    async with TestApp(app) as t:
        await t.publish(1, "orders")
        with pytest.raises(ValueError):
            await t.advance(60)
    warning, error = caplog.records
    assert (warning.levelname, error.levelname) == ("WARNING", "ERROR")
    assert "invoice" in warning.getMessage()
    assert "attempt 1" in warning.getMessage()
    assert "orders/" in error.getMessage()
    assert error.exc_info is not None
    assert error.name == "headwater.shop"


async def test_the_custom_logger_of_an_app_is_used(caplog: pytest.LogCaptureFixture) -> None:
    app = App("shop", logger=logging.getLogger("mine"))

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        raise Reject

    async with TestApp(app) as t:
        await t.publish(1, "orders")
    assert {record.name for record in caplog.records} == {"mine"}


# --- engines that take messages back for good ---------------------------------------------------------


async def test_what_has_no_dead_letters_is_rejected_where_the_engine_takes_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, engine = recording(reject=True)
    app = App("shop", broker)

    @app.subscriber("orders", retry=None, dead_letter=False)
    async def handle(n: int) -> None:
        if n == 1:
            raise Reject("of no use")
        if n == 2:
            raise ValueError("never")

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(3)])
        await until(lambda: len(engine.calls("reject")) == 2 and bool(engine.calls("ack")))
    rejected = [(messages[0].value, detail) for call, messages, detail in engine.log if call == "reject"]
    assert rejected == [(1, "of no use"), (2, "attempts exhausted")]
    assert {m.value for messages in engine.calls("ack") for m in messages} == {0}
    assert caplog.text.count("rejected, its engine decides what becomes of it") == 2


@pytest.mark.parametrize(
    ("can", "options"),
    [({}, {"dead_letter": True}), ({}, {"ack": "on_receive"}), ({"reject": False}, {})],
    ids=["has dead letters", "acknowledged already", "cannot"],
)
async def test_nothing_else_is_rejected(can: dict[str, Any], options: dict[str, Any]) -> None:
    broker, engine = recording(**{"reject": True, **can})
    app = App("shop", broker)

    @app.subscriber("orders", **{"retry": None, "dead_letter": False, **options})
    async def handle(n: int) -> None:
        raise Reject

    async with app:
        await app.publish(1, "orders")
        await until(lambda: bool(engine.calls("ack")))
    assert engine.calls("reject") == []


async def test_a_failing_rejection_is_logged_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    broker, engine = recording(reject=True)
    app, handled = App("shop", broker), list[int]()

    def refuse(_messages: Any) -> None:
        raise ConnectionError("away")

    engine.before["reject"] = refuse

    @app.subscriber("orders", dead_letter=False)
    async def handle(n: int) -> None:
        handled.append(n)
        if n == 0:
            raise Reject

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(2)])
        await until(lambda: handled == [0, 1])
        assert await lag(app) >= 1
    assert "cannot reject orders/0/0, it will come again: ConnectionError: away" in caplog.text


async def test_a_message_rejected_by_hand_is_rejected_once() -> None:
    broker, engine = recording(reject=True)
    app = App("shop", broker)

    @app.subscriber("orders", ack="manual", dead_letter=False)
    async def handle(message: Message) -> None:
        await message.reject("of no use")

    async with app:
        await app.publish(1, "orders")
        await until(lambda: len(engine.calls("reject")) == 1)
    assert engine.calls("ack") == []


# --- messages that kill their process -----------------------------------------------------------------


async def delivered_before(app: App, times: int) -> None:
    """Have the next start of the app find a message that was delivered so often already."""
    async with app:
        await app.drain()
        await app.publish(1, "orders", partition=0)
    engine = app.broker.engine
    assert isinstance(engine, MemoryEngine)
    engine.store.groups["shop"].cursors["orders", 0].attempts[0] = times


@pytest.mark.parametrize(
    ("counts_unbegun", "times", "attempts"),
    [
        (False, 2, [3]),  # each was an attempt, and the third is the last one
        (False, 3, []),
        (True, 9, [1, 2, 3]),  # each may have been a restart: they say nothing of the handler ...
        (True, 10, []),  # ... until they are too many
    ],
)
async def test_a_message_that_was_delivered_too_often_is_a_dead_letter_without_another_call(
    counts_unbegun: bool, times: int, attempts: list[int]
) -> None:
    broker, _ = recording(counts_unbegun=counts_unbegun)
    app, calls = App("shop", broker), list[int]()

    @app.subscriber("orders", start="earliest", retry=Retry(attempts=3, backoff=(0, 0)))
    async def handle(n: int, message: Message) -> None:
        calls.append(message.attempt)
        raise ValueError("never")

    await delivered_before(app, times)
    async with app:
        await until(lambda: lag_is(app, 0))
        (letter,) = await app.admin.dead.list("orders")
    assert calls == attempts
    assert letter.exception == ("ValueError: never" if attempts else None)
    assert letter.reason == ("attempts exhausted" if attempts else "its process died each time it was handled")


async def lag_is(app: App, count: int) -> bool:
    return await lag(app) == count
