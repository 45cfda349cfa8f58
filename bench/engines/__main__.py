"""`make bench-engines`: every engine whose server is here, or those named: `make bench-engines ARGS="nats redis"`."""

from __future__ import annotations

import asyncio
import platform
import sys
from importlib import import_module

from servers.process import MissingServerError  # the tests' own servers

from ..report import Row, render
from .measure import Peer, rows

ENGINES = {  # name → its server in tests/servers, its peer here
    "nats": ("NatsServer", "Nats"),
    "redis": ("RedisServer", "Redis"),
    "rabbit": ("RabbitServer", "Rabbit"),
    "kafka": ("KafkaServer", "Kafka"),
    "mqtt": ("MosquittoServer", "Mqtt"),
}


async def measure(name: str) -> list[Row]:
    server_name, peer_name = ENGINES[name]
    module = {"mqtt": "mosquitto"}.get(name, name)
    server = getattr(import_module(f"servers.{module}"), server_name)()
    await server.start()
    try:
        peer: Peer = getattr(import_module(f"bench.engines.{name}"), peer_name)(server.url)
        return await rows(peer)
    finally:
        await server.stop()


def main() -> None:
    wanted = sys.argv[1:] or list(ENGINES)
    if unknown := set(wanted) - set(ENGINES):
        sys.exit(f"no engine {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    print("Ratios say how many times better Headwater is; medians of interleaved rounds in this one run.\n")
    for name in wanted:
        try:
            print(render(name, asyncio.run(measure(name))), flush=True)
        except MissingServerError as error:
            print(f"{name}: left out, {error}\n", flush=True)


if __name__ == "__main__":
    main()
