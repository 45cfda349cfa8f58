"""What becomes of messages on their way out."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from ...broker import Broker
from ...errors import HeadwaterError, MessageTooLargeError, NotSupportedError, PublishError
from ...message import Headers, Outgoing
from .needs import needs
from .tools import nothing_more, reading, taken

MEBIBYTE: Final = 1 << 20
OVERHEAD: Final = 4096  # bytes that headers and the protocol may add to a body


class Publishing:
    """What becomes of messages on their way out."""

    async def test_what_is_published_arrives_as_it_was(self, broker: Broker, topic: str, group: str) -> None:
        bodies = [b"", b"\x00\xff", "é".encode(), os.urandom(100_000)]
        async with reading(broker, topic, group) as place:
            for body in bodies:
                receipt = await broker.publish(body, topic)
                assert receipt.topic == topic
            messages = await taken(place, len(bodies))
        assert sorted(message.body for message in messages) == sorted(bodies)
        assert {message.topic for message in messages} == {topic}
        assert all(abs(message.timestamp - datetime.now(UTC)) < timedelta(minutes=5) for message in messages)

    async def test_headers_arrive_with_repeats_order_and_raw_bytes(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        pairs = [("a", b"1"), ("b", "é".encode()), ("a", b"2"), ("empty", b"")]
        async with reading(broker, topic, group) as place:
            await broker.publish(b"x", topic, headers=pairs)
            (message,) = await taken(place, 1)
        assert isinstance(message.headers, Headers)
        assert [pair for pair in message.headers.pairs if pair[0] in "a b empty"] == pairs

    async def test_keys_arrive_as_they_are(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            for key in ("é", b"\xff\x00", None):
                await broker.publish(b"x", topic, key=key)
            keys = {message.key_bytes for message in await taken(place, 3)}
        assert keys == {"é".encode(), b"\xff\x00", None}

    async def test_messages_of_one_key_arrive_in_order(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            for first in range(0, 200, 50):
                await broker.publish_many([Outgoing(n, topic, key=f"k{n % 5}") for n in range(first, first + 40)])
                await asyncio.gather(
                    *(broker.publish(n, topic, key=f"k{n % 5}") for n in range(first + 40, first + 50))
                )
            seen = defaultdict[str | None, list[int]](list)
            for message in await taken(place, 200):
                seen[message.key].append(message.value)
        assert len(seen) == 5
        assert all(numbers == sorted(numbers) for numbers in seen.values())

    @needs("keys", "partitions")
    async def test_one_key_stays_in_one_partition(self, broker: Broker, topic: str) -> None:
        found = defaultdict[str, set[int | None]](set)
        for n in range(40):
            found[f"k{n % 10}"].add((await broker.publish(n, topic, key=f"k{n % 10}")).partition)
        assert all(len(partitions) == 1 for partitions in found.values())
        assert len(set.union(*found.values())) > 1

    @needs("partitions")
    async def test_a_message_goes_to_the_partition_that_was_named(self, broker: Broker, topic: str) -> None:
        assert [(await broker.publish(1, topic, key="k", partition=n)).partition for n in (1, 0)] == [1, 0]

    async def test_receipts_come_in_order_of_the_messages(self, broker: Broker, topic: str) -> None:
        receipts = await broker.publish_many([Outgoing(n, topic, key="k") for n in range(20)])
        assert [receipt.topic for receipt in receipts] == [topic] * 20
        offsets = [receipt.offset for receipt in receipts if isinstance(receipt.offset, int)]
        assert offsets == sorted(offsets)

    @needs("atomic_batch", "admin.list_topics")
    async def test_all_of_one_publish_is_accepted_or_none(self, broker: Broker, topic: str) -> None:
        with pytest.raises(HeadwaterError):
            await broker.publish_many([Outgoing(1, topic), Outgoing(2, "a{b}")])
        assert (await broker.admin.topics.describe(topic)).messages == 0

    async def test_many_publishers_at_once_lose_and_double_nothing(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group) as place:
            await asyncio.gather(*(broker.publish(n, topic, key=str(n)) for n in range(2000)))
            numbers = [message.value for message in await taken(place, 2000)]
            assert await nothing_more(place)
        assert sorted(numbers) == list(range(2000))

    async def test_large_messages_arrive(self, broker: Broker, limit: int | None, topic: str, group: str) -> None:
        size = min(limit or MEBIBYTE, MEBIBYTE) - OVERHEAD
        bodies = [os.urandom(size) for _ in range(4)]
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(body, topic, headers={"a": "1"}) for body in bodies])
            found = await taken(place, len(bodies))
        assert sorted(message.body for message in found) == sorted(bodies)

    @needs("limit")
    async def test_a_message_past_the_limit_is_refused_and_the_connection_goes_on(
        self, broker: Broker, limit: int, topic: str, group: str
    ) -> None:
        large = os.urandom(limit + 1)
        async with reading(broker, topic, group) as place:
            with pytest.raises(MessageTooLargeError):
                await broker.publish(large, topic)
            with pytest.raises(PublishError) as refused:
                await broker.publish_many([Outgoing(body, topic) for body in (b"before", large, b"after")])
            assert isinstance(refused.value.errors[1], MessageTooLargeError)
            accepted = sum(receipt is not None for receipt in refused.value.receipts)
            await broker.publish(b"small", topic)
            assert b"small" in {message.body for message in await taken(place, accepted + 1)}
            assert await nothing_more(place)

    @needs("delayed_send")
    async def test_a_delayed_message_comes_after_its_delay(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            start = broker.engine.clock.time()
            await broker.publish("late", topic, delay=0.4)
            await broker.publish("now", topic)
            assert [message.value for message in await taken(place, 1)] == ["now"]
            assert [message.value for message in await taken(place, 1)] == ["late"]
            assert broker.engine.clock.time() - start >= 0.39

    @needs("!delayed_send")
    async def test_a_delay_the_engine_cannot_keep_is_refused(self, broker: Broker, topic: str) -> None:
        with pytest.raises(NotSupportedError):
            await broker.publish(1, topic, delay=5)
