"""What every engine is, before a message travels: pure questions, connecting, names."""

from __future__ import annotations

import pytest

from ...broker import Broker
from ...engine import Source, Topic
from ...errors import ConfigurationError, NotConnectedError, TopicNotFoundError
from .needs import needs
from .tools import MakeBroker


class Basics:
    """What every engine is, before a message travels: pure questions, connecting, names."""

    async def test_capabilities_are_pure(self, make_broker: MakeBroker, topic: str) -> None:
        broker, source = make_broker(), Source(topics=(topic,), group="g")
        before = broker.engine.capabilities(source)
        async with broker:
            assert broker.engine.capabilities(source) == before

    async def test_connecting_and_closing_are_idempotent_and_may_be_repeated(
        self, make_broker: MakeBroker, topic: str
    ) -> None:
        broker = make_broker()
        for _ in range(2):
            async with broker:
                await broker.engine.connect()
                await broker.ping()
                await broker.publish(1, topic)
            await broker.engine.close()
        with pytest.raises(NotConnectedError):
            await broker.publish(1, topic)

    async def test_names_it_cannot_carry_are_refused_before_connecting(self, make_broker: MakeBroker) -> None:
        broker = make_broker()
        for name in ("", "a{b}"):
            with pytest.raises(ConfigurationError):
                broker.engine.check_topic(name)
        broker.engine.check_topic("orders")

    @needs("admin.list_topics")
    async def test_a_topic_that_is_not_there_fails_the_check(self, broker: Broker, topic: str) -> None:
        await broker.declare([Topic(topic)], "check")
        with pytest.raises(TopicNotFoundError):
            await broker.declare([Topic(f"{topic}-missing")], "check")
