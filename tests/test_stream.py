"""Reading a topic from any place, without a group."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headwater import (
    Broker,
    ConfigurationError,
    NotConnectedError,
    NotSupportedError,
    OffsetOutOfRangeError,
    Outgoing,
    Position,
    Topic,
    TopicNotFoundError,
)
from headwater.engines.memory import MemoryEngine


class Watch:
    """A clock that is set by hand."""

    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Any) -> Any:
        return asyncio.get_running_loop().call_later(delay, callback)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    """Ten numbers in one partition, a minute apart."""
    watch, broker = Watch(), Broker()
    broker.replace_engine(MemoryEngine(clock=watch))
    async with broker:
        await broker.admin.topics.create("numbers", partitions=1)
        for n in range(10):
            watch.now = Watch.now + 60 * n
            await broker.publish(n, "numbers")
        yield broker


async def values(stream: Any) -> list[Any]:
    async with stream:
        return [message.value async for message in stream]


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("earliest", 0),
        (7, 7),
        ({0: 8}, 8),
        (datetime(2026, 1, 1, 0, 5, tzinfo=UTC), 5),
        (datetime(2026, 1, 1, 0, 4, 30, tzinfo=UTC), 5),
        (datetime(2020, 1, 1, tzinfo=UTC), 0),
    ],
)
async def test_a_stream_begins_where_it_is_told(broker: Broker, start: Any, first: int) -> None:
    assert await values(broker.stream("numbers", start=start, wait=0)) == list(range(first, 10))


async def test_latest_is_what_the_next_message_gets(broker: Broker) -> None:
    async with broker.stream("numbers", limit=2) as stream:
        await broker.publish_many([Outgoing(n, "numbers") for n in (10, 11, 12)])
        assert await values(stream) == [10, 11]


async def test_limit_and_until_end_a_stream(broker: Broker) -> None:
    assert await values(broker.stream("numbers", start="earliest", limit=3)) == [0, 1, 2]
    moment = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    assert await values(broker.stream("numbers", start="earliest", until=moment)) == [0, 1, 2]
    assert await values(broker.stream("numbers", start="earliest", until=lambda m: m.value == 4)) == [0, 1, 2, 3]


async def test_a_stream_goes_on_as_messages_come(broker: Broker) -> None:
    stream = broker.stream("numbers", start=9)
    assert (await anext(stream)).value == 9
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await broker.publish(10, "numbers")
    assert (await waiting).value == 10
    await stream.close()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_seek_moves_forwards_and_back(broker: Broker) -> None:
    async with broker.stream("numbers", start="earliest") as stream:
        assert (await anext(stream)).value == 0
        await stream.seek(7)
        assert (await anext(stream)).value == 7
        await stream.seek(Position("numbers", 0, 2))
        assert [(await anext(stream)).value for _ in range(3)] == [2, 3, 4]
        with pytest.raises(TopicNotFoundError):
            await stream.seek(Position("numbers", 5, 0))


async def test_batches_hand_over_what_is_there(broker: Broker) -> None:
    stream = broker.stream("numbers", start="earliest", limit=9)
    sizes = [[message.value for message in batch] async for batch in stream.batches(4)]
    assert sizes == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


async def test_offsets_that_are_not_kept_are_refused(broker: Broker) -> None:
    await broker.admin.topics.purge("numbers", before={0: 5})
    for start in (2, 11):
        with pytest.raises(OffsetOutOfRangeError, match="keeps 5 up to, not including, 10") as caught:
            await anext(broker.stream("numbers", start=start))
        assert (caught.value.earliest, caught.value.latest) == (5, 10)
    assert await values(broker.stream("numbers", start="earliest", wait=0)) == [5, 6, 7, 8, 9]


async def test_an_offset_needs_one_partition_and_several_take_a_mapping(broker: Broker) -> None:
    await broker.publish_many([Outgoing(n, "many", partition=n % 2) for n in range(6)])
    with pytest.raises(ConfigurationError, match="one partition"):
        await anext(broker.stream("many", start=1))
    assert await values(broker.stream("many", start=1, partitions=[1], wait=0)) == [3, 5]
    assert sorted(await values(broker.stream("many", start={0: 2, 1: 1}, partitions=[0, 1], wait=0))) == [3, 4, 5]


async def test_a_missing_topic_is_an_error_and_a_pattern_reads_what_comes(broker: Broker) -> None:
    with pytest.raises(TopicNotFoundError, match="missing"):
        await anext(broker.stream("missing"))
    async with broker.stream("orders.{region}", limit=2) as stream:
        await broker.publish("eu", "orders.eu")
        await broker.publish("dead", "orders.eu.dead")
        await broker.publish("us", "orders.us")
        assert sorted(await values(stream)) == ["eu", "us"]


async def test_values_are_decoded_to_the_type_that_is_asked_for(broker: Broker) -> None:
    class Order(msgspec.Struct):
        id: int

    await broker.publish({"id": 1}, "orders")
    assert await values(broker.stream("orders", start="earliest", limit=1, type=Order)) == [Order(1)]
    assert await values(broker.stream("orders", start="earliest", limit=1)) == [{"id": 1}]


async def test_a_stream_takes_no_part_in_groups(broker: Broker) -> None:
    await values(broker.stream("numbers", start="earliest", limit=5))
    assert await broker.admin.groups.list() == []


async def test_a_slow_reader_holds_no_more_than_one_read_ahead(broker: Broker) -> None:
    await broker.publish_many([Outgoing(n, "many", partition=0) for n in range(3000)])
    async with broker.stream("many", start="earliest") as stream:
        await anext(stream)
        assert len(stream._ahead) < 500


async def test_closing_the_broker_ends_its_streams() -> None:
    broker = Broker("memory://")
    await broker.connect()
    await broker.publish(1, "orders")
    stream = broker.stream("orders")
    waiting = asyncio.ensure_future(anext(stream, "over"))
    await asyncio.sleep(0)
    await broker.close()
    assert await waiting == "over"
    with pytest.raises(NotConnectedError):
        await anext(broker.stream("orders"))


async def test_a_quiet_stream_may_end_by_itself(broker: Broker) -> None:
    assert await values(broker.stream("numbers", wait=0.001)) == []


async def test_retention_is_applied(broker: Broker) -> None:
    await broker.admin.topics.alter("numbers", retention=timedelta(minutes=3))
    assert await values(broker.stream("numbers", start="earliest", wait=0)) == [6, 7, 8, 9]


async def test_where_nothing_is_kept_only_what_comes_can_be_read(less_capable: Any) -> None:
    async with less_capable(replay=False) as broker:
        await broker.publish(1, "orders")
        with pytest.raises(NotSupportedError, match="replay"):
            await anext(broker.stream("orders", start="earliest"))
        async with broker.stream("orders", limit=1) as stream:
            await broker.publish(2, "orders")
            assert await values(stream) == [2]


async def test_a_paused_stream_gives_nothing_until_it_is_resumed(broker: Broker) -> None:
    async with broker.stream("numbers", start="earliest") as stream:
        assert (await anext(stream)).value == 0
        stream.pause()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        stream.resume()
        assert (await waiting).value == 1
        stream.pause()
        waiting = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        await stream.close()
        assert await waiting is None


async def test_its_position_is_what_comes_next_and_another_stream_goes_on_there(broker: Broker) -> None:
    await broker.declare([Topic("many", partitions=2)])
    await broker.publish_many([Outgoing(n, "many", partition=n % 2) for n in range(10)])
    async with broker.stream("many", start="earliest") as stream:
        assert stream.position == ()
        read = [(await anext(stream)).value for _ in range(7)]
        places = stream.position
        await stream.seek(places[0])
        assert set(stream.position) == set(places)
    async with broker.stream("many", start={p.partition: int(p.offset) for p in places}, limit=3) as stream:
        rest = [message.value async for message in stream]
    assert sorted(read + rest) == list(range(10))


async def test_its_position_survives_its_end(broker: Broker) -> None:
    async with broker.stream("numbers", start="earliest") as stream:
        for _ in range(3):
            await anext(stream)
    assert stream.position == (Position("numbers", 0, 3),)  # although more was read ahead
    stream = broker.stream("numbers", start="earliest", until=lambda message: message.value == 6)
    assert await values(stream) == [0, 1, 2, 3, 4, 5]
    assert stream.position == (Position("numbers", 0, 6),)


async def test_a_seek_that_is_refused_leaves_it_where_it_was(broker: Broker) -> None:
    async with broker.stream("numbers", start="earliest", limit=3) as stream:
        assert (await anext(stream)).value == 0
        with pytest.raises(OffsetOutOfRangeError, match="keeps 0 up to, not including, 10"):
            await stream.seek(99)
        assert await values(stream) == [1, 2]


async def test_a_batch_ends_where_the_stream_ends(broker: Broker) -> None:
    stream = broker.stream("numbers", start="earliest", until=lambda message: message.value == 6)
    assert [[message.value for message in batch] async for batch in stream.batches(4)] == [[0, 1, 2, 3], [4, 5]]


@pytest.fixture(params=["memory", "local"])
async def embedded(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    """A broker of an engine that lives in this process, with ten numbers in two partitions."""
    url = "memory://" if request.param == "memory" else f"local://{tmp_path}/store?durability=process"
    async with Broker(url) as broker:
        await broker.admin.topics.create("orders", partitions=2)
        await broker.publish_many([Outgoing(n, "orders", partition=n % 2) for n in range(10)])
        yield broker


async def test_a_deleted_topic_ends_who_reads_it(embedded: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.stream.LOOK_AFTER", 0.01)
    async with embedded.stream("orders", start="earliest") as stream, asyncio.timeout(5):
        assert len([await anext(stream) for _ in range(10)]) == 10
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        await embedded.admin.topics.delete("orders")
        with pytest.raises(TopicNotFoundError, match="orders"):
            await waiting


async def test_a_topic_that_is_made_again_is_read_from_its_beginning(embedded: Broker) -> None:
    async with embedded.stream("orders", start="earliest") as stream, asyncio.timeout(5):
        assert len([await anext(stream) for _ in range(10)]) == 10
        await embedded.admin.topics.delete("orders")
        await embedded.publish("again", "orders")
        assert (await anext(stream)).value == "again"


async def test_a_reader_of_a_pattern_outlives_the_topics_it_reads(embedded: Broker) -> None:
    await embedded.publish(1, "orders.eu")
    async with embedded.stream("orders.{region}", start="earliest") as stream, asyncio.timeout(5):
        assert (await anext(stream)).value == 1
        await embedded.admin.topics.delete("orders.eu")
        await embedded.publish(2, "orders.us")
        assert (await anext(stream)).value == 2


async def test_a_cancelled_stream_gives_its_place_up(embedded: Broker) -> None:
    async def read() -> None:
        async with embedded.stream("orders", start="earliest") as stream:
            async for message in stream:
                seen.append(message.value)

    tasks, seen = asyncio.all_tasks(), list[int]()
    readers = [asyncio.create_task(read()) for _ in range(3)]
    async with asyncio.timeout(5):
        while len(seen) < 30:
            await asyncio.sleep(0.001)
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    assert all(reader.cancelled() for reader in readers)
    assert embedded._streams == set()
    assert asyncio.all_tasks() <= tasks
    assert len(await values(embedded.stream("orders", start="earliest", limit=10))) == 10


async def test_who_gives_up_waiting_misses_nothing(embedded: Broker) -> None:
    async with embedded.stream("orders", partitions=[0]) as stream:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)
        await embedded.publish("later", "orders", partition=0)
        assert (await anext(stream)).value == "later"


async def test_streams_beside_each_other_each_see_everything(embedded: Broker) -> None:
    streams = [embedded.stream("orders", start="earliest", limit=10) for _ in range(3)]
    for seen in await asyncio.gather(*map(values, streams)):
        assert sorted(seen) == list(range(10))


async def test_a_slow_reader_of_much_takes_little_memory(tmp_path: Path) -> None:
    async with Broker(f"local://{tmp_path}/store?durability=process") as broker:
        await broker.admin.topics.create("much", partitions=1)
        for _ in range(20):
            await broker.publish_many([Outgoing(b"x" * 10_000, "much") for _ in range(200)])
        tracemalloc.start()
        async with broker.stream("much", start="earliest") as stream:
            total = 0
            for _ in range(4000):
                total += len((await anext(stream)).body)
                await asyncio.sleep(0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert total == 40_000_000
    assert most < 12_000_000  # 500 of them are 5 MB


async def test_get_gives_one_message_with_a_group_and_without(embedded: Broker) -> None:
    seen = {message.value for _ in range(10) if (message := await embedded.get("orders", group="audit")) is not None}
    assert seen == set(range(10))
    assert await embedded.get("orders", group="audit", timeout=0.01) is None
    assert (await embedded.admin.groups.lag("audit", "orders")).total == 0
    waiting = asyncio.create_task(embedded.get("orders", timeout=5))
    while not waiting.done():  # whenever it begins to wait
        await embedded.publish("next", "orders")
        await asyncio.sleep(0)
    message = await waiting
    assert message is not None
    assert message.value == "next"
    with pytest.raises(TopicNotFoundError, match="ordres"):
        await embedded.get("ordres")
