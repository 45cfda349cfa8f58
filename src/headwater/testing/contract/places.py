"""Where reading begins and goes on: partitions, patterns, offsets."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from ...broker import Broker
from ...errors import OffsetOutOfRangeError, TopicNotFoundError
from ...message import Outgoing, Position
from .needs import needs
from .tools import QUIET, MakeBroker, Restart, nothing_more, published_around, reading, taken


class Places:
    """Where reading begins and goes on: partitions, patterns, offsets."""

    @needs("partitions", "replay")
    async def test_a_paused_partition_is_quiet_until_it_is_resumed(self, broker: Broker, topic: str) -> None:
        async with reading(broker, topic, None) as place:
            paused = frozenset({(topic, 0)})
            place.pause(paused)
            await broker.publish_many([Outgoing(n, topic, partition=n % 2) for n in range(10)])
            assert {message.partition for message in await taken(place, 5)} == {1}
            assert await nothing_more(place)
            place.resume(paused)
            assert [message.value for message in await taken(place, 5)] == [0, 2, 4, 6, 8]

    @needs("patterns", "groups")
    async def test_a_pattern_matches_topics_that_come_later(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, f"{topic}.{{region}}.x", group) as place:
            for name in (f"{topic}.eu.x", f"{topic}.us.x", f"{topic}.x", f"{topic}.eu.y", f"{topic}.a.b.x"):
                await broker.publish(name, name)
            assert sorted(message.value for message in await taken(place, 2)) == [f"{topic}.eu.x", f"{topic}.us.x"]
            assert await nothing_more(place)

    @needs("patterns", "groups")
    async def test_a_pattern_never_matches_dead_letters_and_retries(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, f"{topic}.{{rest:path}}", group) as place:
            for name in (f"{topic}.a.dead", f"{topic}.a.g.retry", f"{topic}.a"):
                await broker.publish(name, name)
            assert [message.value for message in await taken(place, 1)] == [f"{topic}.a"]
            assert await nothing_more(place)

    @needs("replay", "partitions")
    async def test_a_reader_can_start_anywhere(self, broker: Broker, topic: str) -> None:
        for n in range(6):
            await broker.publish(n, topic, partition=0)
            if n == 2:
                await asyncio.sleep(0.05)
                moment = datetime.now(UTC)
                await asyncio.sleep(0.05)
        for start, expected in (("earliest", 0), (4, 4), ({0: 5}, 5), (moment, 3)):
            stream = broker.stream(topic, start=start, partitions=[0], limit=6 - expected)
            async with stream:
                assert [message.value async for message in stream] == list(range(expected, 6))

    @needs("replay")
    async def test_a_reader_can_start_at_the_earliest_or_at_a_moment(self, broker: Broker, topic: str) -> None:
        moment = await published_around(broker, topic)
        for start, expected in (("earliest", 0), (moment, 3)):
            async with broker.stream(topic, start=start, limit=6 - expected) as stream:
                assert [message.value async for message in stream] == list(range(expected, 6))

    @needs("replay", "durable", "restart")
    async def test_a_reader_goes_on_where_it_was_after_a_restart(
        self, broker: Broker, make_broker: MakeBroker, restart: Restart, topic: str
    ) -> None:
        async with broker.stream(topic, start="earliest") as stream, asyncio.timeout(60):
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(5)])
            assert [(await anext(stream)).value for _ in range(5)] == [0, 1, 2, 3, 4]
            await restart()
            async with make_broker() as other:
                await other.publish_many([Outgoing(n, topic, key="k") for n in range(5, 10)])
            assert [(await anext(stream)).value for _ in range(5)] == [5, 6, 7, 8, 9]

    @needs("replay", "partitions")
    async def test_a_reader_can_seek(self, broker: Broker, topic: str) -> None:
        receipts = await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
        offset = receipts[6].offset
        assert isinstance(offset, int)
        async with broker.stream(topic, start="earliest", partitions=[0]) as stream:
            assert (await anext(stream)).value == 0
            await stream.seek(Position(topic, 0, offset))
            assert (await anext(stream)).value == 6
            await stream.seek(0)
            assert [(await anext(stream)).value for _ in range(3)] == [0, 1, 2]

    @needs("replay", "partitions")
    async def test_an_offset_that_is_not_kept_is_refused(self, broker: Broker, topic: str) -> None:
        await broker.publish(1, topic, partition=0)
        with pytest.raises(OffsetOutOfRangeError):
            await anext(broker.stream(topic, start=99, partitions=[0]))

    @needs("replay")
    async def test_reading_a_topic_that_is_not_there_is_an_error(self, broker: Broker, topic: str) -> None:
        with pytest.raises(TopicNotFoundError):
            await anext(broker.stream(f"{topic}-missing", start="earliest"))

    @needs("groups", "settles", "replay")
    async def test_get_takes_one_message_after_the_other(self, broker: Broker, topic: str, group: str) -> None:
        for n in range(3):
            await broker.publish(n, topic, key="k")
        got = [await broker.get(topic, group=group, timeout=10) for _ in range(3)]
        assert [message.value for message in got if message is not None] == [0, 1, 2]
        assert await broker.get(topic, group=group, timeout=QUIET) is None
