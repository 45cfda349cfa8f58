"""Managing topics, partitions, groups and the cluster: one meaning on all engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from headwater import (
    App,
    Broker,
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    Health,
    NotSupportedError,
    Outgoing,
    Topic,
    TopicNameError,
    TopicNotFoundError,
)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker("memory://") as broker:
        await broker.admin.topics.create("orders", partitions=2, retention=timedelta(days=7))
        await broker.publish_many([Outgoing(n, "orders", partition=n % 2) for n in range(10)])
        yield broker


async def test_topics_are_created_listed_described_altered_and_deleted(broker: Broker) -> None:
    topics = broker.admin.topics
    await topics.create("orders", partitions=99)  # it is there: it stays as it is
    (info,) = await topics.list()
    assert (info.name, info.partitions, info.messages, info.size) == ("orders", 2, 10, 10)
    assert info.retention == timedelta(days=7)
    with pytest.raises(FrozenInstanceError):
        info.name = "other"  # type: ignore[misc]  # that is what is tested
    await topics.alter("orders", retention=timedelta(hours=1), retention_bytes=100)
    info = await topics.describe("orders")
    assert (info.retention, info.retention_bytes) == (timedelta(hours=1), 100)
    await topics.delete("orders")
    assert await topics.list() == []
    for call in (topics.describe, topics.delete, topics.alter, topics.purge):
        with pytest.raises(TopicNotFoundError):
            await call("orders")  # type: ignore[operator]  # each takes a name
    with pytest.raises(TopicNameError):
        await topics.create(" bad ")


async def test_topics_headwater_made_for_itself_are_listed_on_demand(broker: Broker) -> None:
    await broker.publish(1, "orders.dead")
    assert [topic.name for topic in await broker.admin.topics.list()] == ["orders"]
    assert [topic.name for topic in await broker.admin.topics.list(internal=True)] == ["orders", "orders.dead"]


async def test_purging_makes_messages_unreadable_up_to_offsets_a_time_or_all(broker: Broker) -> None:
    await broker.admin.topics.purge("orders", before={0: 3})
    first, second = await broker.admin.partitions.list("orders")
    assert (first.earliest, first.latest, first.messages) == (3, 5, 2)
    assert (second.earliest, second.messages) == (0, 5)
    await broker.admin.topics.purge("orders", before=datetime(2020, 1, 1, tzinfo=UTC))
    assert (await broker.admin.topics.describe("orders")).messages == 7
    await broker.admin.topics.purge("orders")
    assert (await broker.admin.topics.describe("orders")).messages == 0


async def test_partitions_grow_and_do_not_shrink(broker: Broker) -> None:
    await broker.admin.partitions.add("orders", 5)
    assert [p.partition for p in await broker.admin.partitions.list("orders")] == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigurationError):
        await broker.admin.partitions.add("orders", 3)
    with pytest.raises(TopicNotFoundError):
        await broker.admin.partitions.list("missing")


async def test_the_lag_of_a_group_is_what_it_has_still_to_do(broker: Broker) -> None:
    for _ in range(3):
        await broker.get("orders", group="audit")
    lag = await broker.admin.groups.lag("audit", "orders")
    assert lag.total == 7
    assert [p.latest for p in lag.partitions] == [5, 5]
    assert sum(p.lag for p in lag.partitions) == 7
    assert (await broker.admin.groups.lag("audit")).total == 7
    with pytest.raises(GroupNotFoundError, match="nobody"):
        await broker.admin.groups.lag("nobody")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"to": "earliest"}, {0: 0, 1: 0}),
        ({"to": "latest"}, {0: 5, 1: 5}),
        ({"to": 3}, {0: 3, 1: 3}),
        ({"to": 99}, {0: 5, 1: 5}),
        ({"to": {1: 4}}, {1: 4}),
        ({"to": datetime(2020, 1, 1, tzinfo=UTC)}, {0: 0, 1: 0}),
        ({"shift": -2}, {0: 3, 1: 3}),
        ({"shift": -100}, {0: 0, 1: 0}),
    ],
)
async def test_a_group_is_reset_within_what_is_kept(
    broker: Broker, how: dict[str, Any], expected: dict[int, int]
) -> None:
    for _ in range(10):
        await broker.get("orders", group="audit")
    groups = broker.admin.groups
    assert await groups.reset("audit", "orders", dry_run=True, **how) == expected
    assert (await groups.lag("audit")).total == 0
    assert await groups.reset("audit", "orders", **how) == expected
    assert (await groups.lag("audit")).total == sum(5 - offset for offset in expected.values())


async def test_a_reset_says_what_it_needs(broker: Broker) -> None:
    await broker.get("orders", group="audit")
    with pytest.raises(ValueError, match="to= or shift="):
        await broker.admin.groups.reset("audit", "orders")
    with pytest.raises(GroupNotFoundError):
        await broker.admin.groups.reset("nobody", "orders", to="earliest")
    with pytest.raises(TopicNotFoundError):
        await broker.admin.groups.reset("audit", "missing", to="earliest")


async def test_groups_show_their_members_and_are_left_alone_while_these_live(broker: Broker) -> None:
    app = App("shop", broker)

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with app:
        group = await app.admin.groups.describe("shop")
        assert group.active
        assert group.topics == ("orders",)
        assert group.members[0].partitions == (("orders", 0), ("orders", 1))
        with pytest.raises(ConfigurationError, match="live member"):
            await app.admin.groups.reset("shop", "orders", to="earliest")
        with pytest.raises(ConfigurationError, match="live member"):
            await app.admin.groups.delete("shop")
    await broker.connect()
    assert not (await broker.admin.groups.describe("shop")).active
    await broker.admin.groups.delete("shop")
    assert await broker.admin.groups.list() == []
    with pytest.raises(GroupNotFoundError):
        await broker.admin.groups.describe("shop")


async def test_a_topic_deleted_and_made_again_begins_anew_for_its_consumer(broker: Broker) -> None:
    from waiting import until

    app, got = App("shop", broker), []

    @app.subscriber("orders")
    async def handle(body: str) -> None:
        got.append(body)

    async with app:
        await app.publish("one", "orders")
        await until(lambda: got == ["one"])
        await app.admin.topics.delete("orders")
        await app.publish("two", "orders")
        await until(lambda: got == ["one", "two"])


async def test_the_cluster_is_described_and_well(broker: Broker) -> None:
    cluster = await broker.admin.cluster.describe()
    assert cluster.engine == "memory"
    assert len(cluster.nodes) == 1
    health = await broker.admin.cluster.health()
    assert health.healthy
    assert health.problems == ()


async def test_what_an_engine_cannot_do_says_so_and_shows_in_the_capabilities(broker: Broker) -> None:
    engine_admin: Any = broker.engine.admin
    assert all(broker.admin.capabilities.values())
    engine_admin.operations = engine_admin.operations - {"lag", "add_partitions"}
    assert not broker.admin.capabilities["lag"]
    with pytest.raises(NotSupportedError) as caught:
        await broker.admin.groups.lag("audit")
    assert (caught.value.engine, caught.value.operation) == ("memory", "lag")


async def test_an_engine_without_administration_says_so() -> None:
    broker = Broker("memory://")
    async with broker:
        broker.engine.admin = None  # type: ignore[misc]  # as an engine without one has it
        with pytest.raises(NotSupportedError, match="administration"):
            _ = broker.admin


async def test_a_reset_of_what_is_not_there_is_refused(broker: Broker) -> None:
    await broker.get("orders", group="audit")
    with pytest.raises(TopicNotFoundError, match=r"'orders\[9\]'.*it has 2 partitions, from 0 on"):
        await broker.admin.groups.reset("audit", "orders", to={0: 1, 9: 1})
    with pytest.raises(ConfigurationError, match="'17-0' is no offset of memory: they are numbers"):
        await broker.admin.groups.reset("audit", "orders", to="17-0")
    with pytest.raises(ConfigurationError, match="is no offset of memory"):
        await broker.admin.topics.purge("orders", before={0: "17-0"})


# --- a set of topics ----------------------------------------------------------------------------------


async def test_what_is_missing_or_differs_is_shown_and_then_mended(broker: Broker) -> None:
    wanted = [
        Topic("orders", partitions=4, retention=timedelta(days=1)),
        Topic("invoices", partitions=3),
    ]
    changes = await broker.admin.ensure(wanted, dry_run=True)
    assert [str(change) for change in changes] == [
        "grow orders: partitions 2 → 4",
        "alter orders: retention 7 days, 0:00:00 → 1 day, 0:00:00",
        "create invoices: partitions None → 3",
    ]
    assert [topic.name for topic in await broker.admin.topics.list()] == ["orders"]
    assert await broker.admin.ensure(wanted) == changes
    assert await broker.admin.ensure(wanted) == []
    invoices, orders = await broker.admin.topics.list()
    assert (invoices.partitions, orders.partitions, orders.retention) == (3, 4, timedelta(days=1))


async def test_what_is_not_wanted_otherwise_stays_as_it_is(broker: Broker) -> None:
    await broker.admin.topics.alter("orders", retention=timedelta(days=7), retention_bytes=1000)
    await broker.admin.ensure([Topic("orders", retention_bytes=2000)])
    info = await broker.admin.topics.describe("orders")
    assert (info.partitions, info.retention, info.retention_bytes) == (2, timedelta(days=7), 2000)


async def test_topics_are_deleted_only_if_that_is_asked_for_and_never_those_headwater_made(broker: Broker) -> None:
    await broker.publish(1, "orders.dead")
    await broker.admin.topics.create("others")
    assert await broker.admin.ensure([Topic("orders")]) == []
    (change,) = await broker.admin.ensure([Topic("orders")], delete=True)
    assert str(change) == "delete others"
    assert [topic.name for topic in await broker.admin.topics.list(internal=True)] == ["orders", "orders.dead"]


async def test_partitions_that_would_have_to_go_are_refused_before_anything_is_done(broker: Broker) -> None:
    with pytest.raises(ConfigurationError, match="has 2 partitions, and 1 are wanted"):
        await broker.admin.ensure([Topic("invoices"), Topic("orders", partitions=1)])
    assert [topic.name for topic in await broker.admin.topics.list()] == ["orders"]


# --- watching -----------------------------------------------------------------------------------------


async def test_the_lag_of_a_group_is_watched_with_its_rates(broker: Broker) -> None:
    assert await broker.get("orders", group="audit")
    watching = broker.admin.watch_lag("audit", every=0.02)
    first = await anext(watching)
    assert (first.total, first.published, first.handled, first.remaining) == (9, None, None, None)
    for _ in range(4):
        await broker.get("orders", group="audit")
    await broker.publish(1, "orders")
    second = await anext(watching)
    assert second.total == 6
    assert second.published is not None
    assert second.handled is not None
    assert second.handled == pytest.approx(4 * second.published)
    assert second.remaining == pytest.approx(6 / (3 * second.published))
    while await broker.get("orders", group="audit", timeout=0):
        pass
    assert (await anext(watching)).remaining == 0
    with pytest.raises(GroupNotFoundError):
        await anext(broker.admin.watch_lag("nobody"))


async def test_the_health_of_a_cluster_is_told_when_it_changes(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [Health(), Health(), ConnectError("memory://", "it is away"), Health(), Health(("a disk is full",))]

    async def health(_: object) -> Health:
        match said.pop(0):
            case Health() as health:
                return health
            case error:
                raise error

    monkeypatch.setattr(type(broker.engine.admin), "health", health)
    watching = broker.admin.watch_cluster(every=0)
    seen = [(await anext(watching)).problems for _ in range(4)]
    assert seen == [(), ("cannot connect to memory://: it is away",), (), ("a disk is full",)]
