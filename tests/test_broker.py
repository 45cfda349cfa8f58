"""A broker: from a URL to an engine, connecting and closing, one message at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from headwater import (
    App,
    Broker,
    ConfigurationError,
    HeadwaterError,
    LocalBroker,
    MemoryBroker,
    NatsBroker,
    NotConnectedError,
    Outgoing,
    TopicNotFoundError,
)
from headwater.engine import Source
from headwater.engines.memory import MemoryEngine, MemorySubscription


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("orders", "begins with a scheme"),
        ("odd://host", "no engine for odd://"),
        ("memory://?size=5", "memory:// has no options"),
    ],
)
def test_a_url_nobody_understands_is_refused_with_what_is_known(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Broker(url)


def test_engines_of_third_parties_are_found_by_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    from headwater.engines.memory import MemoryEngine

    given: list[Any] = []

    class Point:
        name = "odd"

        def load(self) -> Any:
            def from_url(parts: Any, query: Any) -> MemoryEngine:
                given.extend([parts.netloc, dict(query)])
                return MemoryEngine()

            return from_url

    def entry_points(*, group: str, name: str | None = None) -> list[Any]:
        return [Point()] if group == "headwater.engines" and name in (None, "odd") else []

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    assert isinstance(Broker("odd://host?a=1").engine, MemoryEngine)
    assert given == ["host", {"a": "1"}]


async def test_an_engine_is_closed_although_one_of_its_streams_cannot_be_left() -> None:
    class Stuck(MemoryEngine):
        closed = False

        @asynccontextmanager
        async def _reader(self, source: Source) -> AsyncIterator[MemorySubscription]:
            async with super()._reader(source) as reader:
                yield reader
            raise ConnectionError("away")

        async def close(self) -> None:
            self.closed = True

    broker, engine = Broker(), Stuck()
    broker.replace_engine(engine)
    await broker.connect()
    await broker.publish(1, "orders")
    stream = broker.stream("orders", start="earliest")
    assert (await anext(stream)).value == 1
    with pytest.raises(ConnectionError, match="away"):
        await broker.close()
    assert engine.closed
    assert not broker.connected


def test_passwords_and_options_do_not_show() -> None:
    broker = Broker("memory://me:secret@host")
    assert "secret" not in repr(broker)
    assert "me" in repr(broker)
    assert "token" not in repr(MemoryBroker("token@host"))  # nats:// takes one in the place of a name


async def test_named_memory_is_shared_in_the_process_and_nameless_memory_private() -> None:
    async def stored(one: Broker, two: Broker) -> int:
        async with one, two:
            await one.publish(1, "orders")
            return len(await two.admin.topics.list())

    assert await stored(Broker("memory://one"), MemoryBroker("one")) == 1
    assert await stored(Broker("memory://"), Broker("memory://")) == 0
    assert await stored(Broker("memory://x"), Broker("memory://y")) == 0


async def test_everything_needs_a_connection_and_says_so() -> None:
    broker = Broker("memory://")
    for call in (
        lambda: broker.publish(1, "a"),
        lambda: broker.publish(1, "a", confirm=False),
        lambda: broker.publish_many([Outgoing(1, "a")]),
        lambda: broker.request(1, "a"),
        lambda: broker.get("a"),
        lambda: broker.stream("a").__anext__(),
        lambda: broker.declare([]),
    ):
        with pytest.raises(NotConnectedError):
            await call()
    with pytest.raises(NotConnectedError):
        _ = broker.admin
    unbound = Broker()
    assert not unbound.bound
    with pytest.raises(ConfigurationError, match="bind"):
        await unbound.connect()


async def test_connecting_and_closing_are_idempotent_and_may_be_repeated() -> None:
    broker = Broker("memory://")
    for _ in range(2):
        async with broker:
            await broker.connect()
            assert broker.connected
            await broker.ping()
            await broker.publish(1, "orders")
        await broker.close()
        assert not broker.connected


async def test_get_gives_the_next_message_of_a_group_acknowledged_from_the_earliest_on() -> None:
    async with Broker("memory://") as broker:
        for n in range(3):
            await broker.publish(n, "orders", key="k")
        values = [(await broker.get("orders", group="audit")).value for _ in range(3)]  # type: ignore[union-attr]
        assert values == [0, 1, 2]
        assert await broker.get("orders", group="audit", timeout=0.01) is None
        assert (await broker.admin.groups.lag("audit", "orders")).total == 0
        other = await broker.get("orders", group="other", type=float)
        assert other is not None
        assert (repr(other.value), other.group, other.key) == ("0.0", "other", "k")


async def test_get_without_a_group_waits_for_the_next_message_to_come() -> None:
    async with Broker("memory://") as broker:
        await broker.publish("old", "orders")
        getting = asyncio.create_task(broker.get("orders", timeout=5))
        await asyncio.sleep(0)
        await broker.publish("new", "orders")
        got = await getting
        assert got is not None
        assert got.value == "new"
        with pytest.raises(TopicNotFoundError):
            await broker.get("missing")


async def test_several_getters_of_a_group_share_its_messages() -> None:
    async with Broker("memory://") as broker:
        await broker.publish_many([Outgoing(n, "orders", key=str(n)) for n in range(6)])

        async def three() -> list[Any]:
            return [(await broker.get("orders", group="g", timeout=5)).value for _ in range(3)]  # type: ignore[union-attr]

        one, two = await asyncio.gather(three(), three())
    assert sorted(one + two) == list(range(6))


def test_the_brokers_of_single_engines_are_brokers() -> None:
    assert isinstance(MemoryBroker(), Broker)
    assert issubclass(LocalBroker, Broker)
    assert issubclass(NatsBroker, Broker)
    assert App("shop", MemoryBroker("x")).broker.url == "memory://x"


def test_every_error_is_a_headwater_error() -> None:
    from headwater import errors

    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == errors.__name__:
            assert issubclass(value, HeadwaterError)
            assert value.__name__ in (errors.__doc__ or "")
