"""Others on the same Fluvio cluster, in processes of their own: Headwater's, killed for real, and Fluvio's own client.

The client's calls hold the interpreter, and may do so for ever: each has a process, with a deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.peer import Peer, say
from headwater import App, FluvioBroker

WITHIN = 20.0  # seconds


class FluvioPeer(Peer):
    """A process that plays one of the roles below; `path` is the URL of the cluster."""

    program = __file__


class Telling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("log", record.levelname, record.getMessage())


async def consume(options: dict[str, Any]) -> None:
    """Say what was handled, and what was logged."""
    logging.getLogger("headwater").addHandler(Telling())
    app = App(options["group"], FluvioBroker(options["path"], session_timeout=3))

    @app.subscriber(options["topic"], start="earliest", concurrency=4)
    async def handle(n: int) -> None:
        await asyncio.sleep(0.001)
        say("done", n)

    async with app:
        say("ready")
        await asyncio.sleep(1000)


# --- Fluvio's own client ------------------------------------------------------------------------------


def ask_client(endpoint: str, what: str, *arguments: object) -> Any:
    """What one of the questions below gives, by the client library, with strings for bytes."""
    asked = json.dumps({"role": what, "path": endpoint, "arguments": arguments})
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, __file__, asked], capture_output=True, text=True, timeout=WITHIN, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def client(endpoint: str, what: str, *arguments: object) -> Any:
    """The same, while the event loop turns."""
    return await asyncio.to_thread(ask_client, endpoint, what, *arguments)


def publish(config: Any, topic: str, records: list[tuple[str, str]], compression: str) -> list[list[int]]:
    """Partition and offset of each."""
    from fluvio import Compression, Fluvio, TopicProducerConfigBuilder

    kind = getattr(Compression, "None_" if compression == "none" else compression.capitalize())
    producer = Fluvio.connect_with_config(config).topic_producer_with_config(
        topic, TopicProducerConfigBuilder().compression(kind).build()
    )
    sent = [producer.send(key.encode(), value.encode()) for key, value in records]
    producer.flush()
    outputs = [output.wait() for output in sent]
    return [[output.partition_id(), output.offset()] for output in outputs]


def read(config: Any, topic: str, partition: int, count: int) -> list[list[Any]]:
    """Offset, milliseconds, key and value of the first ones."""
    from fluvio import Fluvio, Offset

    stream = Fluvio.connect_with_config(config).partition_consumer(topic, partition).stream(Offset.beginning())
    return [
        [one.offset(), one.timestamp(), bytes(one.key()).decode(), one.value_string()]
        for one in itertools.islice(stream, count)
    ]


def topics(config: Any) -> list[str]:
    from fluvio import FluvioAdmin

    return [topic.name() for topic in FluvioAdmin.connect_with_config(config).all_topics()]


def partitions(config: Any, topic: str) -> list[str]:
    from fluvio import FluvioAdmin

    found = FluvioAdmin.connect_with_config(config).list_partitions([])
    return sorted(one.name() for one in found if one.name().rpartition("-")[0] == topic)


def create_topic(config: Any, topic: str) -> None:
    from fluvio import FluvioAdmin

    FluvioAdmin.connect_with_config(config).create_topic(topic)


def delete_topic(config: Any, topic: str) -> None:
    from fluvio import FluvioAdmin

    FluvioAdmin.connect_with_config(config).delete_topic(topic)


def consumer_offsets(config: Any) -> list[list[Any]]:
    """Consumer, topic, partition and offset."""
    from fluvio import Fluvio

    found = Fluvio.connect_with_config(config).consumer_offsets()
    return [[one.consumer_id, one.topic, one.partition, one.offset] for one in found]


QUESTIONS: Mapping[str, Callable[..., Any]] = {
    one.__name__: one for one in (publish, read, topics, partitions, create_topic, delete_topic, consumer_offsets)
}
ROLES = {"consume": consume}


def main() -> None:
    chosen = json.loads(sys.argv[1])
    if chosen["role"] in ROLES:
        asyncio.run(ROLES[chosen["role"]](chosen))
    else:
        from fluvio import FluvioConfig

        config = FluvioConfig.new(chosen["path"])
        say(json.dumps(QUESTIONS[chosen["role"]](config, *chosen["arguments"])))


if __name__ == "__main__":
    main()
