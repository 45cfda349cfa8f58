"""Dead letters: listed, sent back to the group that gave them up, let go."""

from __future__ import annotations

from typing import Any

import pytest

from headwater import App, Broker, Message, NotSupportedError, Reject, TestApp


def make(group_fails: dict[str, bool]) -> tuple[App, dict[str, list[Any]]]:
    """An app with two groups on `orders`, each failing while it is told to."""
    app, handled = App("shop"), {"shop": list[Any](), "audit": list[Any]()}

    @app.subscriber("orders")
    async def bill(body: Any, message: Message) -> None:
        if group_fails["shop"]:
            raise Reject("not now")
        handled["shop"].append((body, message.key, message.headers.get("x"), message.attempt))

    @app.subscriber("orders", group="audit")
    async def audit(body: Any) -> None:
        if group_fails["audit"]:
            raise Reject("not ever")
        handled["audit"].append(body)

    return app, handled


async def test_letters_are_listed_oldest_first_with_why_they_are_there() -> None:
    app, _ = make({"shop": True, "audit": True})
    async with TestApp(app) as t:
        for n in range(3):
            await t.publish({"n": n}, "orders", key="k", headers={"x": "y"})
        dead = app.admin.dead
        assert await dead.topics() == ["orders.dead"]
        assert len(await dead.list("orders")) == 6
        letters = await dead.list("orders", group="shop")
        assert [letter.original_offset for letter in letters] == ["0", "1", "2"]
        (first, *_) = letters
        assert (first.topic, first.group, first.reason, first.exception) == ("orders", "shop", "not now", None)
        assert (first.attempts, first.key, first.headers["x"], first.body) == (1, "k", "y", b'{"n":0}')
        assert first.timestamp.tzinfo is not None
        assert len(await dead.list("orders", group="shop", limit=2)) == 2
        assert await dead.list("nothing") == []


async def test_letters_are_found_where_partitions_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    fails = {"shop": True, "audit": False}
    app, handled = make(fails)
    async with TestApp(app) as t:
        engine: Any = app.broker.engine
        monkeypatch.setattr(engine.admin, "operations", engine.admin.operations - {"list_partitions"})
        for n in range(3):
            await t.publish(n, "orders")
        assert sorted(letter.body for letter in await app.admin.dead.list("orders")) == [b"0", b"1", b"2"]
        assert await app.admin.dead.list("nothing") == []
        fails["shop"] = False
        assert await app.admin.dead.replay("orders") == 3
        await t.settle()
        assert len(handled["shop"]) == 3
        assert await app.admin.dead.list("orders") == []
        monkeypatch.setattr(engine.admin, "operations", frozenset[str]())
        with pytest.raises(NotSupportedError, match="list_topics"):
            await app.admin.dead.list("orders")


async def test_a_replayed_letter_is_handled_by_the_group_that_gave_it_up_alone_and_leaves_the_list() -> None:
    fails = {"shop": True, "audit": False}
    app, handled = make(fails)
    async with TestApp(app) as t:
        for n in range(2):
            await t.publish(n, "orders", key="k", headers={"x": "y"})
        fails["shop"] = False
        assert await app.admin.dead.replay("orders") == 2
        await t.settle()
        assert handled == {"shop": [(0, "k", "y", 1), (1, "k", "y", 1)], "audit": [0, 1]}
        assert await app.admin.dead.list("orders") == []
        assert await app.admin.dead.replay("orders") == 0
        assert [m.headers["hw-only-group"] for m in t.published("orders")[2:]] == ["shop", "shop"]
        assert not any(name in t.published("orders")[2].headers for name in ("hw-reason", "hw-topic", "hw-attempts"))


async def test_a_letter_that_fails_again_is_on_the_list_again() -> None:
    app, _ = make({"shop": True, "audit": False})
    async with TestApp(app) as t:
        await t.publish(1, "orders", key="k")
        await app.admin.dead.replay("orders")
        await t.settle()
        (letter,) = await app.admin.dead.list("orders")
        assert letter.original_offset == "1"


async def test_single_letters_are_chosen_by_their_place() -> None:
    fails = {"shop": True, "audit": False}
    app, handled = make(fails)
    async with TestApp(app) as t:
        for n in range(3):
            await t.publish(n, "orders", key="k")
        letters = await app.admin.dead.list("orders")
        fails["shop"] = False
        assert await app.admin.dead.replay("orders", offsets=[(letters[1].partition, letters[1].offset)]) == 1
        assert await app.admin.dead.purge("orders", offsets=[(letters[0].partition, letters[0].offset)]) == 1
        await t.settle()
        assert [body for body, *_ in handled["shop"]] == [1]
        assert [letter.body for letter in await app.admin.dead.list("orders")] == [b"2"]


async def test_purged_letters_leave_the_list_for_good() -> None:
    app, _ = make({"shop": True, "audit": True})
    async with TestApp(app) as t:
        await t.publish(1, "orders")
        assert await app.admin.dead.purge("orders", group="audit") == 1
        assert [letter.group for letter in await app.admin.dead.list("orders")] == ["shop"]
        assert await app.admin.dead.purge("orders") == 1
        assert await app.admin.dead.list("orders") == []
        assert len(t.dead("orders")) == 2  # what was published stays to be looked at


async def test_a_replayed_request_is_handled_although_nobody_waits_any_more() -> None:
    app, fails = App("shop"), [True]

    @app.subscriber("prices")
    async def price(sku: str) -> float:
        if fails[0]:
            raise Reject("closed")
        return 1.0

    async with TestApp(app) as t:
        deadline = {"hw-reply-to": "answers", "hw-correlation": "1", "hw-deadline": str(t.clock.time() + 1)}
        await t.publish("chair", "prices", headers=deadline)
        await t.advance(60)
        fails[0] = False
        await app.admin.dead.replay("prices")
        await t.settle()
        assert t.calls(price) == ["chair", "chair"]
        assert len(t.published("answers")) == 1


async def test_letters_of_a_pattern_go_back_to_the_topic_they_came_from() -> None:
    app, fails = App("shop"), [True]

    @app.subscriber("orders.{region}")
    async def handle(body: int, region: str) -> None:
        if fails[0]:
            raise Reject

    async with TestApp(app) as t:
        await t.publish(1, "orders.eu")
        fails[0] = False
        assert await app.admin.dead.replay("orders.eu") == 1
        await t.settle()
        assert t.calls(handle) == [1, 1]


async def test_letters_kept_elsewhere_are_found_with_at() -> None:
    app = App("shop")

    @app.subscriber("orders", dead_letter="graveyard")
    async def handle(body: int) -> None:
        raise Reject

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        (letter,) = await app.admin.dead.list("orders", at="graveyard")
        assert letter.topic == "orders"
        assert await app.admin.dead.purge("orders", at="graveyard") == 1


async def test_letters_are_read_and_sent_back_by_a_broker_without_an_app() -> None:
    app, handled = App("shop", "memory://letters"), []

    @app.subscriber("orders", retry=None)
    async def handle(body: int) -> None:
        raise ValueError

    async with Broker("memory://letters") as broker:
        async with app:
            await broker.publish(1, "orders")
            dead = broker.admin.dead
            from waiting import until

            async def one_letter() -> bool:
                return len(await dead.list("orders")) == 1

            await until(one_letter)
        assert await dead.replay("orders") == 1
        handled.append(await broker.get("orders", group="shop"))
    assert handled[0].headers["hw-only-group"] == "shop"


@pytest.mark.parametrize("count", [1200])
async def test_many_letters_are_sent_back_in_bursts(count: int) -> None:
    fails = {"shop": True, "audit": False}
    app, handled = make(fails)
    async with TestApp(app) as t:
        from headwater import Outgoing

        await app.publish_many([Outgoing(n, "orders", key=str(n % 7)) for n in range(count)])
        await t.settle()
        fails["shop"] = False
        assert await app.admin.dead.replay("orders") == count
        await t.settle()
        assert sorted(body for body, *_ in handled["shop"]) == list(range(count))
