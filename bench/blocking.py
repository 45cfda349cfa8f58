"""The blocking face: beside a loop for each publish, beside asyncio itself, and beside the clients that block."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import nats
import redis
import redis.asyncio as aioredis
from confluent_kafka import Producer

from headwater import Broker, Outgoing, SyncBroker
from servers.kafka import KafkaServer  # the tests' own
from servers.process import MissingServerError

from . import servers
from .report import Row, rate, render

SECONDS = 1.0  # of one measurement
ROUNDS = 3
THREADS = ((1, 5.0), (8, 20.0), (32, 25.0))  # and the bar beside a loop for each publish
AT_ONCE = 1000  # messages of a burst
BODY = b'{"sensor": 7, "value": 21.5, "unit": "' + b"u" * 60 + b'"}'
VOID = "redis://127.0.0.1:1"  # where no server is
Measure = Callable[[], float]

_topics = (f"bench-{number}" for number in itertools.count())


def medians(ours: Measure, theirs: Measure) -> tuple[float, float]:
    """Of two measurements taken in turn, after one warm-up each."""
    ours()
    theirs()
    pairs = [(ours(), theirs()) for _ in range(ROUNDS)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def compare(measure: str, peer: str, ours: Measure, theirs: Measure, bar: float, aim: float | None) -> Row:
    us, them = medians(ours, theirs)
    return Row(measure, peer, rate(us), rate(them), us / them, bar, aim)


def rate_of(publish: Callable[[], object], threads: int) -> float:
    """Calls a second, of threads that each call one after the other."""
    counts = [0] * threads
    begin = time.perf_counter()
    end = begin + SECONDS

    def work(number: int) -> None:
        while time.perf_counter() < end:
            publish()
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - begin)


def rate_of_bursts(burst: Callable[[], object]) -> float:
    """Messages a second, of bursts one after the other."""
    count = 0
    begin = time.perf_counter()
    while (now := time.perf_counter()) < begin + SECONDS:
        burst()
        count += AT_ONCE
    return count / (now - begin)


# --- what others write --------------------------------------------------------------------------------


async def jetstream_once(url: str, topic: str) -> None:
    client = await nats.connect(url)
    try:
        await client.jetstream().publish(topic, BODY)
    finally:
        await client.close()


async def redis_once(url: str, topic: str) -> None:
    client = aioredis.from_url(url)
    try:
        await client.xadd(topic, {b"b": BODY})
    finally:
        await client.aclose()


def loop_for_each(once: Callable[[str, str], Any], url: str, topic: str) -> Callable[[], object]:
    return lambda: asyncio.run(once(url, topic))


@contextmanager
def gathering(url: str, topic: str) -> Iterator[Callable[[], object]]:
    """A burst of publishes gathered in a loop that goes on."""
    with asyncio.Runner() as runner:
        broker = Broker(url)
        runner.run(broker.connect())

        async def burst() -> None:
            await asyncio.gather(*(broker.publish(BODY, topic) for _ in range(AT_ONCE)))

        yield lambda: runner.run(burst())
        runner.run(broker.close())


# --- the tables ---------------------------------------------------------------------------------------


def beside_a_loop_for_each(name: str, url: str, once: Callable[[str, str], Any]) -> list[Row]:
    topic = next(_topics)
    with SyncBroker(url) as face:
        face.publish(BODY, topic)
        theirs = loop_for_each(once, url, topic)
        return [
            compare(
                f"{name}, confirmed, {threads} thread{'s' if threads > 1 else ''}",
                "asyncio.run for each",
                lambda threads=threads: rate_of(lambda: face.publish(BODY, topic), threads),  # type: ignore[misc]
                lambda threads=threads: rate_of(theirs, threads),  # type: ignore[misc]  # bound now
                bar,
                None,
            )
            for threads, bar in THREADS
        ]


def beside_gather(name: str, url: str) -> list[Row]:
    topic = next(_topics)
    with SyncBroker(url) as face, gathering(url, topic) as gather:
        face.publish(BODY, topic)

        def soon() -> None:
            for _ in range(AT_ONCE):
                face.publish_soon(BODY, topic)
            face.flush()

        def many() -> None:
            face.publish_many([Outgoing(BODY, topic) for _ in range(AT_ONCE)])

        bursts = {"publish_soon and flush": soon, "publish_many": many}
        return [
            compare(
                f"{name}, {what}, {AT_ONCE} at once",
                "asyncio.gather",
                lambda burst=burst: rate_of_bursts(burst),  # type: ignore[misc]  # bound now
                lambda: rate_of_bursts(gather),
                0.9,
                1.0,
            )
            for what, burst in bursts.items()
        ]


def beside_redis_py(url: str) -> list[Row]:
    topic = next(_topics)
    with SyncBroker(url) as face, redis.from_url(url) as client:
        return [
            compare(
                f"Redis, confirmed, {threads} thread{'s' if threads > 1 else ''}",
                "redis-py",
                lambda threads=threads: rate_of(lambda: face.publish(BODY, topic), threads),  # type: ignore[misc]
                lambda threads=threads: rate_of(lambda: client.xadd(topic, {b"b": BODY}), threads),  # type: ignore[misc]
                0.8,
                1.0,
            )
            for threads, _ in THREADS
        ]


def beside_confluent(url: str) -> list[Row]:
    topic = next(_topics)
    producer = Producer({"bootstrap.servers": url.partition("://")[2], "linger.ms": 0})

    def publish() -> None:
        producer.produce(topic, BODY)
        producer.flush()

    with SyncBroker(url) as face:
        face.admin.topics.create(topic, partitions=4)
        return [
            compare(
                "Kafka, confirmed, 1 thread",
                "Producer, linger 0",
                lambda: rate_of(lambda: face.publish(BODY, topic), 1),
                lambda: rate_of(publish, 1),
                0.8,
                1.0,
            )
        ]


AWAY = """
import resource, sys, time
from headwater import SyncBroker

face = SyncBroker(sys.argv[1], max_in_flight=int(sys.argv[2]), when_full="drop", exit_timeout=0)


def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize() / 2**20


body = b"x" * 1024
for n in range(1000):
    face.publish_soon(body, "void", timeout=60)
before = resident()
for n in range(60_000):  # a minute at 1,000/s
    face.publish_soon(body, "void", timeout=60)
print(resident() - before)
import os
os._exit(0)
"""


def while_away() -> list[Row]:
    """How much a process grows that publishes into the void, beside what its limit lets it hold."""
    rows = []
    for limit in (1_000, 10_000):
        found = subprocess.run(
            [sys.executable, "-c", AWAY, VOID, str(limit)], capture_output=True, text=True, check=True
        )
        grown, allowed = float(found.stdout), limit * 4 / 1024  # 1 KiB of body, and what belongs to it
        measure = f"60,000 of 1 KiB with the engine away, max_in_flight={limit:,}"
        rows.append(
            Row(measure, "4 KiB for each", f"{grown:.1f} MiB", f"{allowed:.1f} MiB", allowed / max(grown, 0.1), 1.0)
        )
    return rows


def main() -> str:
    gc.freeze()
    rows: list[Row] = []
    with ExitStack() as running:
        nats_url = f"nats://127.0.0.1:{running.enter_context(servers.nats())}"
        redis_url = f"redis://127.0.0.1:{running.enter_context(servers.redis())}"
        rows += beside_a_loop_for_each("JetStream", nats_url, jetstream_once)
        rows += beside_a_loop_for_each("Redis", redis_url, redis_once)
        rows += beside_gather("JetStream", nats_url)
        rows += beside_gather("Redis", redis_url)
        rows += beside_redis_py(redis_url)
    try:
        with KafkaServer() as kafka:
            rows += beside_confluent(kafka.url)
    except MissingServerError:
        pass  # its row is left out
    rows += while_away()
    return render("From synchronous code", rows)
