"""The memory engine keeps the contract."""

from __future__ import annotations

import itertools

import pytest

from headwater import Broker, MemoryBroker
from headwater.engine import Source
from headwater.testing.contract import EngineContract, MakeBroker
from headwater.testing.contract.needs import FIXTURES, able, needs_of

_names = itertools.count()


class TestMemory(EngineContract):
    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        name = f"contract-{next(_names)}"
        return lambda: MemoryBroker(name)


def test_every_need_is_a_capability_or_a_fixture() -> None:
    tests = [getattr(EngineContract, name) for name in dir(EngineContract) if name.startswith("test_")]
    named = {need for test in tests for need in needs_of(test)} - FIXTURES
    broker = Broker("memory://")
    can = broker.engine.capabilities(Source(topics=("t",)))
    assert named
    assert all(able(need, can, broker) in (True, False) for need in named)
