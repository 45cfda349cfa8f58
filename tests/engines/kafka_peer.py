"""Another process on the same Kafka cluster: started by tests, spoken to through its output, killed for real."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from engines.peer import Peer, say
from headwater import App, KafkaBroker


class KafkaPeer(Peer):
    """A process that plays one of the roles below; `path` is the URL of the server."""

    program = __file__


def broker(options: dict[str, Any]) -> KafkaBroker:
    return KafkaBroker(options["path"], session_timeout=1, **options.get("options", {}))


async def consume(options: dict[str, Any]) -> None:
    """Say what was handled."""
    app = App(options["group"], broker(options))

    @app.subscriber(options["topic"], start="earliest", concurrency=4)
    async def handle(n: int) -> None:
        await asyncio.sleep(0.001)
        say("done", n)

    async with app:
        say("ready")
        await asyncio.sleep(1000)


async def copy(options: dict[str, Any]) -> None:
    """Copy numbers to another topic, each exactly once."""
    app = App(options["group"], broker(options))

    @app.subscriber(options["topic"], start="earliest", concurrency=4, exactly_once=True)
    @app.publisher(options["results"])
    async def handle(n: int) -> int:
        await asyncio.sleep(0.001)
        say("copied", n)
        return n

    async with app:
        say("ready")
        await asyncio.sleep(1000)


ROLES = {"consume": consume, "copy": copy}

if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    asyncio.run(ROLES[chosen["role"]](chosen))
