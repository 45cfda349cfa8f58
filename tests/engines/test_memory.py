"""The memory engine keeps the contract."""

from __future__ import annotations

import itertools

import pytest

from headwater import Broker, MemoryBroker
from headwater.testing.contract import NEEDS, EngineContract, MakeBroker

_names = itertools.count()


class TestMemory(EngineContract):
    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        name = f"contract-{next(_names)}"
        return lambda: MemoryBroker(name)


def test_every_need_names_a_test_and_a_capability() -> None:
    tests = {name.removeprefix("test_") for name in vars(EngineContract) if name.startswith("test_")}
    assert set(NEEDS) <= tests
    broker = Broker("memory://")
    from headwater.engine import Source
    from headwater.testing.contract import _able

    can = broker.engine.capabilities(Source(topics=("t",)))
    for need in {need for needs in NEEDS.values() for need in needs} - {"restart"}:
        assert _able(need, can, broker) in (True, False)
