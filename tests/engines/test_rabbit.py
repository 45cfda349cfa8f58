"""What only RabbitMQ has: kinds of exchanges and queues, routing, the ladder of delays, requests of other programs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import pytest

from headwater import (
    App,
    Broker,
    ConfigurationError,
    Message,
    MessageTooLargeError,
    NotSupportedError,
    Outgoing,
    PublishError,
    Rabbit,
    RabbitBroker,
    RefusedError,
    Reject,
    Retry,
    Topic,
    TopicNameError,
    TopicNotFoundError,
)
from headwater.engine import Source, Subscription
from headwater.testing.contract.tools import nothing_more, reading, settled, taken
from servers.rabbit import RabbitServer

pytestmark = pytest.mark.server

Foreign = aio_pika.abc.AbstractChannel


@pytest.fixture
def topic() -> str:
    """A topic nobody else uses."""
    return f"t-{os.urandom(6).hex()}"


@pytest.fixture
async def broker(rabbit_server: RabbitServer) -> AsyncIterator[Broker]:
    async with Broker(rabbit_server.url) as broker:
        yield broker


@pytest.fixture
async def foreign(rabbit_server: RabbitServer) -> AsyncIterator[Foreign]:
    """A channel of another program."""
    async with await aio_pika.connect(rabbit_server.url) as connection:
        yield await connection.channel()


def app_on(server: RabbitServer, name: str = "shop", **options: Any) -> App:
    return App(name, RabbitBroker(server.url, **options))


def values(messages: list[Message]) -> list[Any]:
    return sorted(message.value for message in messages)


# --- exchanges ----------------------------------------------------------------------------------------


def subscribed(broker: Broker, topic: str, group: str, **options: Any) -> AbstractAsyncContextManager[Subscription]:
    source = Source(topics=(topic,), group=group, options=(Rabbit(**options),))
    return broker.engine.subscribe(source, _nothing_moves)


async def _nothing_moves(_: object) -> None: ...


@pytest.mark.parametrize("kind", ["topic", "fanout", "direct", "headers"])
async def test_a_group_gets_all_of_a_topic_whatever_its_exchange_is(broker: Broker, topic: str, kind: Any) -> None:
    await broker.declare([Topic(topic, options=(Rabbit(exchange_type=kind),))])
    async with reading(broker, topic, "shop") as place:
        await broker.publish_many([Outgoing(n, topic) for n in range(3)])
        assert values(await taken(place, 3)) == [0, 1, 2]


async def test_a_group_binds_by_routing_key(broker: Broker, topic: str) -> None:
    async with subscribed(broker, topic, "eu", routing_key="eu.*") as place:
        for key in ("eu.created", "us.created", "eu.gone"):
            await broker.publish(key, topic, options=[Rabbit(routing_key=key)])
        assert values(await taken(place, 2)) == ["eu.created", "eu.gone"]
        assert await nothing_more(place)


async def test_a_group_binds_by_headers(broker: Broker, topic: str) -> None:
    await broker.declare([Topic(topic, options=(Rabbit(exchange_type="headers"),))])
    arguments = {"x-match": "all", "kind": "urgent"}
    async with subscribed(broker, topic, "urgent", binding_arguments=arguments) as place:
        for kind in ("urgent", "other"):
            await broker.publish(kind, topic, headers={"kind": kind})
        assert values(await taken(place, 1)) == ["urgent"]
        assert await nothing_more(place)


async def test_an_exchange_that_is_there_keeps_its_type(broker: Broker, foreign: Foreign, topic: str) -> None:
    await foreign.declare_exchange(topic, aio_pika.ExchangeType.DIRECT, durable=True)
    async with reading(broker, topic, "shop") as place:
        await broker.publish(1, topic)
        assert values(await taken(place, 1)) == [1]


async def test_an_exchange_of_another_type_than_was_asked_for_is_an_error(
    broker: Broker, foreign: Foreign, topic: str
) -> None:
    await foreign.declare_exchange(topic, aio_pika.ExchangeType.DIRECT, durable=True)
    with pytest.raises(ConfigurationError, match=r"'fanout' but current is 'direct'"):
        await broker.declare([Topic(topic, options=(Rabbit(exchange_type="fanout"),))])
    await broker.publish(1, f"{topic}.other")  # and the connection survives it


async def test_the_names_of_another_program_are_taken_as_they_are(
    rabbit_server: RabbitServer, foreign: Foreign, topic: str
) -> None:
    exchange = await foreign.declare_exchange(f"{topic}.legacy", aio_pika.ExchangeType.TOPIC, durable=True)
    await foreign.declare_queue(f"{topic}.queue", durable=True, arguments={"x-max-length": 1000})
    app, got = app_on(rabbit_server), list[tuple[str, int]]()

    @app.subscriber(topic, options=[Rabbit(exchange=f"{topic}.legacy", queue=f"{topic}.queue", routing_key="a.#")])
    async def handle(n: int, message: Message) -> None:
        got.append((message.topic, n))

    async with app:
        await exchange.publish(aio_pika.Message(b"1"), "a.b")
        await exchange.publish(aio_pika.Message(b"2"), "b.c")
        await app.publish(3, topic, options=[Rabbit(exchange=f"{topic}.legacy", routing_key="a.c")])
        await settled(lambda: len(got) == 2)
    assert got == [(topic, 1), (topic, 3)]


async def test_publishing_to_the_default_exchange_reaches_a_queue(broker: Broker, foreign: Foreign, topic: str) -> None:
    queue = await foreign.declare_queue(topic, auto_delete=True)
    await broker.publish({"a": 1}, topic, options=[Rabbit(exchange="")])
    message = await queue.get(timeout=5)
    assert (message.body, message.content_type) == (b'{"a":1}', "application/json")


# --- queues -------------------------------------------------------------------------------------------


async def test_a_queue_with_other_arguments_is_an_error_that_says_which(
    rabbit_server: RabbitServer, broker: Broker, topic: str
) -> None:
    async with reading(broker, topic, "shop"):
        pass
    with pytest.raises(ConfigurationError, match=r"x-single-active-consumer"):
        async with reading(broker, topic, "shop", exclusive=True):
            pass


async def test_failing_messages_do_not_hold_up_the_rest(rabbit_server: RabbitServer, topic: str) -> None:
    app, good = app_on(rabbit_server), set[int]()

    @app.subscriber(topic, concurrency=10, retry=Retry(attempts=2, backoff=(30, 30)))
    async def handle(n: int) -> None:
        if n < 2500:
            raise ValueError("not now")
        good.add(n)

    app.logger.disabled = True
    async with app:
        await app.publish_many([Outgoing(n, topic) for n in range(2600)])
        await settled(lambda: len(good) == 100)
    app.logger.disabled = False


async def test_what_is_rejected_goes_the_way_of_its_queue(
    rabbit_server: RabbitServer, foreign: Foreign, topic: str
) -> None:
    own = await foreign.declare_queue(f"{topic}.own-dead", auto_delete=True)
    app = app_on(rabbit_server)
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": own.name}

    @app.subscriber(topic, dead_letter=False, options=[Rabbit(arguments=arguments)])
    async def handle(n: int) -> None:
        raise Reject("no good")

    async with app:
        await app.publish(7, topic)
        await settled(lambda: _has_one(own))
    message = await own.get()
    assert message.body == b"7"
    assert message.headers["x-first-death-reason"] == "rejected"


async def _has_one(queue: aio_pika.abc.AbstractQueue) -> bool:
    return bool((await queue.declare()).message_count)


async def test_a_queue_that_was_deleted_is_made_again(
    rabbit_server: RabbitServer, foreign: Foreign, topic: str
) -> None:
    app, got = app_on(rabbit_server), set[int]()

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        got.add(n)

    async def comes(n: int) -> bool:
        await app.publish(n, topic)
        return n in got

    async with app:
        await settled(lambda: comes(1))
        await foreign.queue_delete(f"{topic}:shop")
        await settled(lambda: comes(2))


async def test_an_exchange_that_was_deleted_is_made_and_bound_again(
    rabbit_server: RabbitServer, foreign: Foreign, topic: str
) -> None:
    app, got = app_on(rabbit_server), set[int]()

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        got.add(n)

    async with app:
        for n in range(10):
            await app.publish(n, topic)
            await foreign.exchange_delete(topic)
        await settled(lambda: got == set(range(10)))


async def test_an_exchange_that_another_process_deleted_and_made_is_bound_again(
    broker: Broker, foreign: Foreign, topic: str
) -> None:
    async with reading(broker, topic, "shop") as place:
        await foreign.exchange_delete(topic)
        exchange = await foreign.declare_exchange(topic, aio_pika.ExchangeType.TOPIC, durable=True)
        async with asyncio.timeout(15):
            while not await place.receive(1, 0.2):
                await exchange.publish(aio_pika.Message(b"1"), topic)


async def test_only_one_of_an_exclusive_group_handles_and_another_takes_over(
    rabbit_server: RabbitServer, topic: str
) -> None:
    apps, got = [app_on(rabbit_server), app_on(rabbit_server)], [set[int](), set[int]()]

    def member(app: App, mine: set[int]) -> None:
        @app.subscriber(topic, exclusive=True, order_by="key", concurrency=8)
        async def handle(n: int) -> None:
            mine.add(n)

    for app, mine in zip(apps, got, strict=True):
        member(app, mine)
    async with apps[1]:
        async with apps[0]:
            await apps[0].publish_many([Outgoing(n, topic, key=str(n)) for n in range(100)])
            await settled(lambda: len(got[1]) == 100)
            assert not got[0]
        await apps[1].publish(100, topic)
        await settled(lambda: 100 in got[1])


POISON = """
import os, signal, sys
from headwater import App, Retry
app = App("shop", sys.argv[1])

@app.subscriber(sys.argv[2])
async def handle(n: int) -> None:
    if n == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    print(n, flush=True)

import asyncio
asyncio.run(app.run())
"""


async def test_a_message_that_kills_its_process_ends_as_a_dead_letter(
    rabbit_server: RabbitServer, broker: Broker, topic: str
) -> None:
    async with reading(broker, topic, "shop"):
        pass
    await broker.publish_many([Outgoing(n, topic) for n in (1, 13, 2)])
    command = [sys.executable, "-c", POISON, rabbit_server.url, topic]

    async def live_once() -> bool:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        waiting = asyncio.create_task(process.wait())
        while not waiting.done():
            if await broker.admin.dead.list(topic):
                process.send_signal(signal.SIGTERM)
                await waiting
                return True
        return False

    async with asyncio.timeout(60):
        while not await live_once():
            pass
    letters = {letter.body: letter.reason for letter in await broker.admin.dead.list(topic)}
    assert "died" in letters[b"13"]


# --- publishing ---------------------------------------------------------------------------------------


async def test_a_mandatory_message_that_no_queue_takes_is_an_error(broker: Broker, topic: str) -> None:
    with pytest.raises(TopicNotFoundError, match="NO_ROUTE"):
        await broker.publish(1, topic, options=[Rabbit(mandatory=True)])
    await broker.publish(1, topic)
    async with reading(broker, topic, "shop") as place:
        await broker.publish(2, topic, options=[Rabbit(mandatory=True)])
        assert values(await taken(place, 1)) == [2]


async def test_of_several_mandatory_messages_those_that_no_queue_takes_are_named(broker: Broker, topic: str) -> None:
    options = (Rabbit(mandatory=True),)
    async with reading(broker, topic, "shop") as place:
        messages = [Outgoing(n, topic if n % 2 else f"{topic}.nobody", options=options) for n in range(6)]
        with pytest.raises(PublishError) as raised:
            await broker.publish_many(messages)
        assert [type(error) for error in raised.value.errors] == [TopicNotFoundError, type(None)] * 3
        assert values(await taken(place, 3)) == [1, 3, 5]


async def test_a_result_that_nobody_is_bound_for_is_no_error(rabbit_server: RabbitServer, topic: str) -> None:
    app, got = app_on(rabbit_server), list[int]()

    @app.subscriber(topic, retry=None)
    @app.publisher(f"{topic}.results")
    async def handle(n: int) -> int:
        got.append(n)
        return n

    async with app:
        await app.publish(1, topic)
        await settled(lambda: got == [1])
        assert not await app.admin.dead.list(topic)


async def test_a_queue_that_takes_no_more_refuses_and_says_so(broker: Broker, topic: str) -> None:
    arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
    async with subscribed(broker, topic, "full", queue_type="classic", arguments=arguments):
        pass
    answers = [await _outcome(broker.publish(n, topic)) for n in range(5)]
    assert any(isinstance(answer, RefusedError) for answer in answers)


async def _outcome(publish: Any) -> Any:
    try:
        return await publish
    except Exception as error:
        return error


async def test_a_message_that_is_too_large_is_refused_and_those_beside_it_are_not(topic: str) -> None:
    async with (
        RabbitServer(extra=["max_message_size = 100000"]) as server,
        Broker(server.url) as broker,
        reading(broker, topic, "shop") as place,
    ):
        sizes = [10, 200_000, 20]
        for _ in range(2):
            with pytest.raises(PublishError) as raised:
                await broker.publish_many([Outgoing(bytes(size), topic) for size in sizes])
            errors = raised.value.errors
            assert [type(error) for error in errors] == [type(None), MessageTooLargeError, type(None)]
            assert isinstance(errors[1], MessageTooLargeError)
            assert (errors[1].size, errors[1].limit) == (200_000, 100_000)
        assert {len(message.body) for message in await taken(place, 4)} == {10, 20}


async def test_headers_that_fill_more_than_a_frame_are_refused(broker: Broker, topic: str) -> None:
    with pytest.raises(MessageTooLargeError):
        await broker.publish(1, topic, headers={"x": "y" * 200_000})
    await broker.publish(1, topic)


async def test_an_expired_message_is_not_delivered(broker: Broker, topic: str) -> None:
    async with reading(broker, topic, "shop"):
        pass
    await broker.publish("soon gone", topic, options=[Rabbit(expiration=0.05)])
    await broker.publish("stays", topic)
    await asyncio.sleep(0.2)  # the expiration is the server's to measure
    async with reading(broker, topic, "shop") as place:
        assert values(await taken(place, 1)) == ["stays"]


async def test_names_that_the_client_cannot_carry_are_refused(broker: Broker) -> None:
    for name in ("a*b", "a#b", "naïve", "amq.topic", "x" * 300, " blank"):
        with pytest.raises(TopicNameError):
            broker.engine.check_topic(name)


async def test_groups_of_any_name_have_queues_of_their_own(broker: Broker, topic: str) -> None:
    groups = ["a:b", "ä", "a/b*", "a+b"]
    places = [reading(broker, topic, group) for group in groups]
    opened = [await place.__aenter__() for place in places]
    await broker.publish(1, topic)
    for place in opened:
        assert values(await taken(place, 1)) == [1]
    for leaving in places:
        await leaving.__aexit__(None, None, None)


# --- delays -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.001, 0.2, 3.0])
async def test_a_delay_is_kept_to_a_few_percent(broker: Broker, topic: str, delay: float) -> None:
    async with reading(broker, topic, "shop") as place:
        await broker.publish(0, topic, delay=delay)  # makes what it takes
        await taken(place, 1)
        begin = time.monotonic()
        await broker.publish(1, topic, delay=delay, key="k", headers={"b": "1", "a": "2"})
        (message,) = await taken(place, 1)
        took = time.monotonic() - begin
    assert delay * 0.99 <= took <= delay * 1.04 + 0.15
    assert (message.topic, message.key) == (topic, "k")
    assert [pair for pair in message.headers.pairs if pair[0] != "content-type"] == [("b", b"1"), ("a", b"2")]


async def test_a_short_delay_is_not_held_up_by_a_long_one(broker: Broker, topic: str) -> None:
    async with reading(broker, topic, "shop") as place:
        await broker.publish("long", topic, delay=30)
        await broker.publish("short", topic, delay=0.3)
        assert values(await taken(place, 1, within=5)) == ["short"]


async def test_what_waits_does_not_spin(rabbit_server: RabbitServer, broker: Broker, topic: str) -> None:
    async with reading(broker, topic, "shop") as place:
        await broker.publish(1, topic, delay=0.75)  # 0b1011101110: eight ones, of which six are kept
        (message,) = await taken(place, 1)
        hops = [name for name, _ in message.headers.pairs if name.startswith("x-")]
        assert not hops
        assert message.attempt == 1


async def test_a_delayed_message_reaches_patterns_too(broker: Broker, topic: str) -> None:
    async with reading(broker, f"{topic}.{{region}}", "shop") as place:
        await broker.publish(1, f"{topic}.eu", delay=0.1)
        (message,) = await taken(place, 1)
        assert message.topic == f"{topic}.eu"


async def test_a_delay_of_more_than_49_days_is_refused(broker: Broker, topic: str) -> None:
    with pytest.raises(NotSupportedError, match="49 days"):
        await broker.publish(1, topic, delay=timedelta(days=50).total_seconds())


async def test_a_retry_in_an_hour_waits_on_the_server(rabbit_server: RabbitServer, topic: str) -> None:
    app, calls = app_on(rabbit_server), list[int]()

    @app.subscriber(topic)
    async def handle(n: int, message: Message) -> None:
        calls.append(message.attempt)
        if message.attempt == 1:
            raise Retry.later(61 if n else 3600)

    async with app:
        await app.publish(0, topic)
        await settled(lambda: calls == [1])
        await app.publish(0, f"{topic}.shop.retry", headers={"hw-topic": topic, "hw-attempts": "1"}, delay=0.1)
        await settled(lambda: calls == [1, 2])


# --- other programs -----------------------------------------------------------------------------------


async def test_properties_are_headers_and_headers_properties(broker: Broker, foreign: Foreign, topic: str) -> None:
    queue = await foreign.declare_queue(exclusive=True)
    exchange = await foreign.declare_exchange(topic, aio_pika.ExchangeType.TOPIC, durable=True)
    await queue.bind(exchange, "#")
    headers = {
        "hw-id": "mine",
        "hw-type": "Order",
        "hw-correlation": "c1",
        "x": "1",
        "raw": b"\xff",
        "content-encoding": "br",
    }
    await broker.publish({"a": 1}, topic, key="7", headers=headers)
    theirs = await queue.get(timeout=5)
    assert (theirs.message_id, theirs.type, theirs.correlation_id) == ("mine", "Order", "c1")
    assert (theirs.content_type, theirs.content_encoding) == ("application/json", "br")
    assert theirs.headers["x"] == "1"
    assert theirs.headers["raw"] == b"\xff"
    assert theirs.headers["hw-key"] == "7"
    assert theirs.timestamp is not None
    async with reading(broker, topic, "shop") as place:
        message = aio_pika.Message(
            b"{}",
            headers={"n": 5, "yes": True, "when": datetime(2026, 1, 2, tzinfo=UTC), "deep": {"a": [1]}, "none": None},
            message_id="theirs",
            type="Thing",
            timestamp=datetime(2026, 1, 2, tzinfo=UTC),
        )
        await exchange.publish(message, topic)
        (ours,) = await taken(place, 1)
    assert ours.id == "theirs"
    assert ours.headers["hw-type"] == "Thing"
    assert ours.timestamp == datetime(2026, 1, 2, tzinfo=UTC)
    assert (ours.headers["n"], ours.headers["yes"], ours.headers["none"]) == ("5", "true", "")
    assert ours.headers["deep"] == '{"a": [1]}'
    assert ours.headers["when"] == "2026-01-02T00:00:00+00:00"


async def test_another_program_asks_our_handler(rabbit_server: RabbitServer, foreign: Foreign, topic: str) -> None:
    app = app_on(rabbit_server)

    @app.subscriber(topic)
    async def double(n: int) -> int:
        return 2 * n

    async with app:
        answers = await foreign.declare_queue(exclusive=True)
        exchange = await foreign.get_exchange(topic)
        question = aio_pika.Message(b"21", reply_to=answers.name, correlation_id="q1", expiration=5)
        await exchange.publish(question, topic)
        answer = await _soon(answers)
    assert (answer.body, answer.correlation_id) == (b"42", "q1")


async def _soon(queue: aio_pika.abc.AbstractQueue) -> aio_pika.abc.AbstractIncomingMessage:
    async with queue.iterator(timeout=10) as messages:
        return await anext(messages)


async def test_our_request_is_answered_by_another_program(broker: Broker, foreign: Foreign, topic: str) -> None:
    queue = await foreign.declare_queue(exclusive=True)
    exchange = await foreign.declare_exchange(topic, aio_pika.ExchangeType.TOPIC, durable=True)
    await queue.bind(exchange, "#")

    async def serve(message: aio_pika.abc.AbstractIncomingMessage) -> None:
        async with message.process():
            assert message.reply_to
            answer = aio_pika.Message(str(2 * int(message.body)).encode(), correlation_id=message.correlation_id)
            await foreign.default_exchange.publish(answer, message.reply_to)

    await queue.consume(serve)
    assert (await broker.request(21, topic, timeout=10)).value == 42


# --- dead letters and streams -------------------------------------------------------------------------


async def test_dead_letters_are_kept_listed_and_replayed(rabbit_server: RabbitServer, topic: str) -> None:
    app, good, broken = app_on(rabbit_server), list[int](), [True]

    @app.subscriber(topic, retry=None)
    async def handle(n: int) -> None:
        if broken[0]:
            raise ValueError("broken")
        good.append(n)

    async def letters(count: int) -> bool:
        return len(await app.admin.dead.list(topic)) == count

    async with app:
        await app.publish_many([Outgoing(n, topic, key="k") for n in range(3)])
        await settled(lambda: letters(3))
        broken[0] = False
        assert await app.admin.dead.replay(topic) == 3
        await settled(lambda: good == [0, 1, 2])
        assert await letters(0)


async def test_a_topic_that_is_a_stream_is_read_again_from_any_place(broker: Broker, topic: str) -> None:
    stream = [Rabbit(queue_type="stream")]
    await broker.declare([Topic(topic, retention=timedelta(days=1), options=tuple(stream))])
    await broker.publish_many([Outgoing(n, topic) for n in range(10)])
    for start, expected in (("earliest", 0), (4, 4), ({0: 9}, 9), (datetime.now(UTC) - timedelta(hours=1), 0)):
        reader = broker.stream(topic, start=start, limit=10 - expected, options=stream)
        assert [message.value async for message in reader] == list(range(expected, 10))
    async with broker.stream(topic, start=8, options=stream) as reader:
        assert (await anext(reader)).value == 8
        await reader.seek(2)
        assert [(await anext(reader)).value for _ in range(3)] == [2, 3, 4]
    (info,) = await broker.admin.partitions.list(topic)
    assert (info.earliest, info.latest) == (0, 10)
    reader = broker.stream(topic, options=stream, limit=1)
    async with reader:
        await broker.publish(10, topic)
        assert (await anext(reader)).offset == 10


async def test_what_comes_of_a_stream_before_the_answer_is_not_waited_for(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headwater.engines.rabbit.streams.FIRST", 1000.0)  # seconds: who waits for it fails
    await broker.declare([Topic(topic, options=(Rabbit(queue_type="stream"),))])
    await broker.publish_many([Outgoing(n, topic) for n in range(3)])
    for _ in range(20):
        assert len(await broker.admin.partitions.list(topic)) == 1


async def test_retention_of_a_topic_that_keeps_nothing_is_refused(broker: Broker, topic: str) -> None:
    with pytest.raises(NotSupportedError, match="stream"):
        await broker.declare([Topic(topic, retention=timedelta(days=1))])
    with pytest.raises(NotSupportedError, match="partitions"):
        await broker.declare([Topic(topic, partitions=3)])


async def test_a_start_that_a_queue_does_not_have_is_refused(broker: Broker, topic: str) -> None:
    for start in (5, datetime.now(UTC)):
        with pytest.raises(NotSupportedError):
            broker.engine.subscribe(Source(topics=(topic,), group="g", start=start), _nothing_moves)


# --- administration -----------------------------------------------------------------------------------


async def test_topics_groups_and_the_cluster_are_listed_by_the_management_api(
    rabbit_server: RabbitServer, topic: str
) -> None:
    async with RabbitBroker(rabbit_server.url, management=rabbit_server.management_url) as broker:
        admin = broker.admin
        async with reading(broker, topic, "shop:1"):
            await broker.publish_many([Outgoing(n, topic) for n in range(5)])
            assert topic in {found.name for found in await admin.topics.list()}
            await settled(lambda: _lag_is(broker, "shop:1", topic, 5))
            await settled(lambda: _is_active(broker, "shop:1"))
            with pytest.raises(ConfigurationError, match="live members"):
                await admin.groups.delete("shop:1")
        await settled(lambda: _gone(broker, "shop:1"))
        await admin.topics.delete(topic)
        with pytest.raises(TopicNotFoundError):
            await admin.topics.delete(topic)
        cluster = await admin.cluster.describe()
        assert cluster.version.startswith("3.")
        assert (await admin.cluster.health()).healthy


async def _lag_is(broker: Broker, group: str, topic: str, count: int) -> bool:
    return (await broker.admin.groups.lag(group, topic)).total == count


async def _is_active(broker: Broker, group: str) -> bool:
    return (await broker.admin.groups.describe(group)).active


async def _gone(broker: Broker, group: str) -> bool:
    try:
        await broker.admin.groups.delete(group)
    except ConfigurationError:
        return False
    return True


async def test_what_only_the_management_api_knows_is_refused_without_it(broker: Broker) -> None:
    with pytest.raises(NotSupportedError):
        await broker.admin.topics.list()


# --- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("amqp://localhost?prefetch=1", "no option 'prefetch'"),
        ("amqp://localhost?heartbeat=often", "heartbeat"),
        ("amqp://localhost:port", "no address"),
    ],
)
def test_a_url_that_cannot_be_is_refused(url: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Broker(url)


def test_options_are_the_same_in_the_url_and_as_arguments() -> None:
    by_url, by_name = RabbitBroker("amqp://h?queue_type=classic").engine, RabbitBroker("amqp://h", queue_type="classic")
    source = Source(topics=("orders",), group="shop")
    assert by_url.capabilities(source) == by_name.engine.capabilities(source)
    assert not by_url.capabilities(source).counts_deliveries


async def test_missing_topics_are_not_made_when_nobody_may(rabbit_server: RabbitServer, topic: str) -> None:
    async with RabbitBroker(rabbit_server.url, auto_create=False) as broker:
        with pytest.raises(TopicNotFoundError):
            await broker.publish(1, topic)
