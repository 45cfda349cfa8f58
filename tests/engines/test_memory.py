"""The memory engine keeps the contract."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from headwater import Broker, ConfigurationError, GroupNotFoundError, MemoryBroker, Outgoing, TopicNotFoundError
from headwater.engine import Ack, Source
from headwater.engines.memory import CAPABILITIES, MemoryEngine
from headwater.testing.contract import EngineContract, MakeBroker
from headwater.testing.contract.needs import FIXTURES, able, needs_of
from headwater.testing.contract.tools import reading

from .lagging import lag_is_right_under_load

_names = itertools.count()


class TestMemory(EngineContract):
    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        name = f"contract-{next(_names)}"
        return lambda: MemoryBroker(name)


def variant(**changes: Any) -> MakeBroker:
    """Makes brokers on one store, whose engine says that its capabilities are others."""
    name, capabilities = f"contract-{next(_names)}", msgspec.structs.replace(CAPABILITIES, **changes)

    def make() -> Broker:
        broker = Broker()
        broker.replace_engine(MemoryEngine(name, capabilities=lambda _source: capabilities))
        return broker

    return make


class TestMemoryLikeALog(EngineContract):
    """As what acknowledges up to an offset."""

    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        return variant(ack=Ack.UP_TO, delayed_send=False, atomic_commit=False)


class TestMemoryLikeAQueue(EngineContract):
    """As what has no partitions and takes messages back."""

    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        return variant(
            nack=True,
            delayed_nack=True,
            reject=True,
            lease=0.3,
            keys=False,
            partitions=False,
            exclusive=False,
            atomic_commit=False,
        )


class TestMemoryThatStoresNothing(EngineContract):
    """As what only passes messages on."""

    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        return variant(
            ack=Ack.NONE,
            counts_deliveries=False,
            keys=False,
            partitions=False,
            patterns=False,
            replay=False,
            atomic_commit=False,
        )


def test_every_need_is_a_capability_or_a_fixture() -> None:
    tests = [getattr(EngineContract, name) for name in dir(EngineContract) if name.startswith("test_")]
    named = {need for test in tests for need in needs_of(test)} - FIXTURES
    broker = Broker("memory://")
    can = broker.engine.capabilities(Source(topics=("t",)))
    assert named
    assert all(able(need, can, broker) in (True, False) for need in named)


async def test_lag_is_right_under_load() -> None:
    async with MemoryBroker() as broker:
        await broker.admin.topics.create("orders", partitions=2)
        await lag_is_right_under_load(broker, "orders", "shop", 5000, behind=0)


async def test_what_administration_says_is_what_the_store_has() -> None:
    async with MemoryBroker("a store") as broker:
        await broker.admin.topics.create("orders", partitions=1, retention_bytes=1000)
        await broker.publish_many([Outgoing(b"12345", "orders") for _ in range(4)])
        info, (records,) = await broker.admin.topics.describe("orders"), broker.engine.store.topics["orders"]  # type: ignore[attr-defined]  # it is memory's
        assert (info.messages, info.size) == (len(records.records), sum(len(record.body) for record in records.records))
        assert (info.config, info.replicas, info.compacted) == ({"store": "a store"}, 1, False)
        assert await broker.get("orders", group="shop") is not None
        await broker.admin.topics.purge("orders", before={0: 3})
        assert (records.earliest, records.latest) == (3, 4)
        assert (await broker.admin.groups.lag("shop")).total == 1  # what was purged is nobody's to do
        with pytest.raises(TopicNotFoundError, match=r"orders\[5\]"):
            await broker.admin.topics.purge("orders", before={5: 1})
        await broker.admin.topics.create("bills")
        with pytest.raises(GroupNotFoundError, match=r"shop.*bills"):
            await broker.admin.groups.lag("shop", "bills")


async def test_a_group_with_members_is_left_alone_and_they_are_named() -> None:
    async with MemoryBroker() as broker:
        await broker.publish(1, "orders")
        async with reading(broker, "orders", "shop"):
            for call in (
                broker.admin.groups.reset("shop", "orders", to="earliest"),
                broker.admin.groups.delete("shop"),
            ):
                with pytest.raises(ConfigurationError, match=r"'shop' has 1 live member.*headwater.*stop them"):
                    await call
