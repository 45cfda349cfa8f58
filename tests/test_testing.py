"""TestApp: an app in memory, with a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headwater import (
    App,
    Batch,
    Broker,
    ConfigurationError,
    Depends,
    LocalBroker,
    Message,
    NotSupportedError,
    Reject,
    Retry,
    TestApp,
    Topic,
)
from headwater.services import Service
from headwater.testing import SyncTestApp, VirtualClock


@pytest.mark.parametrize(
    "broker",
    [None, "memory://own", lambda: "memory://own", Broker(), [Broker("memory://own")]],
    ids=["none", "url", "late", "unbound", "sequence"],
)
async def test_every_broker_is_replaced_by_memory_and_given_back(broker: Any) -> None:
    app = App("shop", broker)

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert t.calls(handle) == [1]
        assert app.is_ready
    assert not app.is_ready
    async with Broker("memory://own") as own:
        assert await own.admin.topics.list() == []
    if isinstance(broker, Broker):
        assert not broker.bound


async def test_the_capabilities_of_the_replaced_engine_stay(less_capable: Any, tmp_path: Any) -> None:
    app = App("shop", less_capable(atomic_commit=False))

    @app.subscriber("orders", exactly_once=True)
    async def handle(body: int) -> None: ...

    with pytest.raises(NotSupportedError):
        async with TestApp(app):
            pass
    local = App("shop", LocalBroker(tmp_path / "store"))
    async with TestApp(local) as t:
        await t.publish(1, "orders")
    assert not (tmp_path / "store").exists()


async def test_publish_returns_when_all_the_work_it_caused_is_done() -> None:
    app = App("shop")

    @app.subscriber("a")
    @app.publisher("b")
    async def first(n: int) -> int:
        await asyncio.sleep(0.001)
        return n + 1

    @app.subscriber("b", concurrency=4)
    @app.publisher("c")
    def second(n: int) -> int:
        return n + 1

    @app.subscriber("c", batch=Batch(1, 0))
    async def third(n: list[int]) -> None: ...

    async with TestApp(app) as t:
        receipt = await t.publish(1, "a", key="k", headers={"x": "y"})
        assert (receipt.topic, receipt.offset) == ("a", 0)
        assert (t.calls(first), t.calls(second), t.calls(third)) == ([1], [2], [[3]])
        assert [(m.value, m.key, m.topic) for m in t.published("c")] == [(3, "k", "c")]
        assert [m.headers["x"] for m in t.published("a")] == ["y"]


async def test_what_a_handler_raises_in_the_end_is_raised_once() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=None)
    async def handle(n: int) -> None:
        if n == 1:
            raise ValueError("one")

    async with TestApp(app) as t:
        with pytest.raises(ValueError, match="one"):
            await t.publish(1, "orders")
        await t.publish(2, "orders")
        assert t.calls(handle) == [1, 2]


async def test_rejected_and_untaken_messages_show_among_the_dead_and_do_not_raise() -> None:
    app = App("shop")

    @app.subscriber("a")
    async def rejects(n: int) -> None:
        raise Reject("no")

    @app.subscriber("b", filter=lambda m: False)
    async def filtered(n: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "a")
        await t.publish(1, "b")
        await t.publish("no number", "a")
        assert len(t.dead("a")) == 2
        assert len(t.dead("b")) == 1


async def test_a_timeout_names_what_is_pending() -> None:
    app = App("shop", graceful_timeout=0.01)

    @app.subscriber("orders")
    async def never_done(n: int) -> None:
        await asyncio.Event().wait()

    async with TestApp(app, timeout=0.02) as t:
        with pytest.raises(TimeoutError, match=r"never_done \(1 in work, 0 waiting\)"):
            await t.publish(1, "orders")


async def test_time_stands_still_until_it_is_advanced() -> None:
    app, moments = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=3, backoff=(5, 5), jitter=False))
    async def handle(n: int) -> None:
        moments.append(round(t.clock.time() - start, 6))
        raise Retry.later(10) if len(moments) < 3 else ValueError

    async with TestApp(app) as t:
        start = t.clock.time()
        await t.publish(1, "orders")
        await t.advance(9.999)
        assert moments == [0]
        await t.advance(0.001)
        assert moments == [0, 10]
        with pytest.raises(ValueError):
            await t.advance(100)
    assert moments == [0, 10, 20]


async def test_what_becomes_due_on_the_way_happens_in_order() -> None:
    app, order = App("shop"), []

    @app.subscriber("orders", concurrency=2)
    async def handle(n: int) -> None:
        order.append((n, round(t.clock.time() - start)))

    async with TestApp(app) as t:
        start = t.clock.time()
        for delay in (30, 10, 20):
            await t.publish(delay, "orders", delay=delay)
        await t.advance(60)
        assert round(t.clock.time() - start) == 60
    assert order == [(10, 10), (20, 20), (30, 30)]


async def test_a_dependency_is_overridden_while_the_context_lasts() -> None:
    app, got = App("shop"), []

    def real() -> str:
        return "real"

    def uses(value: str = Depends(real)) -> str:
        return f"uses {value}"

    @app.subscriber("orders")
    async def handle(n: int, value: str = Depends(uses)) -> None:
        got.append(value)

    async def fake(message: Message) -> str:
        return f"fake {message.value}"

    async with TestApp(app) as t:
        with t.override(real, fake):
            await t.publish(1, "orders")
            with t.override(uses, lambda: "inner"):
                await t.publish(2, "orders")
            await t.publish(3, "orders")
        await t.publish(4, "orders")
        assert t.calls(handle) == [1, 2, 3, 4]
    assert got == ["uses fake 1", "inner", "uses fake 3", "uses real"]


async def test_an_override_nothing_can_fill_is_refused_and_undone() -> None:
    app, got = App("shop"), []

    def real() -> str:
        return "real"

    @app.subscriber("orders")
    async def handle(n: int, value: str = Depends(real)) -> None:
        got.append(value)

    async with TestApp(app) as t:
        with pytest.raises(ConfigurationError), t.override(real, lambda unknown: unknown):
            pass
        await t.publish(1, "orders")
    assert got == ["real"]


async def test_calls_are_asked_of_handlers_only() -> None:
    async with TestApp(App("shop")) as t:
        with pytest.raises(LookupError, match="handles nothing"):
            t.calls(test_calls_are_asked_of_handlers_only)


async def test_calls_give_every_attempt_with_its_decoded_value() -> None:
    app = App("shop")

    @app.subscriber("orders", retry=Retry(attempts=2))
    async def handle(message: Message, n: float) -> None:
        raise ValueError

    @app.subscriber("raw")
    async def untyped(message: Message) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        with pytest.raises(ValueError):
            await t.advance(60)
        assert [repr(call) for call in t.calls(handle)] == ["1.0", "1.0"]
        await t.publish({"a": 1}, "raw")
        assert t.calls(untyped) == [{"a": 1}]


async def test_two_brokers_are_both_replaced_and_both_looked_at() -> None:
    one, two = Broker("memory://a"), Broker("memory://b")
    app = App("shop", [one, two])

    @app.subscriber("x")
    async def on_one(n: int, broker: Broker) -> None:
        await two.publish(n, "x")

    @two.subscriber("x")
    @two.publisher("y")
    async def on_two(n: int) -> int:
        return n

    async with TestApp(app) as t:
        await t.publish(1, "x")
        assert t.calls(on_two) == [1]
        assert [m.value for m in t.published("y")] == [1]


async def test_hooks_and_topics_of_the_app_work_as_ever() -> None:
    steps: list[str] = []
    app = App("shop", topics=[Topic("orders", partitions=2)], on_startup=[lambda: steps.append("on_startup")])

    @app.after_startup
    async def seed() -> None:
        await app.publish(1, "orders")

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        steps.append("handle")

    async with TestApp(app) as t:
        await t.settle()
        assert (await app.admin.topics.describe("orders")).partitions == 2
    assert steps == ["on_startup", "handle"]


async def test_a_start_that_fails_leaves_the_app_as_it_was() -> None:
    broker = Broker("memory://own")
    app = App("shop", broker, on_startup=[lambda: 1 / 0])
    engine = broker.engine
    with pytest.raises(ZeroDivisionError):
        async with TestApp(app):
            pass
    assert broker.engine is engine
    assert app.watcher is None


async def test_a_second_test_of_the_same_app_starts_empty() -> None:
    app = App("shop", "memory://own")

    @app.subscriber("orders", start="earliest")
    async def handle(n: int) -> None: ...

    for _ in range(2):
        async with TestApp(app) as t:
            await t.publish(1, "orders")
            assert t.calls(handle) == [1]
            assert len(t.published("orders")) == 1


def make_app() -> tuple[App, Callable[..., Any]]:
    app = App("shop")

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=(5, 5)))
    @app.publisher("done")
    async def handle(n: int, tag: str = Depends(lambda: "real")) -> int:
        if n == 13:
            raise ValueError("thirteen")
        return n * 2

    return app, handle


def test_a_synchronous_test_needs_no_await() -> None:
    app, handle = make_app()
    with TestApp(app) as t:
        assert t.publish(1, "orders").topic == "orders"
        assert t.calls(handle) == [1]
        assert [m.value for m in t.published("done")] == [2]
        t.publish(13, "orders")
        with pytest.raises(ValueError, match="thirteen"):
            t.advance(60)
        assert len(t.dead("orders")) == 1
        assert t.request(4, "orders").value == 8
        with t.override(handle, handle):
            t.settle()
    assert not app.is_ready


def test_a_synchronous_test_may_run_again() -> None:
    app, handle = make_app()
    for _ in range(2):
        with TestApp(app) as t:
            t.publish(1, "orders")
            assert t.calls(handle) == [1]


def test_a_start_that_fails_is_raised_in_a_synchronous_test_too() -> None:
    app = App("shop", on_startup=[lambda: 1 / 0])
    with pytest.raises(ZeroDivisionError), TestApp(app):
        pass


def test_the_fixture_of_the_package_starts_an_app(test_app: Callable[[App], SyncTestApp]) -> None:
    app, handle = make_app()
    t = test_app(app)
    t.publish(1, "orders")
    assert t.calls(handle) == [1]


def test_the_clock_fires_in_order_and_no_timer_that_was_cancelled() -> None:
    clock, fired = VirtualClock(), list[str]()
    start = clock.time()
    clock.call_later(2, lambda: fired.append("b"))
    clock.call_later(1, lambda: fired.append("a"))
    clock.call_later(1, lambda: fired.append("never")).cancel()
    clock.call_later(5, lambda: fired.append("later"))
    while clock.fire_next(start + 3):
        pass
    clock.stand_at(start + 3)
    assert fired == ["a", "b"]
    assert clock.time() == start + 3


# --- engines that take messages back ------------------------------------------------------------------


async def test_what_a_subscriber_gives_back_when_it_ends_waits_for_the_clock(less_capable: Any) -> None:
    app, seen = App("shop", less_capable(nack=True, delayed_nack=True, partitions=False)), list[tuple[str, int]]()

    async def first(n: int) -> None:
        seen.append(("first", n))
        raise Retry.later(30)

    async def second(n: int, message: Message) -> None:
        seen.append(("second", message.attempt))

    async with TestApp(app) as t:
        async with app.subscribe("orders", first):
            await t.publish(1, "orders")
            await t.advance(10)
        async with app.subscribe("orders", second):
            await t.advance(19)
            assert seen == [("first", 1)]
            await t.advance(1)
            assert seen == [("first", 1), ("second", 2)]
        assert (await app.admin.groups.lag("shop", "orders")).total == 0


async def test_what_is_rejected_is_let_go_of(less_capable: Any) -> None:
    app = App("shop", less_capable(reject=True))

    @app.subscriber("orders", dead_letter=False)
    async def handle(n: int) -> None:
        raise Reject("of no use")

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert t.dead("orders") == []
        assert (await app.admin.groups.lag("shop", "orders")).total == 0


async def test_a_delay_that_the_replaced_engine_could_not_keep_is_refused(less_capable: Any) -> None:
    async with TestApp(App("shop", less_capable(delayed_send=False))) as t:
        with pytest.raises(NotSupportedError, match="delay"):
            await t.publish(1, "orders", delay=5)


async def test_a_test_starts_no_services() -> None:
    app = App("shop", broker="memory://", services=[Service("child", ["/does/not/exist"])])
    async with TestApp(app):
        assert app.is_ready
