"""What every engine must do, as a test suite: ours and third parties' pass it against their real server.

An engine's test module subclasses `EngineContract` and says how to make a broker:

    class TestMine(EngineContract):
        @pytest.fixture
        def make_broker(self) -> MakeBroker:
            return lambda: Broker("mine://localhost:1234")

Each test uses topics and groups of its own, so one server serves all of them. Which tests run is decided by the
capabilities the engine declares, see `NEEDS`. A server that can be restarted adds the fixture `restart`.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from ..app import App
from ..broker import Broker
from ..engine import Ack, Assigned, Capabilities, Change, Revoked, Source, Subscription, Topic
from ..errors import (
    ConfigurationError,
    GroupNotFoundError,
    HeadwaterError,
    NotConnectedError,
    NotSupportedError,
    OffsetOutOfRangeError,
    RemoteError,
    RequestTimeoutError,
    TopicNotFoundError,
)
from ..message import Headers, Message, Outgoing, Position
from ..retry import Retry

MakeBroker = Callable[[], Broker]
Restart = Callable[[], Awaitable[None]]

QUIET: Final = 0.15  # seconds without a message after which a test believes that none will come

# Which capabilities a test needs, by its name without `test_`. Besides the fields of Capabilities: "settles" is any
# acknowledgement, "each" one by one, "admin.NAME" an operation of the administration, "restart" the fixture.
# A test that is not named here needs nothing: every engine must pass it.
NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "one_key_stays_in_one_partition": ("keys", "partitions"),
    "a_message_goes_to_the_partition_that_was_named": ("partitions",),
    "all_of_one_publish_is_accepted_or_none": ("atomic_batch", "admin.list_topics"),
    "a_delayed_message_comes_after_its_delay": ("delayed_send",),
    "a_delay_the_engine_cannot_keep_is_refused": ("!delayed_send",),
    "a_new_group_starts_at_latest": ("groups",),
    "a_new_group_starts_at_earliest": ("groups", "replay"),
    "the_start_is_resolved_once_for_a_group": ("groups", "settles", "durable_or_replay"),
    "each_group_gets_every_message": ("groups",),
    "acknowledged_messages_do_not_come_again": ("groups", "settles"),
    "what_was_not_acknowledged_comes_again": ("groups", "settles"),
    "one_acknowledgement_does_not_cover_an_earlier_message": ("groups", "each"),
    "the_members_of_a_group_share_its_messages": ("groups", "settles"),
    "who_leaves_gives_its_messages_to_the_others": ("groups", "settles"),
    "a_partition_has_one_member_at_a_time": ("groups", "settles", "partitions"),
    "a_partition_is_given_back_before_another_gets_it": ("groups", "settles", "partitions"),
    "an_exclusive_group_has_one_active_member": ("groups", "settles", "exclusive"),
    "attempts_are_counted_over_deaths": ("groups", "settles", "counts_deliveries"),
    "a_message_given_back_comes_again_after_its_delay": ("groups", "nack"),
    "a_lease_can_be_extended": ("groups", "lease"),
    "a_paused_partition_is_quiet_until_it_is_resumed": ("partitions", "replay"),
    "a_pattern_matches_topics_that_come_later": ("patterns", "groups"),
    "a_pattern_never_matches_dead_letters_and_retries": ("patterns", "groups"),
    "acknowledgements_and_sends_are_one_transaction": ("groups", "atomic_commit"),
    "a_transaction_that_cannot_send_acknowledges_nothing": ("groups", "atomic_commit"),
    "a_reader_can_start_anywhere": ("replay", "partitions"),
    "a_reader_can_seek": ("replay", "partitions"),
    "an_offset_that_is_not_kept_is_refused": ("replay", "partitions"),
    "reading_a_topic_that_is_not_there_is_an_error": ("replay",),
    "get_takes_one_message_after_the_other": ("groups", "settles", "replay"),
    "a_topic_that_is_not_there_fails_the_check": ("admin.list_topics",),
    "what_was_accepted_survives_a_new_connection": ("durable", "replay"),
    "positions_survive_a_new_connection": ("groups", "settles", "durable"),
    "what_was_accepted_survives_a_restart": ("groups", "settles", "durable", "restart"),
    "a_consumer_goes_on_after_a_restart": ("groups", "settles", "durable", "restart"),
    "a_failing_message_is_retried_and_kept_as_a_dead_letter": ("groups", "settles"),
    "a_dead_letter_is_replayed_for_its_group": ("groups", "settles", "replay", "admin.list_partitions"),
    "order_by_key_holds_through_retries": ("groups", "settles", "keys"),
    "a_stopped_app_goes_on_where_it_was": ("groups", "settles"),
    "exactly_once_publishes_each_result_once": ("groups", "atomic_commit"),
    "a_failure_is_an_answer": ("groups", "settles"),
    "topics_are_managed": ("admin.list_topics", "admin.create_topic", "admin.delete_topic"),
    "partitions_are_listed_and_added": ("partitions", "admin.list_partitions", "admin.add_partitions"),
    "the_lag_of_a_group_is_what_it_has_still_to_do": ("groups", "settles", "replay", "admin.lag"),
    "a_group_is_reset": ("groups", "settles", "replay", "admin.lag", "admin.set_offsets"),
    "groups_are_listed_and_deleted": ("groups", "settles", "replay", "admin.list_groups", "admin.delete_group"),
    "purged_messages_are_not_read_any_more": ("replay", "partitions", "admin.purge_topic", "admin.list_partitions"),
    "the_cluster_says_how_it_is": ("admin.describe_cluster", "admin.health"),
}


def _able(need: str, can: Capabilities, broker: Broker) -> bool:
    """Whether this engine fulfils a need of `NEEDS`."""
    if need.startswith("!"):
        return not _able(need[1:], can, broker)
    if need.startswith("admin."):
        admin = broker.engine.admin
        return admin is not None and need.removeprefix("admin.") in admin.operations
    match need:
        case "settles":
            return can.ack is not Ack.NONE
        case "each":
            return can.ack is Ack.EACH
        case "durable_or_replay":
            return can.durable or can.replay
        case "lease":
            return can.lease is not None
        case _:
            return bool(getattr(can, need))


class EngineContract:
    """Subclass it, name the subclass `Test…`, and give `make_broker`. Its tests run through anyio's pytest plugin."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        """Makes brokers that are not connected yet, each of its own connection, all on one server."""
        raise NotImplementedError("give a fixture make_broker that makes a Broker of your engine")

    @pytest.fixture
    def restart(self) -> Restart | None:
        """Restarts the server while brokers are connected to it; None where there is nothing to restart."""
        return None

    # --- what the tests share -------------------------------------------------------------------------

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture(autouse=True)
    def chosen(self, request: pytest.FixtureRequest, make_broker: MakeBroker, restart: Restart | None) -> None:
        """Skips a test whose needs the engine does not declare."""
        name = request.function.__name__.removeprefix("test_")
        broker = make_broker()
        can = broker.engine.capabilities(Source(topics=("orders",), group="shop"))
        for need in NEEDS.get(name, ()):
            if (restart is None) if need == "restart" else not _able(need, can, broker):
                pytest.skip(f"{broker.engine.name} declares no {need}")

    @pytest.fixture
    def topic(self) -> str:
        """A topic nobody else uses."""
        return f"contract-{os.urandom(6).hex()}"

    @pytest.fixture
    def group(self) -> str:
        """A group nobody else uses."""
        return f"group-{os.urandom(6).hex()}"

    @pytest.fixture
    async def broker(self, make_broker: MakeBroker, topic: str) -> AsyncIterator[Broker]:
        """A connected broker, on which `topic` is declared."""
        async with make_broker() as broker:
            await broker.declare([Topic(topic)])
            yield broker

    # --- the engine itself ----------------------------------------------------------------------------

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

    async def test_a_topic_that_is_not_there_fails_the_check(self, broker: Broker, topic: str) -> None:
        await broker.declare([Topic(topic)], "check")
        with pytest.raises(TopicNotFoundError):
            await broker.declare([Topic(f"{topic}-missing")], "check")

    # --- publishing -----------------------------------------------------------------------------------

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

    async def test_one_key_stays_in_one_partition(self, broker: Broker, topic: str) -> None:
        found = defaultdict[str, set[int | None]](set)
        for n in range(40):
            found[f"k{n % 10}"].add((await broker.publish(n, topic, key=f"k{n % 10}")).partition)
        assert all(len(partitions) == 1 for partitions in found.values())
        assert len(set.union(*found.values())) > 1

    async def test_a_message_goes_to_the_partition_that_was_named(self, broker: Broker, topic: str) -> None:
        assert [(await broker.publish(1, topic, key="k", partition=n)).partition for n in (1, 0)] == [1, 0]

    async def test_receipts_come_in_order_of_the_messages(self, broker: Broker, topic: str) -> None:
        receipts = await broker.publish_many([Outgoing(n, topic, key="k") for n in range(20)])
        assert [receipt.topic for receipt in receipts] == [topic] * 20
        offsets = [receipt.offset for receipt in receipts if isinstance(receipt.offset, int)]
        assert offsets == sorted(offsets)

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

    async def test_a_delayed_message_comes_after_its_delay(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            start = broker.engine.clock.time()
            await broker.publish("late", topic, delay=0.4)
            await broker.publish("now", topic)
            assert [message.value for message in await taken(place, 1)] == ["now"]
            assert [message.value for message in await taken(place, 1)] == ["late"]
            assert broker.engine.clock.time() - start >= 0.39

    async def test_a_delay_the_engine_cannot_keep_is_refused(self, broker: Broker, topic: str) -> None:
        with pytest.raises(NotSupportedError):
            await broker.publish(1, topic, delay=5)

    # --- receiving ------------------------------------------------------------------------------------

    async def test_a_quiet_receive_returns_nothing_and_a_woken_one_at_once(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group) as place:
            assert list(await place.receive(10, 0.01)) == []
            waiting = asyncio.create_task(_receive(place, 30))
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

    async def test_a_new_group_starts_at_latest(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish("old", topic)
        async with reading(broker, topic, group) as place:
            await broker.publish("new", topic)
            assert [message.value for message in await taken(place, 1)] == ["new"]
            assert await nothing_more(place)

    async def test_a_new_group_starts_at_earliest(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish("old", topic)
        async with reading(broker, topic, group, start="earliest") as place:
            (message,) = await taken(place, 1)
        assert (message.value, message.group) == ("old", group)

    async def test_the_start_is_resolved_once_for_a_group(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group):
            pass
        await broker.publish("while away", topic)
        async with reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 1)] == ["while away"]

    async def test_each_group_gets_every_message(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as one, reading(broker, topic, f"{group}-2") as two:
            await broker.publish(1, topic)
            assert len(await taken(one, 1)) == len(await taken(two, 1)) == 1

    async def test_acknowledged_messages_do_not_come_again(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic) for n in range(10)])
            await place.ack(await taken(place, 10))
        await broker.publish(10, topic)
        async with reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 1)] == [10]
            assert await nothing_more(place)

    async def test_what_was_not_acknowledged_comes_again(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
            messages = await taken(place, 10)
            await place.ack(messages[:4])
        async with reading(broker, topic, group) as place:
            again = await taken(place, 6)
        assert [message.value for message in again] == list(range(4, 10))
        assert {message.id for message in again} == {message.id for message in messages[4:]}

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

    async def test_attempts_are_counted_over_deaths(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish(1, topic)
        async with reading(broker, topic, group, start="earliest") as place:
            (message,) = await taken(place, 1)
            message.attempt += 1
            place.begin(message)
        async with reading(broker, topic, group) as place:
            (message,) = await taken(place, 1)
            assert message.attempt == 3
            await place.ack([message])

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

    async def test_a_lease_can_be_extended(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group) as place:
            await broker.publish(1, topic)
            messages = await taken(place, 1)
            await place.extend(messages)
            await place.ack(messages)

    # --- sharing --------------------------------------------------------------------------------------

    async def test_the_members_of_a_group_share_its_messages(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        async with make_broker() as other, reading(broker, topic, group) as one, reading(other, topic, group) as two:
            await both_joined(broker, topic, one, two)
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(300)])
            first, second = await shared(one, two, 300)
        assert sorted(first + second) == list(range(300))
        assert first
        assert second

    async def test_who_leaves_gives_its_messages_to_the_others(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        async with make_broker() as other, reading(broker, topic, group) as one:
            leaving = reading(other, topic, group)
            two = await leaving.__aenter__()
            await both_joined(broker, topic, one, two)
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(100)])
            first, second = await shared(one, two, 100, acknowledge=False)
            assert len(first) + len(second) == 100
            await leaving.__aexit__(None, None, None)
            values = {message.value for message in await taken(one, len(second))}
        assert values == set(second)

    async def test_a_partition_has_one_member_at_a_time(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        changes: tuple[list[Change], list[Change]] = ([], [])
        async with (
            make_broker() as other,
            reading(broker, topic, group, changes=changes[0]),
            reading(other, topic, group, changes=changes[1]),
        ):
            await settled(lambda: held(changes[0]) and held(changes[1]))
            count = len(held(changes[0])) + len(held(changes[1]))
            assert not held(changes[0]) & held(changes[1])
            assert abs(len(held(changes[0])) - len(held(changes[1]))) <= 1
        async with reading(broker, topic, group, changes=changes[0]):
            await settled(lambda: len(held(changes[0])) == count)

    async def test_a_partition_is_given_back_before_another_gets_it(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        order: list[tuple[str, type[Change], int]] = []
        go_on = asyncio.Event()

        async def slowly(change: Change) -> None:
            if isinstance(change, Revoked):
                order.append(("one gives", Revoked, change.epoch))
                await go_on.wait()
                order.append(("one gave", Revoked, change.epoch))

        async def quickly(change: Change) -> None:
            if isinstance(change, Assigned) and change.partitions:
                order.append(("two gets", Assigned, change.epoch))

        source = Source(topics=(topic,), group=group)
        async with make_broker() as other, broker.engine.subscribe(source, slowly) as one:
            receiving = asyncio.create_task(_until_woken(one))

            async def join() -> None:
                async with other.engine.subscribe(source, quickly) as two:
                    await _until(lambda: any(who == "two gets" for who, _, _ in order), two)

            joining = asyncio.create_task(join())
            await settled(lambda: bool(order))
            await asyncio.sleep(QUIET)
            assert [who for who, _, _ in order] == ["one gives"]
            go_on.set()
            await joining
            assert [who for who, _, _ in order][:3] == ["one gives", "one gave", "two gets"]
            receiving.cancel()
            one.wake()
            await asyncio.gather(receiving, return_exceptions=True)

    async def test_an_exclusive_group_has_one_active_member(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        async with make_broker() as other, reading(other, topic, group, exclusive=True) as waiting:
            leaving = reading(broker, topic, f"{group}-x", exclusive=True)
            await leaving.__aenter__()
            async with reading(other, topic, f"{group}-x", exclusive=True) as second:
                await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(30)])
                assert await nothing_more(second)
                await leaving.__aexit__(None, None, None)
                assert len(await taken(second, 30)) == 30
            assert len(await taken(waiting, 30)) == 30

    # --- partitions, patterns, places -----------------------------------------------------------------

    async def test_a_paused_partition_is_quiet_until_it_is_resumed(self, broker: Broker, topic: str) -> None:
        async with reading(broker, topic, None) as place:
            paused = frozenset({(topic, 0)})
            place.pause(paused)
            await broker.publish_many([Outgoing(n, topic, partition=n % 2) for n in range(10)])
            assert {message.partition for message in await taken(place, 5)} == {1}
            assert await nothing_more(place)
            place.resume(paused)
            assert [message.value for message in await taken(place, 5)] == [0, 2, 4, 6, 8]

    async def test_a_pattern_matches_topics_that_come_later(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, f"{topic}.{{region}}.x", group) as place:
            for name in (f"{topic}.eu.x", f"{topic}.us.x", f"{topic}.x", f"{topic}.eu.y", f"{topic}.a.b.x"):
                await broker.publish(name, name)
            assert sorted(message.value for message in await taken(place, 2)) == [f"{topic}.eu.x", f"{topic}.us.x"]
            assert await nothing_more(place)

    async def test_a_pattern_never_matches_dead_letters_and_retries(
        self, broker: Broker, topic: str, group: str
    ) -> None:
        async with reading(broker, f"{topic}.{{rest:path}}", group) as place:
            for name in (f"{topic}.a.dead", f"{topic}.a.g.retry", f"{topic}.a"):
                await broker.publish(name, name)
            assert [message.value for message in await taken(place, 1)] == [f"{topic}.a"]
            assert await nothing_more(place)

    async def test_a_reader_can_start_anywhere(self, broker: Broker, topic: str) -> None:
        for n in range(6):
            await broker.publish(n, topic, partition=0)
            if n == 2:
                await asyncio.sleep(0.05)
                moment = datetime.now(UTC)
                await asyncio.sleep(0.05)
        for start, expected in (("earliest", 0), (4, 4), ({0: 5}, 5), (moment, 3)):
            stream = broker.stream(topic, start=start, partitions=[0], wait=QUIET)  # type: ignore[arg-type]  # mixed
            async with stream:
                assert [message.value async for message in stream] == list(range(expected, 6))

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

    async def test_an_offset_that_is_not_kept_is_refused(self, broker: Broker, topic: str) -> None:
        await broker.publish(1, topic, partition=0)
        with pytest.raises(OffsetOutOfRangeError):
            await anext(broker.stream(topic, start=99, partitions=[0]))

    async def test_reading_a_topic_that_is_not_there_is_an_error(self, broker: Broker, topic: str) -> None:
        with pytest.raises(TopicNotFoundError):
            await anext(broker.stream(f"{topic}-missing", start="earliest"))

    async def test_get_takes_one_message_after_the_other(self, broker: Broker, topic: str, group: str) -> None:
        for n in range(3):
            await broker.publish(n, topic, key="k")
        got = [await broker.get(topic, group=group, timeout=10) for _ in range(3)]
        assert [message.value for message in got if message is not None] == [0, 1, 2]
        assert await broker.get(topic, group=group, timeout=QUIET) is None

    # --- transactions ---------------------------------------------------------------------------------

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

    # --- keeping --------------------------------------------------------------------------------------

    async def test_what_was_accepted_survives_a_new_connection(self, make_broker: MakeBroker, topic: str) -> None:
        async with make_broker() as broker:
            await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
        async with make_broker() as broker, broker.stream(topic, start="earliest", limit=10) as stream:
            assert [message.value async for message in stream] == list(range(10))

    async def test_positions_survive_a_new_connection(self, make_broker: MakeBroker, topic: str, group: str) -> None:
        async with make_broker() as broker:
            await broker.declare([Topic(topic)])
            async with reading(broker, topic, group) as place:
                await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
                await place.ack((await taken(place, 10))[:7])
        async with make_broker() as broker, reading(broker, topic, group) as place:
            assert [message.value for message in await taken(place, 3)] == [7, 8, 9]

    async def test_what_was_accepted_survives_a_restart(
        self, broker: Broker, make_broker: MakeBroker, restart: Restart, topic: str, group: str
    ) -> None:
        async with reading(broker, topic, group):
            pass
        await broker.publish_many([Outgoing(n, topic, key="k") for n in range(10)])
        await restart()
        async with make_broker() as later, reading(later, topic, group) as place:
            assert sorted(message.value for message in await taken(place, 10)) == list(range(10))

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

    # --- apps -----------------------------------------------------------------------------------------

    async def test_a_failing_message_is_retried_and_kept_as_a_dead_letter(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, attempts = App(group, make_broker(), topics=[f"{topic}.dead"]), list[int]()

        @app.subscriber(topic, retry=Retry(attempts=3, backoff=(0.01, 0.01)))
        async def handle(body: dict[str, int], message: Message) -> None:
            attempts.append(message.attempt)
            raise ValueError("never")

        async with app, reading(broker, f"{topic}.dead", f"{group}-dead") as dead:
            await app.publish({"a": 1}, topic, key="k")
            (letter,) = await taken(dead, 1)
            assert attempts == [1, 2, 3]
            assert letter.value == {"a": 1}
            assert letter.headers["hw-exception"] == "ValueError: never"
            assert (letter.headers["hw-topic"], letter.headers["hw-group"]) == (topic, group)
            assert letter.headers["hw-attempts"] == "3"

    async def test_a_dead_letter_is_replayed_for_its_group(
        self, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, good, seen, fails = App(group, make_broker()), list[int](), list[int](), [True]

        @app.subscriber(topic, retry=None)
        async def handle(n: int) -> None:
            if fails[0]:
                raise ValueError
            good.append(n)

        @app.subscriber(topic, group=f"{group}-other")
        async def audit(n: int) -> None:
            seen.append(n)

        async def letters(count: int) -> bool:
            return len(await app.admin.dead.list(topic)) == count

        async with app:
            await app.publish_many([Outgoing(n, topic, key="k") for n in range(3)])
            await settled(lambda: letters(3))
            fails[0] = False
            assert await app.admin.dead.replay(topic) == 3
            await settled(lambda: good == [0, 1, 2])
            assert await letters(0)
            await settled(lambda: seen == [0, 1, 2])

    async def test_order_by_key_holds_through_retries(self, make_broker: MakeBroker, topic: str, group: str) -> None:
        app, seen = App(group, make_broker()), defaultdict[str | None, list[int]](list)

        @app.subscriber(topic, concurrency=16, order_by="key", retry=Retry(attempts=3, backoff=(0.005, 0.01)))
        async def handle(n: int, message: Message) -> None:
            await asyncio.sleep(0)
            if n % 11 == 0 and message.attempt == 1:
                raise ValueError("once more")
            seen[message.key].append(n)

        async with app:
            await app.publish_many([Outgoing(n, topic, key=f"k{n % 20}") for n in range(400)])
            await settled(lambda: sum(map(len, seen.values())) == 400)
        assert all(numbers == sorted(numbers) for numbers in seen.values())

    async def test_a_stopped_app_goes_on_where_it_was(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, got = App(group, make_broker()), list[int]()

        @app.subscriber(topic)
        async def handle(n: int) -> None:
            got.append(n)

        for round_ in range(3):
            async with app:
                await broker.publish(2 * round_, topic, key="k")
                await settled(lambda: len(got) == 2 * round_ + 1)  # noqa: B023
            await broker.publish(2 * round_ + 1, topic, key="k")
        async with app:
            await settled(lambda: len(got) == 6)
        assert got == list(range(6))

    async def test_exactly_once_publishes_each_result_once(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        results, failed = f"{topic}-results", set[int]()
        app = App(group, make_broker(), topics=[results])

        @app.subscriber(topic, exactly_once=True, retry=Retry(attempts=3, backoff=(0.001, 0.001)))
        @app.publisher(results)
        async def handle(n: int) -> AsyncIterator[int]:
            yield n
            if n % 7 == 0 and n not in failed:
                failed.add(n)
                raise ValueError("half-way")

        async with reading(broker, results, f"{group}-out") as out:
            for first in range(0, 60, 20):
                async with app:
                    await broker.publish_many([Outgoing(n, topic, key=str(n % 3)) for n in range(first, first + 20)])
                    await settled(lambda: len(failed) >= (first + 20) // 7)  # noqa: B023
            async with app:
                numbers = [message.value for message in await taken(out, 60)]
                assert await nothing_more(out)
        assert sorted(numbers) == list(range(60))

    # --- requests -------------------------------------------------------------------------------------

    async def test_a_request_is_answered(self, broker: Broker, make_broker: MakeBroker, topic: str, group: str) -> None:
        app = App(group, make_broker())

        @app.subscriber(topic, concurrency=4, dead_letter=False)
        async def double(n: int) -> int:
            return n * 2

        async with app:
            answers = await asyncio.gather(*(broker.request(n, topic, timeout=10) for n in range(20)))
        assert [answer.value for answer in answers] == [2 * n for n in range(20)]

    async def test_a_failure_is_an_answer(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app = App(group, make_broker())

        @app.subscriber(topic, retry=None)
        async def fails(n: int) -> int:
            raise LookupError("no such thing")

        async with app:
            with pytest.raises(RemoteError, match="LookupError: no such thing"):
                await broker.request(1, topic, timeout=10)

    async def test_nobody_answering_is_a_timeout(self, broker: Broker, topic: str) -> None:
        with pytest.raises(RequestTimeoutError):
            await broker.request(1, topic, timeout=QUIET)

    # --- administration -------------------------------------------------------------------------------

    async def test_topics_are_managed(self, broker: Broker, topic: str) -> None:
        topics, name = broker.admin.topics, f"{topic}-made"
        await topics.create(name, partitions=1)
        await topics.create(name)
        await broker.publish(1, name)
        info = await topics.describe(name)
        assert (info.name, info.partitions, info.messages) == (name, 1, 1)
        assert {topic, name} <= {found.name for found in await topics.list()}
        await topics.delete(name)
        assert name not in {found.name for found in await topics.list()}
        for call in (topics.describe, topics.delete):
            with pytest.raises(TopicNotFoundError):
                await call(name)

    async def test_partitions_are_listed_and_added(self, broker: Broker, topic: str) -> None:
        name = f"{topic}-two"
        await broker.admin.topics.create(name, partitions=2)
        await broker.publish_many([Outgoing(n, name, partition=1) for n in range(3)])
        first, second = await broker.admin.partitions.list(name)
        assert (first.partition, first.earliest, first.latest) == (0, 0, 0)
        assert (second.partition, second.latest - second.earliest, second.messages) == (1, 3, 3)
        await broker.admin.partitions.add(name, 4)
        assert len(await broker.admin.partitions.list(name)) == 4
        assert (await broker.publish(1, name, partition=3)).partition == 3

    async def test_the_lag_of_a_group_is_what_it_has_still_to_do(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish_many([Outgoing(n, topic) for n in range(10)])
        for _ in range(4):
            await broker.get(topic, group=group, timeout=10)
        lag = await broker.admin.groups.lag(group, topic)
        assert lag.total == 6
        assert sum(partition.lag for partition in lag.partitions) == 6
        with pytest.raises(GroupNotFoundError):
            await broker.admin.groups.lag(f"{group}-nobody")

    async def test_a_group_is_reset(self, broker: Broker, topic: str, group: str) -> None:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
        for _ in range(10):
            await broker.get(topic, group=group, timeout=10)
        groups = broker.admin.groups
        for how, value, left in (("to", 4, 6), ("shift", 2, 4), ("to", "latest", 0), ("to", "earliest", 10)):
            arguments: dict[str, Any] = {how: value}
            dry = await groups.reset(group, topic, dry_run=True, **arguments)
            assert await groups.reset(group, topic, **arguments) == dry
            assert (await groups.lag(group, topic)).total == left
        message = await broker.get(topic, group=group, timeout=10)
        assert message is not None
        assert message.value == 0

    async def test_groups_are_listed_and_deleted(self, broker: Broker, topic: str, group: str) -> None:
        async with reading(broker, topic, group, start="earliest") as place:
            await broker.publish(1, topic)
            await place.ack(await taken(place, 1))
            info = await broker.admin.groups.describe(group)
            assert (info.name, info.active, topic in info.topics) == (group, True, True)
            with pytest.raises(ConfigurationError):
                await broker.admin.groups.delete(group)
        await broker.admin.groups.delete(group)
        assert group not in {info.name for info in await broker.admin.groups.list()}
        with pytest.raises(GroupNotFoundError):
            await broker.admin.groups.describe(group)

    async def test_purged_messages_are_not_read_any_more(self, broker: Broker, topic: str) -> None:
        await broker.publish_many([Outgoing(n, topic, partition=0) for n in range(10)])
        await broker.admin.topics.purge(topic, before={0: 6})
        assert (await broker.admin.partitions.list(topic))[0].earliest == 6
        async with broker.stream(topic, start="earliest", partitions=[0], wait=QUIET) as stream:
            assert [message.value async for message in stream] == [6, 7, 8, 9]
        await broker.admin.topics.purge(topic)
        assert (await broker.admin.partitions.list(topic))[0].messages == 0

    async def test_the_cluster_says_how_it_is(self, broker: Broker) -> None:
        cluster = await broker.admin.cluster.describe()
        assert cluster.engine == broker.engine.name
        assert cluster.nodes
        assert (await broker.admin.cluster.health()).healthy


# --- how the tests read -------------------------------------------------------------------------------


def reading(
    broker: Broker,
    topic: str,
    group: str | None,
    *,
    start: Any = "latest",
    exclusive: bool = False,
    changes: list[Change] | None = None,
) -> AbstractAsyncContextManager[Subscription]:
    """A place in a topic; with `changes` it notes there what is assigned to it and taken from it."""
    can = broker.engine.capabilities(Source(topics=(topic,), group=group))
    source = Source(topics=(topic,), group=group if can.groups else None, start=start, exclusive=exclusive)

    async def note(change: Change) -> None:
        if changes is not None:
            changes.append(change)

    return broker.engine.subscribe(source, note)


async def taken(place: Subscription, count: int, within: float = 20.0) -> list[Message]:
    """Exactly so many messages."""
    found: list[Message] = []
    async with asyncio.timeout(within):
        while len(found) < count:
            found += await place.receive(count - len(found), 0.1)
    return found


async def nothing_more(place: Subscription) -> bool:
    """Whether no message comes for a while."""
    return not await place.receive(1, QUIET)


async def both_joined(broker: Broker, topic: str, one: Subscription, two: Subscription) -> None:
    """Return once both members have been given something: an engine may take a while to share."""
    got = {one: 0, two: 0}
    async with asyncio.timeout(20):
        while not all(got.values()):
            await broker.publish_many([Outgoing("warming up", topic, key=str(n)) for n in range(32)])
            for place in got:
                while messages := await place.receive(100, 0.02):
                    got[place] += len(messages)
                    await place.ack(messages)


async def shared(
    one: Subscription, two: Subscription, count: int, *, acknowledge: bool = True
) -> tuple[list[int], list[int]]:
    """What each of two members was given of `count` numbers."""
    given: tuple[list[int], list[int]] = ([], [])

    async def work(place: Subscription, mine: list[int]) -> None:
        while len(given[0]) + len(given[1]) < count:
            messages = await place.receive(10, 0.05)
            mine += [message.value for message in messages]
            if acknowledge:
                await place.ack(messages)

    async with asyncio.timeout(20):
        await asyncio.gather(work(one, given[0]), work(two, given[1]))
    return given


def held(changes: Sequence[Change]) -> frozenset[tuple[str, int]]:
    """The partitions that a member holds after these changes."""
    mine = frozenset[tuple[str, int]]()
    for change in changes:
        mine = mine | change.partitions if isinstance(change, Assigned) else mine - change.partitions
    return mine


async def settled(condition: Callable[[], object], within: float = 20.0) -> None:
    """Return once the condition, which may be a coroutine function, holds."""
    async with asyncio.timeout(within):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.002)


async def _receive(place: Subscription, wait: float) -> list[Message]:
    return list(await place.receive(10, wait))


async def _until_woken(place: Subscription) -> None:
    """Receive as a worker does, so that an engine that moves partitions while receiving can."""
    while True:
        await place.receive(10, 0.05)


async def _until(condition: Callable[[], bool], place: Subscription) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await place.receive(10, 0.05)
