"""Publishing, asking, reading and managing from synchronous code, on every engine that is here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice

import pytest

from headwater import (
    App,
    Broker,
    ConfigurationError,
    ConnectError,
    EncodeError,
    Outgoing,
    PublishError,
    Receipt,
    RemoteError,
    RequestTimeoutError,
    Retry,
    SyncBroker,
    Topic,
    TopicNotFoundError,
)
from headwater.sync import Stats
from headwater.sync.thread import SHARED

from .conftest import Read
from .engines import Stalling, on

THREADS = 32
EACH = 50


@contextmanager
def running(app: App) -> Iterator[App]:
    """The app, in a thread of its own."""
    started = threading.Event()
    app.after_startup(started.set)

    async def run() -> None:
        async with app:
            loop_of.append(asyncio.get_running_loop())
            await stopped.wait()

    loop_of: list[asyncio.AbstractEventLoop] = []
    stopped = asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert started.wait(10)
        yield app
    finally:
        while not loop_of:
            time.sleep(0.001)
        loop_of[0].call_soon_threadsafe(stopped.set)
        thread.join()


def test_publish_returns_the_receipt_of_the_engine(face: SyncBroker, topic: str, read: Read) -> None:
    receipt = face.publish({"id": 1}, topic, key="7", headers={"who": "me"})
    assert isinstance(receipt, Receipt)
    assert receipt.topic == topic
    assert receipt.offset is not None
    with face.stream(topic, start="earliest", limit=1) as stream:
        (message,) = stream
    assert (message.value, message.key, message.headers["who"]) == ({"id": 1}, "7", "me")
    assert read(face, topic, 1) == [{"id": 1}]


def test_publish_without_confirmation_returns_at_once(face: SyncBroker, topic: str, read: Read) -> None:
    assert face.publish(1, topic, confirm=False) == Receipt(topic, time=pytest.approx(time.time(), abs=5))
    assert face.flush()
    assert read(face, topic, 1) == [1]


def test_publish_many_goes_out_in_order_after_what_was_published_before(
    face: SyncBroker, topic: str, read: Read
) -> None:
    face.admin.topics.create(topic, partitions=1 if face.broker.engine.name in ("memory", "local") else None)
    face.publish_soon(0, topic)
    receipts = face.publish_many([Outgoing(n, topic) for n in range(1, 100)])
    face.publish_soon(100, topic)
    assert len(receipts) == 99
    assert face.flush()
    assert read(face, topic, 101) == list(range(101))
    assert face.stats == Stats(delivered=101)
    assert face.publish_many([]) == []


def test_publish_many_says_which_were_refused(face: SyncBroker, topic: str) -> None:
    with pytest.raises(PublishError) as refused:
        face.publish_many([Outgoing(1, topic), Outgoing(object(), topic)])
    assert isinstance(refused.value.errors[1], EncodeError)
    assert face.stats.failed + face.stats.delivered == 2
    assert face.stats.in_flight == 0


def test_what_cannot_be_written_is_refused_where_it_is_published(face: SyncBroker, topic: str) -> None:
    with pytest.raises(EncodeError):
        face.publish_soon(object(), topic)
    assert face.stats == Stats()


def test_many_threads_lose_nothing_double_nothing_and_keep_their_order(
    face: SyncBroker, topic: str, read: Read
) -> None:
    def work(name: int) -> None:
        for n in range(EACH):
            if n % 5:
                futures[name].append(face.publish_soon([name, n], topic, key=str(name)))
            else:
                face.publish([name, n], topic, key=str(name))

    futures: dict[int, list[object]] = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert face.flush()
    seen = defaultdict(list)
    for name, n in read(face, topic, THREADS * EACH):  # type: ignore[misc]  # pairs
        seen[name].append(n)
    assert dict(seen) == {name: list(range(EACH)) for name in range(THREADS)}
    assert face.stats == Stats(delivered=THREADS * EACH)


def test_a_delivery_calls_back_with_its_receipt(face: SyncBroker, topic: str) -> None:
    called: list[Receipt] = []
    deliveries = [face.publish_soon(n, topic) for n in range(10)]
    for delivery in deliveries:
        delivery.add_done_callback(lambda done: called.append(done.result()))
    done, waiting = wait(deliveries, timeout=5)
    assert (len(done), len(waiting)) == (10, 0)
    assert face.flush()
    assert [receipt.topic for receipt in called] == [topic] * 10
    assert [delivery.outgoing.value for delivery in deliveries] == list(range(10))
    assert face.stats == Stats(delivered=10)


def test_a_request_is_answered(url: str, topic: str) -> None:
    app = App("prices", broker=url)

    @app.subscriber(topic, retry=Retry(attempts=1))
    async def price(name: str) -> dict[str, object]:
        if name == "none":
            raise ValueError("no such thing")
        return {"name": name, "price": 3}

    with running(app), SyncBroker(Broker(url) if "memory" not in url else app.broker) as face:
        assert face.request("tea", topic, timeout=10).value == {"name": "tea", "price": 3}
        with pytest.raises(RemoteError, match="no such thing"):
            face.request("none", topic, timeout=10)


def test_a_request_that_nobody_answers_ends_in_time(face: SyncBroker, topic: str) -> None:
    face.admin.topics.create(topic)
    begin = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        face.request("anybody?", topic, timeout=0.3)
    assert time.monotonic() - begin < 3


def test_get_takes_the_next_message_of_a_group(face: SyncBroker, topic: str) -> None:
    face.publish("one", topic)
    message = face.get(topic, group=f"g-{topic}", timeout=5)
    assert message is not None
    assert message.value == "one"
    assert face.get(topic, group=f"g-{topic}", timeout=0.1) is None


def test_the_administration_blocks_too(face: SyncBroker, topic: str) -> None:
    face.admin.topics.create(topic)
    assert topic in [info.name for info in face.admin.topics.list()]
    assert face.admin.topics.describe(topic).name == topic
    assert face.admin.cluster.health().healthy
    assert face.admin.capabilities["list_topics"]
    assert face.admin.dead.topics() is not None
    assert face.admin.ensure([Topic(topic)]) == []
    assert next(face.admin.watch_cluster()).healthy
    face.get(topic, group="audit", timeout=0.1)
    assert [sample.total for sample in islice(face.admin.watch_lag("audit", topic, every=0.01), 2)] == [0, 0]
    face.admin.groups.delete("audit")
    face.admin.topics.delete(topic)
    with pytest.raises(TopicNotFoundError):
        face.admin.topics.describe(topic)


def test_ping_declare_and_a_second_use_after_close(url: str, topic: str) -> None:
    face = SyncBroker(url)
    face.declare([Topic(topic)])
    face.ping()
    face.close()
    assert not face.broker.connected
    face.close()
    face.publish(1, topic)
    assert face.broker.connected
    face.close()


def test_two_faces_share_one_thread_and_their_broker() -> None:
    broker = Broker("memory://")
    with SyncBroker(broker) as one, SyncBroker(broker) as other:
        one.publish(1, "t")
        other.publish(2, "t")
        assert one.broker.loop is other.broker.loop
        assert one.stats == other.stats == Stats(delivered=1)


def test_options_of_a_broker_that_is_there_are_its_own() -> None:
    with pytest.raises(ConfigurationError, match="connect_timeout"):
        SyncBroker(Broker("memory://"), connect_timeout=1)
    assert SyncBroker("memory://", connect_timeout=1).broker.connect_timeout == 1


def test_an_operation_that_hangs_is_given_up() -> None:
    engine = Stalling()
    with SyncBroker(on(engine), call_timeout=0.2) as face:

        async def hang() -> None:
            await asyncio.Event().wait()

        with pytest.raises(ConnectError, match=r"no answer to hang within 0\.2 s"):
            face.run("hang", hang)


@pytest.mark.parametrize(
    "call",
    [
        lambda face: face.publish(1, "t", timeout=0.3),
        lambda face: face.publish_many([Outgoing(1, "t")], timeout=0.3),
        lambda face: face.request(1, "t", timeout=0.3),
    ],
    ids=["publish", "publish_many", "request"],
)
def test_a_loop_that_is_held_up_does_not_hold_up_its_callers(call: Callable[[SyncBroker], object]) -> None:
    let_go = threading.Event()
    with SyncBroker(on(Stalling())) as face:
        SHARED.mailbox.post(lambda: let_go.wait(20))
        begin = time.monotonic()
        with pytest.raises(ConnectError):
            call(face)
        assert time.monotonic() - begin < 5
        let_go.set()
