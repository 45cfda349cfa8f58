"""The RabbitMQ engine keeps the contract on a real server, with the kinds of queues there are."""

from __future__ import annotations

import pytest

from headwater import RabbitBroker
from headwater.testing.contract import EngineContract, MakeBroker, Restart
from servers.rabbit import RabbitServer

pytestmark = pytest.mark.server


class TestRabbit(EngineContract):
    @pytest.fixture
    def make_broker(self, rabbit_server: RabbitServer) -> MakeBroker:
        return lambda: RabbitBroker(rabbit_server.url)

    @pytest.fixture
    def restart(self, rabbit_server: RabbitServer) -> Restart:
        return rabbit_server.restart


class TestRabbitWithClassicQueues(TestRabbit):
    @pytest.fixture
    def make_broker(self, rabbit_server: RabbitServer) -> MakeBroker:
        return lambda: RabbitBroker(rabbit_server.url, queue_type="classic")


class TestRabbitWithStreams(TestRabbit):
    @pytest.fixture
    def make_broker(self, rabbit_server: RabbitServer) -> MakeBroker:
        return lambda: RabbitBroker(rabbit_server.url, queue_type="stream")
