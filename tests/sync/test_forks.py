"""A face that a forked child inherits: the child starts afresh, and the parent notices nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headwater import SyncBroker
from servers.kafka import KafkaServer
from servers.nats import NatsServer
from servers.redis import RedisServer

from .conftest import Read
from .processes import run

# What every script begins with: the URL, the topic, and children that end by themselves.
HEAD = """
import os, sys, threading, warnings
from headwater import Broker, DeliveryUnknownError, NotConnectedError, SyncBroker
from headwater.sync import Stats

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
url, topic = sys.argv[1:3]


def child(work):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def joined(*pids):
    return [os.waitpid(pid, 0)[1] for pid in pids]

"""


@pytest.fixture
def durable(url: str) -> str:
    """The URL of an engine that processes share."""
    if url.startswith("memory"):
        pytest.skip("memory is each process's own")
    return url


def contents(url: str, topic: str, count: int, read: Read) -> list[Any]:
    with SyncBroker(url) as face:
        return sorted(read(face, topic, count))  # type: ignore[type-var]  # strings


def test_three_children_and_their_parent_publish(durable: str, topic: str, read: Read) -> None:
    run(
        HEAD
        + """
face = SyncBroker(url)
face.publish("before", topic)


def work():
    assert face.stats == Stats()
    for n in range(20):
        face.publish(f"child {number} {n:02}", topic)
    face.publish_soon(f"child {number} last", topic)
    assert face.flush()


pids = []
for number in range(3):
    pids.append(child(work))
for n in range(20):
    face.publish(f"parent {n:02}", topic)
assert joined(*pids) == [0, 0, 0]
face.publish("after", topic)
face.close()
""",
        durable,
        topic,
    )
    mine = ["before", "after", *(f"parent {n:02}" for n in range(20))]
    theirs = [f"child {c} {n}" for c in range(3) for n in (*(f"{n:02}" for n in range(20)), "last")]
    assert contents(durable, topic, 85, read) == sorted(mine + theirs)


def left_alone(url: str, connections: str, topic: str) -> None:
    """Fork from a process with a connection, which `connections` lists with all others; each child leaves in style."""
    run(
        HEAD
        + f"""
from sync.connections import of_nats, of_redis

face = SyncBroker(url)
face.publish("before", topic)
engine, before = face.broker.engine, {connections}
assert before
for _ in range(3):
    pid = os.fork()
    if not pid:
        face.publish("from a child", topic)
        face.close()
        sys.exit()  # through all finalizers of the interpreter
    assert joined(pid) == [0]
face.publish("after", topic)
assert face.broker.engine is engine and engine.available
assert before <= {connections}
face.close()
""",
        url,
        topic,
    )


def test_the_parents_connection_to_redis_is_left_alone(redis_server: RedisServer, topic: str) -> None:
    left_alone(redis_server.url, "of_redis(url)", topic)


def test_the_parents_connection_to_nats_is_left_alone(nats_server: NatsServer, topic: str) -> None:
    left_alone(nats_server.url, f"of_nats('http://127.0.0.1:{nats_server.monitor_port}')", topic)


def test_a_child_never_frees_the_connection_of_its_parent() -> None:
    """Freed, a client says good-bye on the parent's socket, or waits for its threads, which a fork does not copy."""
    run(
        HEAD
        + """
import gc, weakref
from sync.engines import Late

broker = Broker()
broker.use(Late, "odd://server")
face = SyncBroker(broker)
face.publish("before", topic)
theirs = weakref.ref(broker.engine)


def work():
    gc.collect()
    assert broker.engine is not theirs() and theirs() is not None
    face.publish("from a child", topic)


assert joined(child(work)) == [0]
assert broker.engine is theirs()
face.close()
""",
        "memory://",
        "t",
    )


def test_a_child_does_not_wait_for_threads_of_a_client_that_it_does_not_have(
    kafka_server: KafkaServer, topic: str, read: Read
) -> None:
    """librdkafka joins its threads when it is destroyed, and a fork copies none of them."""
    run(
        HEAD
        + """
import gc

face = SyncBroker(url)
face.publish("before", topic)
pid = os.fork()
if not pid:
    face.publish("from a child", topic)
    face.close()
    gc.collect()
    sys.exit()  # through all finalizers of the interpreter
assert joined(pid) == [0]
face.publish("after", topic)
face.close()
""",
        kafka_server.url,
        topic,
    )
    assert contents(kafka_server.url, topic, 3, read) == ["after", "before", "from a child"]


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_of_multiprocessing_publish(method: str, durable: str, topic: str, read: Read) -> None:
    run(
        HEAD
        + """
import multiprocessing

face = SyncBroker(url)


def work(number):
    face.publish(f"child {number}", topic)
    face.publish_soon(f"last {number}", topic)


if __name__ == "__main__":
    face.publish("before", topic)
    context = multiprocessing.get_context(sys.argv[3])
    processes = [context.Process(target=work, args=(number,)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    face.publish("after", topic)
    face.close()
""",
        durable,
        topic,
        method,
    )
    theirs = [f"{what} {n}" for what in ("child", "last") for n in range(3)]
    assert contents(durable, topic, 8, read) == sorted(["before", "after", *theirs])


def test_children_of_billiard_publish_as_those_of_celery_do(durable: str, topic: str, read: Read) -> None:
    run(
        HEAD
        + """
warnings.simplefilter("ignore")  # billiard's own
import billiard

face = SyncBroker(url)
face.publish("before", topic)


def work(number):
    face.publish(f"child {number}", topic)
    face.publish_soon(f"last {number}", topic)


processes = [billiard.Process(target=work, args=(number,)) for number in range(3)]
for process in processes:
    process.start()
for process in processes:
    process.join()
assert [process.exitcode for process in processes] == [0, 0, 0]
face.publish("after", topic)
face.close()
""",
        durable,
        topic,
    )
    theirs = [f"{what} {n}" for what in ("child", "last") for n in range(3)]
    assert contents(durable, topic, 8, read) == sorted(["before", "after", *theirs])


def test_a_fork_while_another_thread_holds_every_lock() -> None:
    run(
        HEAD
        + """
from headwater.sync.thread import SHARED

face = SyncBroker("memory://")
face.publish(1, topic)
held, done = threading.Event(), threading.Event()


def hold():
    with SHARED._starting, face.broker._home, face._deliveries._changed:
        held.set()
        done.wait()


thread = threading.Thread(target=hold)
thread.start()
held.wait()


def work():
    assert face.broker.sync is not None
    face.publish(1, topic, timeout=5)
    assert face.flush() and face.stats == Stats(delivered=1)


assert joined(child(work)) == [0]
done.set()
thread.join()
face.publish(1, topic)
face.close()
""",
        "memory://",
        "t",
    )


def test_a_fork_while_the_loop_thread_imports_a_client() -> None:
    """Each import has a lock, which a child would inherit held by a thread that it does not have."""
    run(
        HEAD
        + """
from pathlib import Path
from sync.engines import Late, on

Path(__file__).with_name("slow_client.py").write_text("import time; time.sleep(0.5)")


class Slow(Late):
    async def connect(self):
        import slow_client


face = SyncBroker(on(Slow()))
early = face.publish_soon("early", topic)
while "slow_client" not in sys.modules:
    pass
assert joined(child(lambda: face.publish("from the child", topic, timeout=5))) == [0]
assert early.result().topic == topic
face.close()
""",
        "memory://",
        "t",
    )


def test_a_loop_that_never_stands_still_holds_a_fork_up_for_a_while_only() -> None:
    run(
        HEAD
        + """
import time
from headwater.sync.thread import SHARED

face = SyncBroker("memory://")
face.publish(1, topic)
free = threading.Event()
SHARED.mailbox.post(lambda: free.wait(20))
begin = time.monotonic()
assert joined(child(lambda: face.publish(1, topic, timeout=5))) == [0]
assert time.monotonic() - begin < 5
free.set()
face.publish(2, topic)
face.close()
""",
        "memory://",
        "t",
    )


def test_many_forks_while_many_threads_publish(tmp_path: Path, topic: str, read: Read) -> None:
    url = f"local://{tmp_path}/data?durability=process"
    lines = run(
        HEAD
        + """
face = SyncBroker(url)
face.publish("begin", topic)
forking = threading.Event()
counts = [0] * 8


def work(name):
    while not forking.is_set():
        (face.publish if counts[name] % 10 == 0 else face.publish_soon)(f"parent {name} {counts[name]}", topic)
        counts[name] += 1


threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
for thread in threads:
    thread.start()
for number in range(20):
    assert joined(child(lambda: face.publish(f"child {number}", topic, timeout=10))) == [0]
forking.set()
for thread in threads:
    thread.join()
face.close()
assert face.stats == Stats(delivered=sum(counts) + 1)
print(sum(counts) + 21)
""",
        url,
        topic,
    )
    found = contents(url, topic, int(lines[0]), read)
    assert len(set(found)) == len(found)
    assert {f"child {n}" for n in range(20)} < set(found)


def test_what_was_under_way_is_the_parents_to_deliver() -> None:
    run(
        HEAD
        + """
from sync.engines import Stalling, Late, kept, on

engine = Stalling()
face = SyncBroker(on(engine))
face.connect()
sent = face.publish_soon("sent", topic, timeout=60)
late = SyncBroker(on(Late(connects=10**9)), exit_timeout=0.1)
queued = late.publish_soon("queued", topic, timeout=60)
while not engine.asked:
    pass


def work():
    assert face.stats == late.stats == Stats()
    for delivery in (sent, queued):
        try:
            delivery.result()
        except DeliveryUnknownError:
            continue
        raise AssertionError("it belongs to the parent")
    assert face.flush(0) and late.flush(0)


assert joined(child(work)) == [0]
engine.open()
assert sent.result().topic == topic and kept(engine) == [b"sent"]
face.close()
queued.cancel()
late.close()
""",
        "memory://",
        "t",
    )


def test_a_stream_does_not_survive_a_fork(durable: str, topic: str) -> None:
    run(
        HEAD
        + """
face = SyncBroker(url)
for n in range(5):
    face.publish(n, topic)
stream = face.stream(topic, start="earliest", limit=5)
first = next(stream).value


def work():
    stream.close()
    try:
        next(stream)
    except NotConnectedError as error:
        assert "before a fork" in str(error)
    else:
        raise AssertionError("it was read")
    with face.stream(topic, start="earliest", limit=5) as own:
        assert len(list(own)) == 5


assert joined(child(work)) == [0]
assert sorted([first, *(message.value for message in stream)]) == [0, 1, 2, 3, 4]
face.close()
""",
        durable,
        topic,
    )


def test_a_child_forked_inside_an_event_loop_has_a_loop_of_its_own(tmp_path: Path, topic: str, read: Read) -> None:
    url = f"local://{tmp_path}/data?durability=process"
    run(
        HEAD
        + """
import asyncio


async def main():
    async with Broker(url) as broker:
        await broker.publish("parent", topic)
        pid = child(lambda: broker.sync.publish("child", topic))
        assert await asyncio.to_thread(joined, pid) == [0]
        await broker.publish("after", topic)


asyncio.run(main())
""",
        url,
        topic,
    )
    assert contents(url, topic, 3, read) == ["after", "child", "parent"]
