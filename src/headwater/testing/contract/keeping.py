"""What is still there after a new connection and after a restart."""

from __future__ import annotations

from ...app import App
from ...broker import Broker
from ...engine import Topic
from ...message import Outgoing
from .needs import needs
from .tools import MakeBroker, Restart, reading, settled, taken


class Keeping:
    """What is still there after a new connection and after a restart."""

    @needs("durable", "replay")
    async def test_what_was_accepted_survives_a_new_connection(self, make_broker: MakeBroker, topic: str) -> None:
        async with make_broker() as broker:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
        async with make_broker() as broker, broker.stream(topic, start="earliest", limit=10) as stream:
            assert [message.value async for message in stream] == list(range(10))

    @needs("groups", "settles", "durable")
    async def test_positions_survive_a_new_connection(self, make_broker: MakeBroker, topic: str, group: str) -> None:
        async with make_broker() as broker:
            await broker.declare([Topic(topic)])
            async with reading(broker, topic, group) as place:
                await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
                await place.ack((await taken(place, 10))[:7])
        async with make_broker() as broker, reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 3)] == [7, 8, 9]

    @needs("groups", "settles", "durable", "restart")
    async def test_what_was_accepted_survives_a_restart(
        self, broker: Broker, make_broker: MakeBroker, restart: Restart, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group):
            pass
        await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
        await restart()
        async with make_broker() as later, reading(later, topic, group) as place:
            assert sorted(message.value for message in await taken(place, 10)) == list(range(10))

    @needs("groups", "settles", "durable", "restart")
    async def test_a_consumer_goes_on_after_a_restart(
        self, make_broker: MakeBroker, restart: Restart, topic: str, group: str
    ) -> None:
        app, got = App(group, make_broker()), set[int]()

        @app.subscriber(topic)
        async def handle(n: int) -> None:
            got.add(n)

        async with app:
            await app.publish_many([Outgoing(n, topic) for n in range(5)])
            await settled(lambda: len(got) == 5)
            await restart()
            async with make_broker() as other:
                await other.publish_many([Outgoing(n, topic) for n in range(5, 10)])
            await settled(lambda: len(got) == 10, within=60)
