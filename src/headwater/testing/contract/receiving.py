"""What a place in a source gives, and how it is settled."""

from __future__ import annotations

import asyncio

import pytest

from ...broker import Broker
from ...engine import Source, Topic
from ...errors import HeadwaterError
from ...message import Outgoing
from .needs import needs
from .tools import QUIET, nothing_more, published_around, reading, received, taken


class Receiving:
    """What a place in a source gives, and how it is settled."""

    async def test_a_quiet_receive_returns_nothing_and_a_woken_one_at_once(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group) as place:
            assert list(await place.receive(10, 0.01)) == []
            waiting = asyncio.create_task(received(place, 30))
            await asyncio.sleep(QUIET)
            place.wake()
            assert await asyncio.wait_for(waiting, 5) == []

    async def test_no_more_is_received_than_was_asked_for(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic) for n in range(20)])
            sizes = list[int]()
            while sum(sizes) < 20:
                sizes.append(len(await place.receive(7, 5)))
                assert 0 < sizes[-1] <= 7

    async def test_readers_without_a_group_see_everything_and_keep_nothing(self, broker: Broker, topic: str) -> None:
        async with reading(broker, topic, None) as one, reading(broker, topic, None) as two:
            await broker.publish_many([Outgoing(n, topic) for n in range(5)])
            for place in (one, two):
                assert sorted(message.value for message in await taken(place, 5)) == list(range(5))

    @needs("groups")
    async def test_a_new_group_starts_at_latest(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish("old", topic)
        async with reading(broker, topic, group) as place:
            await broker.publish("new", topic)
            assert [message.value for message in await taken(place, 1)] == ["new"]
            assert await nothing_more(place)

    @needs("groups", "replay")
    async def test_a_new_group_starts_at_earliest(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish("old", topic)
        async with reading(broker, topic, group, start="earliest") as place:
            (message,) = await taken(place, 1)
        assert (message.value, message.group) == ("old", group)

    @needs("groups", "replay")
    async def test_a_new_group_starts_at_a_moment(self, broker: Broker, topic: str, group: str) -> None:
        moment = await published_around(broker, topic)
        async with reading(broker, topic, group, start=moment) as place:
            assert [message.value for message in await taken(place, 3)] == [3, 4, 5]
            assert await nothing_more(place)

    @needs("groups", "settles", "stores")
    async def test_the_start_is_resolved_once_for_a_group(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group):
            pass
        await broker.publish("while away", topic)
        async with reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 1)] == ["while away"]

    @needs("groups")
    async def test_each_group_gets_every_message(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as one, reading(broker, topic, f"{group}-2") as two:
            await broker.publish(1, topic)
            assert len(await taken(one, 1)) == len(await taken(two, 1)) == 1

    @needs("groups", "settles")
    async def test_acknowledged_messages_do_not_come_again(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic) for n in range(10)])
            await place.ack(await taken(place, 10))
        await broker.publish(10, topic)
        async with reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 1)] == [10]
            assert await nothing_more(place)

    @needs("groups", "settles")
    async def test_what_was_not_acknowledged_comes_again(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
            messages = await taken(place, 10)
            await place.ack(messages[:4])
        async with reading(broker, topic, group) as place:
            again = await taken(place, 6)
        assert [message.value for message in again] == list(range(4, 10))
        assert {message.id for message in again} == {message.id for message in messages[4:]}

    @needs("groups", "each")
    async def test_one_acknowledgement_does_not_cover_an_earlier_message(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(5)])
            messages = await taken(place, 5)
            await place.ack([messages[4], messages[1]])
        async with reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 3)] == [0, 2, 3]
            assert await nothing_more(place)

    @needs("groups", "settles", "counts_deliveries")
    async def test_attempts_are_counted_over_deaths(self, broker: Broker, topic: str, group: str) -> None:
        can = broker.engine.capabilities(Source(topics=(topic,), group=group))
        async with reading(broker, topic, group) as place:
            await broker.publish(1, topic)
            (message,) = await taken(place, 1)
            assert message.attempt == 1
            message.attempt += 1
            place.begin(message)
        async with reading(broker, topic, group) as place:
            (message,) = await taken(place, 1)
            assert message.attempt == (2 if can.counts_unbegun else 3)
            await place.ack([message])

    @needs("groups", "nack")
    async def test_a_message_given_back_comes_again_after_its_delay(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        can = broker.engine.capabilities(Source(topics=(topic,), group=group))
        async with reading(broker, topic, group) as place:
            await broker.publish(1, topic)
            delay = 0.3 if can.delayed_nack else 0.0
            start = asyncio.get_running_loop().time()
            await place.nack(await taken(place, 1), delay)
            (message,) = await taken(place, 1)
            assert message.value == 1
            assert asyncio.get_running_loop().time() - start >= delay * 0.9

    @needs("groups", "reject")
    async def test_a_rejected_message_does_not_come_again(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(2)])
            first, second = await taken(place, 2)
            await place.reject([first], "nobody can handle it")
            await place.ack([second])
        async with reading(broker, topic, group) as place:
            assert await nothing_more(place)

    @needs("groups", "lease")
    async def test_a_lease_can_be_extended(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish(1, topic)
            messages = await taken(place, 1)
            await place.extend(messages)
            await place.ack(messages)

    @needs("groups", "atomic_commit")
    async def test_acknowledgements_and_sends_are_one_transaction(self, broker: Broker, topic: str, group: str) -> None:
        results = f"{topic}-results"
        await broker.declare([Topic(results)])
        async with reading(broker, results, group) as out, reading(broker, topic, f"{group}-in") as place:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(3)])
            messages = await taken(place, 3)
            sends = await broker.prepare([Outgoing(m.value * 2, results, key="k") for m in messages])
            receipts = await place.commit(messages, sends)
            assert [receipt.topic for receipt in receipts] == [results] * 3
            assert [message.value for message in await taken(out, 3)] == [0, 2, 4]
        async with reading(broker, topic, f"{group}-in") as place:
            assert await nothing_more(place)

    @needs("groups", "atomic_commit")
    async def test_a_transaction_that_cannot_send_acknowledges_nothing(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish(1, topic)
            messages = await taken(place, 1)
            sends = await broker.prepare([Outgoing(1, "a{b}")])
            with pytest.raises(HeadwaterError):
                await place.commit(messages, sends)
        async with reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 1)] == [1]
