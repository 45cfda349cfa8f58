"""Handlers declared without a broker: prefixes, nesting, publishers, options."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from headwater import App, Batch, Broker, ConfigurationError, Message, Retry, Router, TestApp


async def test_prefixes_concatenate_for_subscribers_and_publishers() -> None:
    app, outer, inner = App("shop"), Router("eu."), Router("orders.")

    @inner.subscriber("created")
    @inner.publisher("billed")
    async def handle(body: int, message: Message) -> str:
        return message.topic

    outer.include_router(inner)
    app.include_router(outer)
    async with TestApp(app) as t:
        await t.publish(1, "eu.orders.created")
        assert [m.value for m in t.published("eu.orders.billed")] == ["eu.orders.created"]


async def test_what_is_declared_after_the_router_was_included_counts_too() -> None:
    app, router = App("shop"), Router()
    app.include_router(router)

    @router.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert t.calls(handle) == [1]


async def test_a_router_included_twice_publishes_under_each_prefix_once() -> None:
    app, router = App("shop"), Router()

    @router.subscriber("in")
    @router.publisher("out")
    async def handle(body: int) -> int:
        return body

    for prefix in ("a.", "b."):
        around = Router(prefix)
        around.include_router(router)
        app.include_router(around)
    async with TestApp(app) as t:
        await t.publish(1, "a.in")
        await t.publish(2, "b.in")
        assert [m.value for m in t.published("a.out")] == [1]
        assert [m.value for m in t.published("b.out")] == [2]


async def test_a_publisher_of_the_app_belongs_to_a_subscriber_of_its_router_and_the_other_way_round() -> None:
    app, router = App("shop"), Router("r.")

    @app.publisher("plain")
    @router.subscriber("in")
    @router.publisher("out")
    async def inside(body: int) -> int:
        return body

    @router.publisher("late")
    @app.subscriber("direct")
    async def outside(body: int) -> int:
        return body

    app.include_router(router)
    async with TestApp(app) as t:
        await t.publish(1, "r.in")
        await t.publish(2, "direct")
        published = {topic: [m.value for m in t.published(topic)] for topic in ("plain", "r.out", "r.late")}
    assert published == {"plain": [1], "r.out": [1], "r.late": [2]}


async def test_a_function_may_subscribe_more_than_once() -> None:
    app, got = App("shop"), []

    @app.subscriber("a")
    @app.subscriber("b", "c", group="other")
    async def handle(body: int, message: Message) -> None:
        got.append((message.topic, message.group))

    async with TestApp(app) as t:
        for topic in "abc":
            await t.publish(1, topic)
    assert got == [("a", "shop"), ("b", "other"), ("c", "other")]


async def test_a_publisher_without_a_subscriber_is_refused_at_start() -> None:
    app = App("shop")

    @app.publisher("out")
    async def nobody(body: int) -> int:
        return body

    with pytest.raises(ConfigurationError, match=r"nobody.*subscribes to nothing"):
        async with TestApp(app):
            pass


async def test_the_same_handlers_run_in_several_apps() -> None:
    router = Router()

    @router.subscriber("orders")
    @router.publisher("done")
    async def handle(body: int, app: App) -> str:
        return app.name

    for name in ("one", "two"):
        app = App(name)
        app.include_router(router)
        async with TestApp(app) as t:
            await t.publish(1, "orders")
            assert [m.value for m in t.published("done")] == [name]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"concurrency": 0}, "at least 1"),
        ({"broadcast": True, "group": "g"}, "broadcast"),
        ({"broadcast": True, "exclusive": True}, "broadcast"),
        ({"exactly_once": True, "ack": "manual"}, "exactly_once"),
    ],
)
def test_options_that_contradict_each_other_are_refused_where_they_are_written(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        App("shop").subscriber("orders", **options)


def test_topics_are_needed() -> None:
    with pytest.raises(ConfigurationError, match="topic"):
        Router().subscriber()
    with pytest.raises(ConfigurationError, match="topic"):
        Router().publisher()


def test_wrong_numbers_are_refused_where_they_are_written() -> None:
    for make in (
        lambda: Retry(attempts=0),
        lambda: Retry(backoff=(5, 1)),
        lambda: Retry(backoff=(-1, 1)),
        lambda: Batch(0),
        lambda: Batch(1, -1),
    ):
        with pytest.raises(ValueError):
            make()


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        ("groups", {}),
        ("patterns", {"topics": ("a.{b}",)}),
        ("exclusive", {"exclusive": True}),
        ("replay", {"start": "earliest"}),
        ("atomic_commit", {"exactly_once": True}),
    ],
)
async def test_what_the_engine_cannot_do_is_refused_at_start(
    less_capable: Any, missing: str, options: dict[str, Any]
) -> None:
    from headwater import NotSupportedError

    topics = options.pop("topics", ("orders",))
    app = App("shop", less_capable(**{missing: False}))

    async def handle(body: int) -> None: ...

    app.subscriber(*topics, **options)(handle)
    with pytest.raises(NotSupportedError, match=missing) as caught:
        await app.start()
    assert caught.value.engine == "memory"
    assert "handle" in caught.value.operation


async def test_handlers_on_a_broker_take_routers_too() -> None:
    broker, router, seen = Broker("memory://"), Router("x."), []

    @router.subscriber("orders")
    async def handle(body: int) -> None:
        seen.append(body)

    broker.include_router(router)
    async with TestApp(App("shop", broker)) as t:
        await t.publish(1, "x.orders")
    assert seen == [1]


async def test_title_and_description_come_from_the_function_unless_given() -> None:
    router = Router()

    @router.subscriber("a")
    async def documented(body: int) -> None:
        """Handles a."""

    router.subscriber("b", title="T", description="D")(functools.partial(documented))
    first, second = (subscriber for subscriber, _ in router.declared())
    assert first.description == "Handles a."
    assert (second.title, second.description) == ("T", "D")
