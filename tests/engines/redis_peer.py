"""Another process on the same Redis server: started by tests, spoken to through its output, killed for real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

from engines.peer import Peer, say
from headwater import App, Message, RedisBroker, Retry


class RedisPeer(Peer):
    """A process that plays one of the roles below; `path` is the URL of the server."""

    program = __file__


async def consume(options: dict[str, Any]) -> None:
    """Say what comes. It is never done over the message `hang`, and dies over `poison`."""
    app = App("shop", RedisBroker(options["path"], lease=options.get("lease", 60.0)))
    exclusive = options.get("exclusive", False)

    @app.subscriber("orders", start="earliest", exclusive=exclusive, concurrency=4, retry=Retry(attempts=2))
    async def handle(body: str, message: Message) -> None:
        say("got", body, message.attempt)
        if body == options.get("hang"):
            await asyncio.sleep(1000)
        if body == options.get("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        say("done", body)

    say("starting")
    async with app:
        say("ready")
        await asyncio.sleep(1000)


ROLES = {"consume": consume}

if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    asyncio.run(ROLES[chosen["role"]](chosen))
