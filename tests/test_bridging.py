"""Several brokers in one app: messages of one whose results, or dead letters, go to another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from headwater import (
    App,
    Batch,
    Broker,
    ConfigurationError,
    HeadwaterError,
    Message,
    NotConnectedError,
    NotSupportedError,
    Outgoing,
    Retry,
    Router,
    TestApp,
)
from headwater.engine import Ack
from headwater.engines.memory import MemoryEngine, received
from recording import RecordingEngine, recording
from waiting import until

Pair = tuple[Broker, Broker]


@pytest.fixture
def brokers() -> Pair:
    return Broker("memory://"), Broker("memory://")


async def published(broker: Broker, topic: str) -> list[Message]:
    return received(broker.engine.store, topic)  # type: ignore[attr-defined]  # it is memory


async def test_results_go_to_another_broker_and_to_both(brokers: Pair) -> None:
    nats, kafka = brokers
    app = App("bridge", brokers)

    @nats.subscriber("orders.{region}")
    @nats.publisher("seen.{region}")
    @kafka.publisher("orders-{region}", key=lambda n: f"k{n}", headers={"via": "bridge"})
    @kafka.publisher("large", when=lambda n: n > 5)
    async def forward(n: int, region: str) -> int:
        return n

    async with TestApp(app) as t:
        for n in (1, 9):
            await t.publish(n, "orders.eu")
        assert [(m.value, m.key, m.headers["via"]) for m in t.published("orders-eu")] == [
            (1, "k1", "bridge"),
            (9, "k9", "bridge"),
        ]
        assert [m.value for m in t.published("large")] == [9]
        assert [m.value for m in t.published("seen.eu")] == [1, 9]
        assert [m.value for m in await published(kafka, "seen.eu")] == []
        assert [m.value for m in await published(nats, "large")] == []


async def test_a_publisher_of_the_app_takes_results_of_a_handler_on_another_broker(brokers: Pair) -> None:
    first, second = brokers
    app = App("bridge", brokers)

    @app.publisher("from-second")
    @second.subscriber("orders")
    async def forward(n: int) -> int:
        return n

    async with app:
        await second.publish(1, "orders")
        await until(lambda: app.consuming[0].worker.busy == 0 and bool(received(first.engine.store, "from-second")))  # type: ignore[attr-defined]  # memory
        assert await published(second, "from-second") == []


async def test_a_bridge_works_both_ways_and_a_router_brings_its_prefix(brokers: Pair) -> None:
    one, two = brokers
    app, router = App("bridge", brokers), Router("eu.")
    two.include_router(router)
    done = asyncio.Event()

    @one.subscriber("ping")
    @router.publisher("pong")
    async def there(n: int) -> int:
        return n + 1

    @two.subscriber("eu.pong")
    @one.publisher("end")
    async def back(n: int) -> int:
        return n + 1

    @one.subscriber("end")
    async def end(n: int) -> None:
        assert n == 3
        done.set()

    async with app, asyncio.timeout(5):
        await app.publish(1, "ping")
        await done.wait()


async def test_a_generator_and_a_batch_publish_to_the_other_broker(brokers: Pair) -> None:
    one, two = brokers
    app = App("bridge", brokers)

    @one.subscriber("numbers")
    @two.publisher("digits")
    async def split(n: int) -> AsyncIterator[int]:
        for digit in str(n):
            yield int(digit)

    @one.subscriber("words")
    @two.publisher("letters")
    def spell(word: str) -> Iterator[str]:
        yield from word

    @one.subscriber("sums", batch=Batch(3, 5))
    @two.publisher("totals")
    async def add(numbers: list[int]) -> int:
        return sum(numbers)

    async with TestApp(app) as t:
        await t.publish(123, "numbers")
        await t.publish("ab", "words")
        for n in range(3):
            await t.publish(n, "sums", partition=0)
        await t.advance(5)
        assert [m.value for m in await published(two, "digits")] == [1, 2, 3]
        assert [m.value for m in await published(two, "letters")] == ["a", "b"]
        assert [m.value for m in await published(two, "totals")] == [3]


async def test_a_message_is_done_only_when_the_other_broker_has_its_result() -> None:
    one, source = recording()
    two = Broker("memory://")
    app, refusals, calls = App("bridge", [one, two]), [HeadwaterError("full")] * 2, list[int]()
    send = two.engine.send

    def refuse(messages: Any) -> Any:
        if refusals and messages[0].topic == "results":
            raise refusals.pop()
        return send(messages)

    two.engine.send = refuse  # type: ignore[method-assign]  # refuses what it is told to

    @one.subscriber("orders", retry=Retry(attempts=3, backoff=(0.001, 0.001)))
    @two.publisher("results")
    async def forward(n: int) -> int:
        calls.append(n)
        assert source.calls("ack") == []
        return n

    async with app:
        await app.publish(7, "orders")
        await until(lambda: bool(source.calls("ack")))
        assert [m.value for m in await published(two, "results")] == [7]
    assert calls == [7, 7, 7]


async def test_dead_letters_may_go_to_another_broker(brokers: Pair) -> None:
    one, two = brokers
    app = App("bridge", brokers)

    @one.subscriber("orders", retry=None, dead_letter=(two, "lost-orders"))
    async def handle(n: int) -> None:
        raise ValueError("never")

    async with TestApp(app) as t:
        with pytest.raises(ValueError):
            await t.publish(1, "orders", key="k", headers={"a": "b"})
        (letter,) = await published(two, "lost-orders")
        assert (letter.value, letter.key, letter.headers["a"]) == (1, "k", "b")
        assert letter.headers["hw-exception"] == "ValueError: never"
        assert (letter.headers["hw-topic"], letter.headers["hw-group"]) == ("orders", "bridge")
        assert t.dead("orders") == []
        assert await published(one, "lost-orders") == []


async def test_a_dead_letter_the_other_broker_does_not_take_leaves_the_message_unacknowledged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, source = recording()
    two, elsewhere = recording()
    app = App("bridge", [one, two])

    def away(messages: Any) -> Any:
        raise NotConnectedError("two")

    elsewhere.send = away  # type: ignore[method-assign]  # it is away

    @one.subscriber("orders", retry=None, dead_letter=(two, "lost-orders"))
    async def handle(n: int) -> None:
        raise ValueError("never")

    async with app:
        await app.publish(1, "orders")
        await until(lambda: "it stays unacknowledged" in caplog.text)
    assert source.calls("ack") == []
    assert "cannot publish to lost-orders what becomes of orders/0/0" in caplog.text


async def test_letters_on_another_broker_are_replayed_to_where_they_came_from(brokers: Pair) -> None:
    one, two = brokers
    app, fails, good = App("bridge", brokers), [True], list[int]()

    @one.subscriber("orders", retry=None, dead_letter=(two, "lost-orders"))
    async def handle(n: int) -> None:
        if fails[0]:
            raise ValueError
        good.append(n)

    async with app:
        await one.publish_many([Outgoing(n, "orders", key="k") for n in range(3)])
        await until(lambda: len(received(two.engine.store, "lost-orders")) == 3)  # type: ignore[attr-defined]  # memory
        fails[0] = False
        dead = two.admin.dead
        assert [letter.topic for letter in await dead.list("orders", at="lost-orders")] == ["orders"] * 3
        assert await dead.replay("orders", at="lost-orders", to=one) == 3
        await until(lambda: good == [0, 1, 2])
        assert await dead.list("orders", at="lost-orders") == []
        assert "orders" not in {topic.name for topic in await two.admin.topics.list()}


async def test_results_for_a_broker_that_is_not_the_apps_are_named_at_start(caplog: pytest.LogCaptureFixture) -> None:
    one, stranger = Broker("memory://"), Broker("memory://stranger")
    app = App("bridge", one)

    @stranger.publisher("results")
    @one.subscriber("orders")
    async def handle(n: int) -> int:
        return n

    async with app:
        assert "handle does not publish to 'results' on Broker(memory://stranger)" in caplog.text


async def test_a_broker_that_is_not_the_apps_is_refused_for_dead_letters_with_a_way_out() -> None:
    one, stranger = Broker("memory://"), Broker("memory://stranger")
    app = App("bridge", one)

    @one.subscriber("orders", dead_letter=(stranger, "lost-orders"))
    async def handle(n: int) -> int:
        return n

    with pytest.raises(ConfigurationError, match=r"'lost-orders' on Broker\(memory://stranger\), which is none of"):
        await app.start()


async def test_a_running_app_refuses_a_subscriber_that_sends_elsewhere(brokers: Pair) -> None:
    one, two = brokers

    async def handle(n: int) -> None:
        raise ValueError

    async with App("bridge", one) as app:
        with pytest.raises(ConfigurationError, match="none of the app's brokers"):
            async with app.subscribe("orders", handle, dead_letter=(two, "lost-orders")):
                pass
    lost = "lost-orders"
    async with App("bridge", brokers) as app, app.subscribe("orders", handle, retry=None, dead_letter=(two, lost)):
        assert lost in {topic.name for topic in await two.admin.topics.list()}
        await app.publish(1, "orders")
        await until(lambda: bool(received(two.engine.store, lost)))  # type: ignore[attr-defined]  # memory


async def test_a_publisher_whose_function_subscribes_nowhere_is_refused(brokers: Pair) -> None:
    app = App("bridge", brokers)

    @brokers[1].publisher("results")
    async def lonely(n: int) -> int:
        return n

    with pytest.raises(ConfigurationError, match="lonely publishes to 'results' but subscribes to nothing here"):
        await app.start()


@pytest.mark.parametrize("what", ["publisher", "dead_letter"])
async def test_exactly_once_cannot_span_two_brokers(brokers: Pair, what: str) -> None:
    one, two = brokers
    app = App("bridge", brokers)

    async def handle(n: int) -> int:
        return n

    if what == "publisher":
        two.publisher("results")(handle)
        one.subscriber("orders", exactly_once=True)(handle)
    else:
        one.subscriber("orders", exactly_once=True, dead_letter=(two, "lost"))(handle)
    with pytest.raises(ConfigurationError, match="handle: exactly_once=True cannot span a second broker"):
        await app.start()


async def test_a_name_the_other_engine_cannot_carry_is_refused_at_start(brokers: Pair) -> None:
    one, two = brokers
    app = App("bridge", brokers)

    @one.subscriber("orders", dead_letter=(two, " blanks "))
    async def handle(n: int) -> int:
        return n

    with pytest.raises(ConfigurationError, match="blanks"):
        await app.start()


async def test_a_broker_that_fails_to_close_leaves_no_other_open() -> None:
    closed = list[str]()

    class Closing(MemoryEngine):
        def __init__(self, name: str, *, fails: bool) -> None:
            super().__init__()
            self.title, self.fails = name, fails

        async def close(self) -> None:
            closed.append(self.title)
            if self.fails:
                raise ConnectionError(f"{self.title} is away")

    one, two = Broker(), Broker()
    one.replace_engine(Closing("one", fails=False))
    two.replace_engine(Closing("two", fails=True))
    app = App("bridge", [one, two])
    with pytest.raises(ConnectionError, match="two is away"):
        async with app:
            pass
    assert closed == ["two", "one"]
    assert not one.connected
    assert not two.connected


# --- sources that store nothing -----------------------------------------------------------------------


def passing_on() -> tuple[Broker, RecordingEngine]:
    return recording(ack=Ack.NONE, replay=False, counts_deliveries=False)


@pytest.mark.parametrize(
    "options",
    [{}, {"dead_letter": "lost"}, {"broadcast": True, "dead_letter": True}],
    ids=["group", "named", "broadcast"],
)
async def test_dead_letters_of_a_source_that_stores_nothing_are_refused_with_the_ways_out(
    options: dict[str, Any],
) -> None:
    app = App("shop", passing_on()[0])

    @app.subscriber("orders", **options)
    async def handle(n: int) -> None: ...

    with pytest.raises(NotSupportedError, match=r"dead letters \(.*handle\).*dead_letter=False, or \(broker, topic\)"):
        await app.start()


@pytest.mark.parametrize("options", [{"dead_letter": False}, {"broadcast": True}], ids=["group", "broadcast"])
async def test_without_dead_letters_a_source_that_stores_nothing_is_fine(options: dict[str, Any]) -> None:
    app, got = App("shop", passing_on()[0]), list[int]()

    @app.subscriber("orders", **options)
    async def handle(n: int) -> None:
        got.append(n)

    async with app:
        await app.publish(1, "orders")
        await until(lambda: got == [1])


async def test_a_source_that_stores_nothing_may_have_its_dead_letters_on_a_broker_that_does() -> None:
    one, two = passing_on()[0], Broker("memory://")
    app = App("shop", [one, two])

    @one.subscriber("orders", retry=None, dead_letter=(two, "lost-orders"))
    async def handle(n: int) -> None:
        raise ValueError("never")

    async with TestApp(app) as t:
        with pytest.raises(ValueError):
            await t.publish(1, "orders")
        assert [m.value for m in await published(two, "lost-orders")] == [1]


async def test_a_broadcast_may_have_dead_letters_where_its_broker_stores_them() -> None:
    app = App("shop", "memory://")

    @app.subscriber("orders", broadcast=True, retry=None, dead_letter=True)
    async def handle(n: int) -> None:
        raise ValueError("never")

    async with TestApp(app) as t:
        with pytest.raises(ValueError):
            await t.publish(1, "orders")
        assert [m.value for m in t.dead("orders")] == [1]
