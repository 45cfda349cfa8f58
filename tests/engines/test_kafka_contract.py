"""The Kafka engine keeps the contract on a real server, whichever way its groups share partitions."""

from __future__ import annotations

import pytest

from headwater import Broker, KafkaBroker, Outgoing
from headwater.testing.contract import EngineContract, MakeBroker, Restart
from headwater.testing.contract.tools import QUIET, both_joined, reading, shared, taken
from servers.kafka import KafkaServer

pytestmark = pytest.mark.server


class TestKafka(EngineContract):
    @pytest.fixture
    def make_broker(self, kafka_server: KafkaServer) -> MakeBroker:
        return lambda: KafkaBroker(kafka_server.url, partitions=4)

    @pytest.fixture
    def restart(self, kafka_server: KafkaServer) -> Restart:
        return kafka_server.restart

    @pytest.fixture
    def limit(self) -> int:
        return 1_048_588  # the server's own default


class TestKafkaEager(TestKafka):
    @pytest.fixture
    def make_broker(self, kafka_server: KafkaServer) -> MakeBroker:
        return lambda: KafkaBroker(kafka_server.url, partitions=4, rebalance="eager")

    async def test_who_leaves_gives_its_messages_to_the_others(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        """Who stays gives all up for a moment, too, and what it had not acknowledged comes again."""
        async with make_broker() as other, reading(broker, topic, group) as one:
            leaving = reading(other, topic, group)
            two = await leaving.__aenter__()
            await both_joined(broker, topic, one, two)
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(100)])
            await shared(one, two, 100, acknowledge=False)
            await leaving.__aexit__(None, None, None)
            assert {message.value for message in await taken(one, 100)} == set(range(100))

    async def test_a_pattern_matches_topics_that_come_later(self, broker: Broker, topic: str, group: str) -> None:
        """What is not acknowledged comes again with each topic that is found, so what is new is looked for."""
        seen = set[str]()
        async with reading(broker, f"{topic}.{{region}}.x", group) as place:
            for name in (f"{topic}.eu.x", f"{topic}.us.x", f"{topic}.x", f"{topic}.eu.y", f"{topic}.a.b.x"):
                await broker.publish(name, name)
            while len(seen) < 2:
                seen |= {message.value for message in await taken(place, 1)}
            assert seen == {f"{topic}.eu.x", f"{topic}.us.x"}
            while messages := await place.receive(10, QUIET):
                assert {message.value for message in messages} <= seen
