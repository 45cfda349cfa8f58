"""What only NATS has: streams and consumers underneath, foreign clients, credentials, core NATS beside JetStream."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import nats
import pytest
from nats.aio.client import Client as Foreigner

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConfigurationError,
    ConnectError,
    Message,
    MissingExtraError,
    Nats,
    NatsBroker,
    NotSupportedError,
    OffsetOutOfRangeError,
    Outgoing,
    Position,
    PublishError,
    RefusedError,
    Retry,
    Topic,
    TopicNameError,
    TopicNotFoundError,
)
from headwater.engine import Source
from headwater.engines.nats import JetStreamEngine
from headwater.testing.contract.tools import nothing_more, reading, settled, taken
from servers.nats import NatsServer

from .nats_credentials import creds_file, nkey_user, operator_mode

pytestmark = [pytest.mark.anyio, pytest.mark.server]


@pytest.fixture
async def broker(nats_server: NatsServer) -> AsyncIterator[NatsBroker]:
    async with NatsBroker(nats_server.url) as broker:
        yield broker


@pytest.fixture
async def foreigner(nats_server: NatsServer) -> AsyncIterator[Foreigner]:
    """Another program on the same server, which knows nothing of Headwater."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
def topic() -> str:
    return f"t-{os.urandom(6).hex()}"


@pytest.fixture
def group() -> str:
    return f"g-{os.urandom(6).hex()}"


async def consumer_of(foreigner: Foreigner, stream: str) -> Any:
    """The only consumer of a stream, as the server sees it."""
    (info,) = await foreigner.jetstream().consumers_info(stream)
    return info


# --- streams ------------------------------------------------------------------------------------------


async def test_a_topic_goes_to_the_wider_stream_that_is_there(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    await foreigner.jetstream().add_stream(name=topic, subjects=[f"{topic}.>"])
    async with reading(broker, f"{topic}.eu", group) as place:
        await broker.publish("found", f"{topic}.eu")
        assert [message.value for message in await taken(place, 1)] == ["found"]
    info = await foreigner.jetstream().stream_info(topic)
    assert (info.state.messages, info.config.subjects) == (1, [f"{topic}.>"])


async def test_topics_share_a_stream_that_their_owner_names(
    broker: NatsBroker, foreigner: Foreigner, topic: str
) -> None:
    shared = Nats(stream=f"S-{topic}", subjects=(f"{topic}.*",), duplicates=5)
    await broker.declare([Topic(f"{topic}.{n}", options=(shared,)) for n in range(3)])
    await broker.declare([Topic(f"other.{topic}", options=(Nats(stream=f"S-{topic}"),))])
    await broker.publish_many([Outgoing(n, f"{topic}.{n}") for n in range(3)])
    await broker.publish(3, f"other.{topic}")
    info = await foreigner.jetstream().stream_info(f"S-{topic}")
    assert info.state.messages == 4
    assert {f"{topic}.*", f"other.{topic}"} <= set(info.config.subjects or ())
    assert info.config.duplicate_window == 5


async def test_retention_is_that_of_the_stream(broker: NatsBroker, foreigner: Foreigner, topic: str) -> None:
    await broker.declare([Topic(topic, retention=timedelta(minutes=1), retention_bytes=1 << 20)])
    config = (await foreigner.jetstream().stream_info(topic)).config
    assert (config.max_age, config.max_bytes) == (60, 1 << 20)


async def test_two_topics_whose_streams_would_have_one_name_are_kept_apart(
    broker: NatsBroker, topic: str, group: str
) -> None:
    names = [f"{topic}.x", f"{topic}_x", f"{topic}/x"]
    await broker.publish_many([Outgoing(name, name) for name in names])
    for name in names:
        async with broker.stream(name, start="earliest", limit=1) as stream:
            assert [message.value async for message in stream] == [name]


async def test_without_auto_create_a_missing_topic_is_an_error(nats_server: NatsServer, topic: str, group: str) -> None:
    async with Broker(f"{nats_server.url}?auto_create=false") as broker:
        with pytest.raises(TopicNotFoundError):
            await broker.publish(1, topic)
        with pytest.raises(TopicNotFoundError):
            await broker.get(topic, group=group)


async def test_names_that_are_no_subjects_are_refused(broker: NatsBroker) -> None:
    for name in ("a..b", ".a", "a.", "a.*", "a.>", "a b", "a\r\nPUB x 0", "$JS.API.INFO", "x" * 600):
        with pytest.raises(TopicNameError):
            broker.engine.check_topic(name)
        with pytest.raises(TopicNameError):
            await broker.publish(1, name)


async def test_partitions_are_refused(broker: NatsBroker, topic: str) -> None:
    with pytest.raises(NotSupportedError):
        await broker.declare([Topic(topic, partitions=8)])
    with pytest.raises(NotSupportedError):
        await broker.publish(1, topic, partition=3)


# --- groups -------------------------------------------------------------------------------------------


async def test_a_second_subscriber_of_a_group_reads_its_own_topic(
    broker: NatsBroker, nats_server: NatsServer, topic: str, group: str
) -> None:
    await broker.declare([Topic(f"{topic}.a", options=(Nats(stream=topic, subjects=(f"{topic}.*",)),))])
    app, got = App(group, nats_server.url), list[tuple[str, str]]()

    @app.subscriber(f"{topic}.a")
    async def first(name: str) -> None:
        got.append(("first", name))

    @app.subscriber(f"{topic}.b")
    async def second(name: str) -> None:
        got.append(("second", name))

    async with app:
        await broker.publish("b", f"{topic}.b")
        await broker.publish("a", f"{topic}.a")
        await settled(lambda: len(got) == 2)
    assert sorted(got) == [("first", "a"), ("second", "b")]


async def test_one_place_reads_several_topics(broker: NatsBroker, topic: str, group: str) -> None:
    topics = tuple(f"{topic}-{n}" for n in range(3))
    source = Source(topics=topics, group=group, start="earliest", prefetch=2)
    await broker.publish_many([Outgoing(n, topics[n % 3]) for n in range(30)])
    async with broker.engine.subscribe(source, _nothing_moves) as place:
        messages = await taken(place, 30)
        await place.ack(messages)
    assert sorted(message.value for message in messages) == list(range(30))


async def test_what_is_rejected_is_terminated_at_the_server(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    terminated = await foreigner.subscribe(f"$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.{topic}.>")
    await foreigner.flush()
    async with reading(broker, topic, group) as place:
        await broker.publish(1, topic)
        await place.reject(await taken(place, 1), "no use\r\nat all")
        assert b"no use at all" in (await terminated.next_msg(5)).data
        assert (await consumer_of(foreigner, topic)).num_ack_pending == 0


async def test_what_is_given_back_is_known_as_redelivered(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    async with reading(broker, topic, group) as place:
        await broker.publish(1, topic)
        (first,) = await taken(place, 1)
        await place.nack([first], 0.01)
        (second,) = await taken(place, 1)
        assert (first.attempt, second.attempt) == (1, 2)
        assert (await consumer_of(foreigner, topic)).num_redelivered == 1


async def test_giving_back_without_delay_does_not_spin(broker: NatsBroker, topic: str, group: str) -> None:
    async with reading(broker, topic, group) as place:
        await broker.publish(1, topic)
        begin, count = asyncio.get_running_loop().time(), 0
        while asyncio.get_running_loop().time() - begin < 0.5:
            messages = await place.receive(10, 0.1)
            count += len(messages)
            await place.nack(messages, 0)
    assert 1 < count <= 12


async def test_the_server_stops_after_as_many_deliveries_as_it_was_told(
    broker: NatsBroker, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(topics=(topic,), group=group, options=(Nats(max_deliver=2, lease=0.3),))
    async with broker.engine.subscribe(source, _nothing_moves) as place:
        await broker.publish(1, topic)
        await taken(place, 2)  # neither is settled, and the lease runs out
        await settled(lambda: "was given out 2 times" in caplog.text)
        assert not await place.receive(1, 0.5)


async def test_a_slow_message_stays_with_its_handler(
    broker: NatsBroker, nats_server: NatsServer, topic: str, group: str
) -> None:
    app, calls, done = App(group, NatsBroker(nats_server.url, lease=0.5)), list[int](), list[int]()

    @app.subscriber(topic, concurrency=2)
    async def handle(n: int, message: Message) -> None:
        calls.append(message.attempt)
        await asyncio.sleep(1.6 if n == 0 else 0)
        done.append(n)

    async with app:
        await broker.publish_many([Outgoing(n, topic) for n in range(3)])
        await settled(lambda: len(done) == 3)
    assert calls == [1, 1, 1]


async def test_what_waits_to_be_received_keeps_its_lease(broker: NatsBroker, topic: str, group: str) -> None:
    source = Source(topics=(topic,), group=group, options=(Nats(lease=2),))
    async with broker.engine.subscribe(source, _nothing_moves) as place:
        await broker.publish(1, topic)
        await asyncio.sleep(3.5)
        (message,) = await taken(place, 1)
        assert message.attempt == 1
        assert await nothing_more(place)
        await place.ack([message])


async def test_a_subscriber_that_changes_its_options_changes_its_consumer(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    for lease, exclusive in ((30.0, False), (7.0, True), (7.0, False)):
        options = (Nats(lease=lease),)
        source = Source(topics=(topic,), group=group, exclusive=exclusive, options=options)
        async with broker.engine.subscribe(source, _nothing_moves) as place:
            await broker.publish(lease, topic)
            await place.ack(await taken(place, 1))
        assert (await consumer_of(foreigner, topic)).config.ack_wait == lease


async def test_a_member_goes_on_after_its_consumer_was_deleted(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    async with reading(broker, topic, group) as place:
        await broker.publish(1, topic)
        await place.ack(await taken(place, 1))
        await foreigner.jetstream().delete_consumer(topic, (await consumer_of(foreigner, topic)).name)
        await broker.publish(2, topic)
        assert [message.value for message in await taken(place, 1)] == [2]


@pytest.mark.parametrize("member", [True, False])
async def test_a_place_goes_on_after_its_stream_was_deleted(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str, member: bool
) -> None:
    await broker.declare([Topic(topic)])
    async with reading(broker, topic, group if member else None) as place:
        await broker.publish_many([Outgoing(n, topic) for n in range(3)])
        await place.ack(await taken(place, 3))
        await foreigner.jetstream().delete_stream(topic)
        await broker.publish("again", topic)
        assert [message.value for message in await taken(place, 1)] == ["again"]


async def test_what_was_under_way_when_a_member_leaves_goes_to_the_others_at_once(
    broker: NatsBroker, nats_server: NatsServer, topic: str, group: str
) -> None:
    seen = set[int]()
    await broker.declare([Topic(topic)])
    async with reading(broker, topic, group) as staying, asyncio.timeout(15), asyncio.TaskGroup() as tasks:

        async def publish() -> None:
            for first in range(0, 5000, 100):
                await broker.publish_many([Outgoing(n, topic) for n in range(first, first + 100)])

        async def come_and_go() -> None:
            async with NatsBroker(nats_server.url) as other:
                for _ in range(20):
                    async with reading(other, topic, group) as place:
                        messages = await place.receive(20, 0.01)
                        seen.update(message.value for message in messages)
                        await place.ack(messages)

        tasks.create_task(publish())
        tasks.create_task(come_and_go())
        while len(seen) < 5000:
            messages = await staying.receive(1000, 0.1)
            seen.update(message.value for message in messages)
            await staying.ack(messages)


# --- patterns -----------------------------------------------------------------------------------------


async def test_a_pattern_reads_a_stream_that_somebody_else_makes_later(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    async with reading(broker, f"{topic}.{{region}}.made", group) as place:
        await foreigner.jetstream().add_stream(name=topic, subjects=[f"{topic}.eu.>"])
        await foreigner.jetstream().publish(f"{topic}.eu.made", b"1")
        await foreigner.jetstream().publish(f"{topic}.eu.sold", b"2")
        assert [(m.topic, m.value) for m in await taken(place, 1)] == [(f"{topic}.eu.made", 1)]
        assert await nothing_more(place)


async def test_a_topic_made_while_its_group_was_away_is_read_from_its_beginning(
    broker: NatsBroker, topic: str, group: str
) -> None:
    pattern = f"{topic}.{{region}}"
    await broker.publish("before the group", f"{topic}.old")
    async with reading(broker, pattern, group) as place:
        assert await nothing_more(place)
    await broker.publish("while it was away", f"{topic}.new")
    async with reading(broker, pattern, group) as place:
        assert [message.value for message in await taken(place, 1)] == ["while it was away"]


async def test_a_pattern_passes_over_dead_letters_in_a_stream_of_its_own(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str
) -> None:
    await foreigner.jetstream().add_stream(name=topic, subjects=[f"{topic}.>"])
    async with reading(broker, f"{topic}.{{rest:path}}", group) as place:
        for name in (f"{topic}.a.dead", f"{topic}.a.g.retry", f"{topic}.a"):
            await broker.publish(name, name)
        await place.ack(await taken(place, 1))
        await settled(lambda: _all_done(foreigner, topic))


async def _all_done(foreigner: Foreigner, stream: str) -> bool:
    info = await consumer_of(foreigner, stream)
    return info.num_ack_pending == 0 and info.num_pending == 0


# --- readers ------------------------------------------------------------------------------------------


async def test_a_stream_is_read_from_any_sequence_number(broker: NatsBroker, topic: str) -> None:
    receipts = await broker.publish_many([Outgoing(n, topic) for n in range(6)])
    third = receipts[3].offset
    assert isinstance(third, int)
    async with broker.stream(topic, start=third, wait=0.1) as stream:
        assert [message.value async for message in stream] == [3, 4, 5]
    async with broker.stream(topic, start="earliest") as stream:
        assert (await anext(stream)).value == 0
        await stream.seek(Position(topic, 0, third))
        assert (await anext(stream)).value == 3
    for offset in (0, 99):
        with pytest.raises(OffsetOutOfRangeError):
            await anext(broker.stream(topic, start=offset))


async def test_a_reader_goes_on_where_it_was_when_its_consumer_is_gone(
    broker: NatsBroker, foreigner: Foreigner, topic: str
) -> None:
    async with broker.stream(topic := await _with_messages(broker, topic), start="earliest") as stream:
        assert [(await anext(stream)).value for _ in range(3)] == [0, 1, 2]
        await foreigner.jetstream().delete_consumer(topic, (await consumer_of(foreigner, topic)).name)
        await broker.publish(3, topic)
        assert (await anext(stream)).value == 3


async def test_a_reader_leaves_nothing_behind(broker: NatsBroker, foreigner: Foreigner, topic: str) -> None:
    async with broker.stream(await _with_messages(broker, topic), start="earliest", limit=2) as stream:
        assert [message.value async for message in stream] == [0, 1]
    assert await foreigner.jetstream().consumers_info(topic) == []


async def _with_messages(broker: Broker, topic: str) -> str:
    await broker.publish_many([Outgoing(n, topic) for n in range(3)])
    return topic


# --- messages -----------------------------------------------------------------------------------------


async def test_a_message_of_an_id_that_was_there_is_kept_once(broker: NatsBroker, topic: str) -> None:
    first = await broker.publish(1, topic, headers={"hw-id": "order-7"})
    second = await broker.publish(1, topic, headers={"hw-id": "order-7"})
    assert first.offset == second.offset
    await broker.publish(2, topic, headers={"hw-id": "order-8"})
    async with broker.stream(topic, start="earliest", wait=0.1) as stream:
        assert [(message.value, message.id) async for message in stream] == [(1, "order-7"), (2, "order-8")]


async def test_letters_and_replays_of_one_id_are_not_taken_for_duplicates(
    nats_server: NatsServer, topic: str, group: str
) -> None:
    app, fails, good = App(group, nats_server.url), [True], list[str | None]()

    async def fail(n: int, message: Message) -> None:
        if fails[0]:
            raise ValueError
        good.append(message.group)

    app.subscriber(topic, retry=Retry(attempts=1))(fail)
    app.subscriber(topic, group=f"{group}-2", retry=Retry(attempts=1))(fail)
    async with app:
        await app.publish(1, topic, headers={"hw-id": "order-7"})

        async def letters() -> bool:
            return len(await app.admin.dead.list(topic)) == 2

        await settled(letters)
        fails[0] = False
        assert await app.admin.dead.replay(topic) == 2
        await settled(lambda: sorted(map(str, good)) == [group, f"{group}-2"])


HEADERS = [
    ("spaces", b"  both sides  "),
    ("x", b"a: b"),
    ("Mixed-Case", b"1"),
    ("lines", b"a\r\nNats-Msg-Id: forged"),
    ("raw", b"\xff\x00"),
    ("name with blanks", b"1"),
    ("colon:", b"1"),
    ("nämé", b"1"),
    ("", b"1"),
]


@pytest.mark.parametrize("jetstream", [True, False])
@pytest.mark.parametrize("pair", HEADERS, ids=lambda pair: pair[0] or "empty")
async def test_headers_that_nats_cannot_carry_arrive_all_the_same(
    nats_server: NatsServer, topic: str, group: str, pair: tuple[str, bytes], jetstream: bool
) -> None:
    async with NatsBroker(nats_server.url, jetstream=jetstream) as broker, reading(broker, topic, group) as place:
        await broker.publish(b"", topic, headers=[("a", "1"), pair, ("a", "2")], key=b"\xff\r\n")
        (message,) = await taken(place, 1)
    assert message.headers.pairs == (("a", b"1"), pair, ("a", b"2"))
    assert message.key_bytes == b"\xff\r\n"


async def test_one_message_too_large_does_not_fail_those_beside_it(broker: NatsBroker, topic: str) -> None:
    with pytest.raises(PublishError) as caught:
        await broker.publish_many([Outgoing(1, topic), Outgoing(b"x" * (2 << 20), topic), Outgoing(3, topic)])
    assert [error is None for error in caught.value.errors] == [True, False, True]
    async with broker.stream(topic, start="earliest", limit=2) as stream:
        assert [message.value async for message in stream] == [1, 3]


async def test_a_stream_of_others_that_takes_no_delayed_messages_says_so(
    broker: NatsBroker, foreigner: Foreigner, topic: str
) -> None:
    await foreigner.jetstream().add_stream(name=topic, subjects=[f"{topic}.>"])
    with pytest.raises(NotSupportedError, match="delayed"):
        await broker.publish(1, f"{topic}.a", delay=1)
    with pytest.raises(NotSupportedError, match="delayed"):
        await broker.declare([Topic(f"{topic}.a.shop.retry")])


async def test_without_schedules_nothing_is_delayed(nats_server: NatsServer, topic: str) -> None:
    async with NatsBroker(nats_server.url, schedules=False) as broker:
        assert not broker.engine.capabilities(Source(topics=(topic,), group="g")).delayed_send
        with pytest.raises(NotSupportedError):
            await broker.publish(1, topic, delay=1)


# --- foreign clients ----------------------------------------------------------------------------------


async def test_messages_of_a_plain_client_are_handled(
    nats_server: NatsServer, foreigner: Foreigner, topic: str, group: str
) -> None:
    app, got = App(group, nats_server.url), list[Message]()

    @app.subscriber(topic)
    async def handle(body: dict[str, int], message: Message) -> None:
        got.append(message)

    async with app:
        await foreigner.jetstream().publish(topic, b'{"a": 1}')
        await foreigner.jetstream().publish(topic, b'{"a": 2}', headers={"Nats-Msg-Id": "seven", "x": "y"})
        await settled(lambda: len(got) == 2)
    assert [message.value for message in got] == [{"a": 1}, {"a": 2}]
    assert (got[0].headers.pairs, got[0].key) == ((), None)
    assert (got[1].id, got[1].headers["x"]) == ("seven", "y")


async def test_a_plain_client_reads_what_is_published(broker: NatsBroker, foreigner: Foreigner, topic: str) -> None:
    await broker.publish({"a": 1}, topic, key="k", headers={"x": "y", "hw-id": "seven"})
    message = await foreigner.jetstream().get_last_msg(topic, topic)
    assert message.data == b'{"a":1}'
    assert message.headers == {
        "content-type": "application/json",
        "x": "y",
        "hw-id": "seven",
        "Nats-Msg-Id": "seven",
        "hw-key": "k",
    }


async def test_a_plain_request_is_answered_by_a_handler_on_core_nats(
    nats_server: NatsServer, foreigner: Foreigner, topic: str, group: str
) -> None:
    app = App(group, NatsBroker(nats_server.url, jetstream=False))

    @app.subscriber(topic, dead_letter=False)
    async def double(n: int) -> int:
        return n * 2

    async with app:
        answers = await asyncio.gather(*(foreigner.request(topic, str(n).encode(), timeout=5) for n in range(10)))
    assert [int(answer.data) for answer in answers] == [2 * n for n in range(10)]


async def test_a_plain_responder_answers_a_request_on_core_nats(
    nats_server: NatsServer, foreigner: Foreigner, topic: str
) -> None:
    async def respond(message: Any) -> None:
        await foreigner.publish(message.reply, message.data + b"0")

    await foreigner.subscribe(topic, cb=respond)
    await foreigner.flush()
    async with Broker(nats_server.url.replace("nats://", "nats+core://")) as broker:
        answers = await asyncio.gather(*(broker.request(n, topic) for n in range(1, 10)))
    assert [answer.value for answer in answers] == [n * 10 for n in range(1, 10)]


# --- core NATS ----------------------------------------------------------------------------------------


async def test_members_of_a_queue_group_share_and_others_get_everything(nats_server: NatsServer, topic: str) -> None:
    async with (
        NatsBroker(nats_server.url, jetstream=False) as broker,
        reading(broker, topic, "shop") as one,
        reading(broker, topic, "shop") as two,
        reading(broker, topic, None) as alone,
    ):
        await broker.publish_many([Outgoing(n, topic) for n in range(200)])
        shares = [await place.receive(1000, 0.2) for place in (one, two)]
        assert len(await taken(alone, 200)) == 200
    assert all(shares)
    assert sorted(message.value for share in shares for message in share) == list(range(200))


async def test_core_nats_matches_topics_with_fields(nats_server: NatsServer, topic: str, group: str) -> None:
    app, got = App(group, NatsBroker(nats_server.url, jetstream=False)), list[tuple[str, str]]()

    @app.subscriber(f"{topic}.{{region}}.{{rest:path}}", dead_letter=False)
    async def handle(body: str, region: str, rest: str) -> None:
        got.append((region, rest))

    async with app:
        for name in ("eu.a", "us.a.b", "eu", "eu.a.dead"):
            await app.publish("x", f"{topic}.{name}")
        await settled(lambda: len(got) == 2)
    assert sorted(got) == [("eu", "a"), ("us", "a.b")]


async def test_what_has_no_room_is_dropped_and_counted(
    nats_server: NatsServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with NatsBroker(nats_server.url, jetstream=False) as broker:
        source = Source(topics=(topic,), options=(Nats(pending=10),))
        async with broker.engine.subscribe(source, _nothing_moves) as place:
            await broker.publish_many([Outgoing(n, topic) for n in range(100)])
            assert [message.value for message in await taken(place, 10)] == list(range(10))
            assert await nothing_more(place)
            assert place.dropped == 90  # type: ignore[attr-defined]  # a listener's
    assert caplog.text.count("were dropped") == 1


async def test_what_anybody_sends_to_an_inbox_ends_nothing(
    broker: NatsBroker, foreigner: Foreigner, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with reading(broker, topic, group) as place:
        await broker.publish(0, topic)
        assert [message.value for message in await taken(place, 1)] == [0]  # so the server knows the inbox
        (pull,) = place._pulls.values()  # type: ignore[attr-defined]  # nobody else knows where to send it
        await foreigner.publish(pull._inbox.decode(), b"rubbish", reply="no.place")
        await foreigner.flush()
        await broker.publish(1, topic)
        assert [message.value for message in await taken(place, 1)] == [1]
    assert "none that belongs there" in caplog.text


# --- one active member --------------------------------------------------------------------------------


async def test_order_by_key_holds_over_processes_with_one_active_member(nats_server: NatsServer, topic: str) -> None:
    apps, seen = [App("shop", nats_server.url) for _ in range(2)], list[tuple[int, int]]()

    def declare(number: int) -> None:
        @apps[number].subscriber(topic, concurrency=8, order_by="key", exclusive=True)
        async def handle(n: int) -> None:
            await asyncio.sleep(0)
            seen.append((number, n))

    declare(0)
    declare(1)
    async with apps[0]:
        async with apps[1]:
            await apps[0].publish_many([Outgoing(n, topic, key=str(n % 3)) for n in range(60)])
            await settled(lambda: len(seen) == 60)
            assert len({number for number, _ in seen}) == 1
        await apps[0].publish_many([Outgoing(n, topic, key=str(n % 3)) for n in range(60, 90)])
        await settled(lambda: len(seen) == 90)
    for key in range(3):
        numbers = [n for _, n in seen if n % 3 == key]
        assert numbers == sorted(numbers)


async def test_the_active_member_stays_so_while_it_has_no_room_for_more(
    broker: NatsBroker, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.engines.nats.consumers.PIN_FOR", 1.0)
    monkeypatch.setattr("headwater.engines.nats.place.LOOK_EVERY", 0.1)
    source = Source(topics=(topic,), group=group, exclusive=True, prefetch=8)
    await broker.declare([Topic(topic)])
    async with (
        broker.engine.subscribe(source, _nothing_moves),
        broker.engine.subscribe(source, _nothing_moves) as other,
    ):
        await broker.publish_many([Outgoing(n, topic) for n in range(100)])
        assert not await other.receive(1, 2.5)


async def test_a_stream_that_is_full_says_why_it_takes_no_more(
    broker: NatsBroker, foreigner: Foreigner, topic: str
) -> None:
    await foreigner.jetstream().add_stream(name=topic, subjects=[topic], max_msgs=1, discard="new")
    await broker.publish(1, topic)
    with pytest.raises(RefusedError, match="maximum messages exceeded"):
        await broker.publish(2, topic)


# --- reaching the server ------------------------------------------------------------------------------


@pytest.mark.parametrize("jetstream", [True, False])
async def test_token_user_nkey_and_credentials_are_shown(tmp_path: Any, jetstream: bool) -> None:
    user, seed = nkey_user(tmp_path)
    async with (
        NatsServer(token="s3cret/token") as with_token,
        NatsServer(user="anne", password="p@ss:word") as with_user,
        NatsServer(extra=[f"authorization {{ users: [ {{ nkey: {user} }} ] }}"]) as with_nkey,
    ):
        for url, options in (
            (f"nats://s3cret%2Ftoken@{with_token.address}", {}),
            (f"nats://{with_token.address}", {"token": "s3cret/token"}),
            (f"nats://anne:p%40ss%3Aword@{with_user.address}", {}),
            (f"nats://{with_user.address}", {"user": "anne", "password": "p@ss:word"}),
            (f"nats://{with_nkey.address}?nkey={seed}", {}),
        ):
            async with NatsBroker(url, jetstream=jetstream, **options) as broker:  # type: ignore[arg-type]  # strings
                await broker.ping()


async def test_a_credentials_file_is_shown(tmp_path: Any) -> None:
    lines, account = operator_mode()
    async with NatsServer(extra=lines) as server:
        path = creds_file(tmp_path, account)
        async with Broker(f"{server.url}?credentials={path}") as broker:
            await broker.publish(1, "orders")
        with pytest.raises(AuthenticationError):
            await Broker(server.url).connect()


def test_several_hosts_and_their_ports_are_read_from_the_url() -> None:
    for url, hosts in (
        ("nats://", ("localhost:4222",)),
        ("nats://a,b:1", ("a:4222", "b:1")),
        ("nats://me:pw@[::1],[::2]:7", ("[::1]:4222", "[::2]:7")),
    ):
        engine = NatsBroker(url).engine
        assert isinstance(engine, JetStreamEngine)
        assert engine.settings.hosts == hosts
        assert "pw" not in repr(engine.settings)


@pytest.mark.parametrize("scheme", ["nats", "nats+core"])
async def test_wrong_credentials_are_refused_at_once_without_showing_them(scheme: str) -> None:
    async with NatsServer(user="anne", password="right") as server:
        for url in (f"{scheme}://anne:hunter2@{server.address}", f"{scheme}://hunter2@{server.address}"):
            with pytest.raises(AuthenticationError) as caught:
                await Broker(url).connect()
            assert server.address in str(caught.value)
            assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {Broker(url)!r}"


async def test_tls_is_used_and_insisted_on(nats_server: NatsServer) -> None:
    async with NatsServer(tls=True, token="secret") as server:
        assert server.certificate is not None
        ca = server.certificate.file
        for scheme in ("tls", "nats+tls", "nats"):
            async with Broker(f"{scheme}://secret@{server.address}?tls_ca={ca}") as broker:
                await broker.publish(1, "orders")
        with pytest.raises(ConnectError, match="certificate"):
            await Broker(f"tls://secret@{server.address}").connect()
    with pytest.raises(ConnectError, match="offers no TLS"):
        await Broker(f"tls://secret@{nats_server.address}").connect()


async def test_a_server_that_cannot_be_reached_is_named_with_the_cause(nats_server: NatsServer) -> None:
    async with NatsServer() as gone:
        address = gone.address
    with pytest.raises(ConnectError, match=f"{address}.*refused"):
        await Broker(f"nats://{address}").connect()
    async with Broker(f"nats://{address},{nats_server.address}") as broker:
        await broker.ping()


async def test_a_server_without_jetstream_says_what_to_do() -> None:
    account = 'accounts { plain { users: [ { user: "anne", password: "secret" } ] } }'
    async with NatsServer(extra=[account]) as server:
        with pytest.raises(ConnectError, match=r"nats\+core://"):
            await Broker(f"nats://anne:secret@{server.address}").connect()
        async with Broker(f"nats+core://anne:secret@{server.address}") as broker:
            await broker.publish(1, "orders")


def test_an_option_that_nats_lacks_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="'partitions'"):
        Broker("nats://localhost?partitions=3")
    with pytest.raises(ConfigurationError, match="lease"):
        Broker("nats://localhost?lease=0")
    with pytest.raises(ConfigurationError, match=r"no file 'missing\.creds'"):
        NatsBroker(credentials="missing.creds")


async def test_a_missing_client_names_the_extra(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "headwater.engines.nats.client", None)
    with pytest.raises(MissingExtraError, match="headwater\\[nats\\]"):
        await Broker(nats_server.url).connect()


async def test_a_refused_permission_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    anne = '{ user: "anne", password: "secret", permissions: { publish: { deny: "orders" } } }'
    async with (
        NatsServer(extra=[f"authorization {{ users: [ {anne} ] }}"]) as server,
        Broker(f"nats+core://anne:secret@{server.address}") as broker,
    ):
        with caplog.at_level(logging.WARNING, logger="headwater.nats"):
            await broker.publish(1, "orders")
            await settled(lambda: "permissions violation" in caplog.text.lower())
        await broker.publish(1, "others")


async def _nothing_moves(_change: object) -> None: ...
