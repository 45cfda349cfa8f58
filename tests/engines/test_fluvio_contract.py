"""The Fluvio engine keeps the contract on a real cluster, where there is one."""

from __future__ import annotations

import pytest

from headwater import Broker
from headwater.engines.fluvio import FluvioBroker
from headwater.testing.contract import EngineContract, MakeBroker

pytestmark = pytest.mark.server


class TestFluvio(EngineContract):
    @pytest.fixture
    def make_broker(self, fluvio_endpoint: str) -> MakeBroker:
        def make() -> Broker:
            return FluvioBroker(f"fluvio://{fluvio_endpoint}", partitions=4, session_timeout=3)

        return make

    @pytest.fixture
    def limit(self) -> int:
        return 2_097_152 - 61 - 32  # of a batch, without its head and that of a record
