"""JetStream and core NATS keep the contract, each as far as it promises."""

from __future__ import annotations

import pytest

from headwater import NatsBroker
from headwater.testing.contract import EngineContract, MakeBroker, Restart
from servers.nats import NatsServer

pytestmark = pytest.mark.server


class TestJetStream(EngineContract):
    @pytest.fixture
    def make_broker(self, nats_server: NatsServer) -> MakeBroker:
        return lambda: NatsBroker(nats_server.url)

    @pytest.fixture
    def restart(self, nats_server: NatsServer) -> Restart:
        return nats_server.restart

    @pytest.fixture
    def limit(self) -> int:
        return 1 << 20


class TestCoreNats(EngineContract):
    column = "nats+core"

    @pytest.fixture
    def make_broker(self, nats_server: NatsServer) -> MakeBroker:
        return lambda: NatsBroker(nats_server.url, jetstream=False)

    @pytest.fixture
    def restart(self, nats_server: NatsServer) -> Restart:
        return nats_server.restart

    @pytest.fixture
    def limit(self) -> int:
        return 1 << 20
