"""The memory engine keeps the contract."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from headwater import Broker, MemoryBroker
from headwater.engine import Ack, Source
from headwater.engines.memory import CAPABILITIES, MemoryEngine
from headwater.testing.contract import EngineContract, MakeBroker
from headwater.testing.contract.needs import FIXTURES, able, needs_of

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
