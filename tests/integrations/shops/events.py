"""The shop's events: topics keep what was begun, what was handled, and by which process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from headwater import App, Response

app = App("shop", broker=os.environ["URL"], topics=["begun"])


@app.subscriber("orders", concurrency=8)
@app.publisher("handled")
async def handle(n: int) -> Response:
    return Response(n, headers={"process": str(os.getpid())})


@app.subscriber("slow-orders", concurrency=2)
@app.publisher("handled")
async def handle_slowly(n: int) -> int:
    await app.publish(n, "begun")
    await asyncio.sleep(float(os.environ.get("WORK", "0.3")))
    return n


@app.subscriber("prices")
async def price(n: int) -> int:
    return 2 * n


# --- what the routes do, in each framework ------------------------------------------------------------


async def order(n: int, topic: str = "orders") -> str:
    return (await app.publish(n, topic)).topic


async def ask(n: int) -> int:
    return int((await app.request(n, "prices", timeout=10)).value)


async def drain() -> str:
    await app.drain()
    return "drained"


def fail() -> str:
    app.stop(OSError("the disk is gone"))
    return "failed"


# --- whose the signals are ----------------------------------------------------------------------------

_before_the_start: list[Any] = []


@asynccontextmanager
async def lifespan(_: object) -> AsyncIterator[None]:
    _before_the_start[:] = _signal_handlers()
    yield


async def signals_are_the_servers() -> bool:
    return _signal_handlers() == _before_the_start


def _signal_handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
