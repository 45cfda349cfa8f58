"""The Kafka engine keeps the contract on a real server, whichever way its groups share partitions."""

from __future__ import annotations

import pytest

from headwater import KafkaBroker
from headwater.testing.contract import EngineContract, MakeBroker, Restart
from servers.kafka import KafkaServer


class TestKafka(EngineContract):
    @pytest.fixture
    def make_broker(self, kafka_server: KafkaServer) -> MakeBroker:
        return lambda: KafkaBroker(kafka_server.url, partitions=4)

    @pytest.fixture
    def restart(self, kafka_server: KafkaServer) -> Restart:
        return kafka_server.restart


class TestKafkaEager(TestKafka):
    @pytest.fixture
    def make_broker(self, kafka_server: KafkaServer) -> MakeBroker:
        return lambda: KafkaBroker(kafka_server.url, partitions=4, rebalance="eager")
