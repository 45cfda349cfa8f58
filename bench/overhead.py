"""Framework time per message fed straight to a handler, beside FastStream's subscriber fed the same way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

import msgspec
import pydantic
from fast_depends.msgspec import MsgSpecSerializer
from faststream import BaseMiddleware, Context
from faststream import Depends as PeerDepends
from faststream.nats import NatsBroker, NatsMessage
from nats.aio.msg import Msg

from headwater import App, Depends, Message

from . import servers
from .report import Row, interleaved, micros, render

MESSAGES = 2000
TEXT = b"x" * 120
JSON = msgspec.json.encode({"id": 7, "name": "n" * 60, "amount": 12.5, "tags": ["a", "b"], "paid": True})

Feed = Callable[[], Awaitable[float]]


class Order(msgspec.Struct):
    id: int
    name: str
    amount: float
    tags: list[str]
    paid: bool


class Model(pydantic.BaseModel):
    id: int
    name: str
    amount: float
    tags: list[str]
    paid: bool


async def takes_str(body: str) -> None: ...
async def takes_dict(body: dict) -> None: ...  # type: ignore[type-arg]
async def takes_struct(body: Order) -> None: ...
async def takes_model(body: Model) -> None: ...
def blocking(body: str) -> None: ...


def dependency() -> int:
    return 1


async def ours_message_logger(body: str, message: Message, logger: logging.Logger) -> None: ...
async def theirs_message_logger(
    body: str, message: NatsMessage, logger: Annotated[logging.Logger, Context("logger")]
) -> None: ...
async def ours_inline(body: str, one: int = Depends(dependency)) -> None: ...
async def theirs_inline(body: str, one: Annotated[int, PeerDepends(dependency)]) -> None: ...
async def ours_thread(body: str, one: int = Depends(dependency, thread=True)) -> None: ...


async def our_middleware(message: Any, call_next: Any) -> Any:
    return await call_next(message)


class TheirMiddleware(BaseMiddleware):
    pass


async def our_feed(stack: AsyncExitStack, handler: Any, body: bytes, **options: Any) -> Feed:
    """Builds the message and has it handled and settled, as the loop of a subscription does."""
    app = App("bench", broker="memory://")
    app.subscriber("bench", **options)(handler)
    await stack.enter_async_context(app)
    worker = app.consuming[0].worker
    process = worker.settler.process

    async def feed() -> float:
        begin = time.perf_counter()
        for offset in range(MESSAGES):
            await process(Message("bench", body, None, partition=0, offset=offset, group="bench"))
        await worker.acknowledge(())
        return (time.perf_counter() - begin) / MESSAGES

    return feed


async def their_feed(
    stack: AsyncExitStack, url: str, handler: Any, body: bytes, *, logs: bool = False, **options: Any
) -> Feed:
    if not logs:
        options["logger"] = None
    broker = NatsBroker(url, **options)
    broker.subscriber("bench")(handler)
    await broker.start()
    stack.push_async_callback(broker.stop)
    consume = next(iter(broker.subscribers)).consume
    message = Msg(_client=None, subject="bench", data=body)  # type: ignore[arg-type]

    async def feed() -> float:
        begin = time.perf_counter()
        for _ in range(MESSAGES):
            await consume(message)
        return (time.perf_counter() - begin) / MESSAGES

    return feed


async def measure() -> str:
    rows = []
    with servers.nats() as port:
        url = f"nats://127.0.0.1:{port}"
        structs = {"serializer": MsgSpecSerializer()}
        cases: list[tuple[str, Any, dict[str, Any], Any, dict[str, Any], bytes, float, float]] = [
            ("str", takes_str, {}, takes_str, {}, TEXT, 10, 20),
            ("dict", takes_dict, {}, takes_dict, {}, JSON, 10, 20),
            ("msgspec", takes_struct, {}, takes_struct, structs, JSON, 10, 20),
            ("pydantic", takes_model, {}, takes_model, {}, JSON, 10, 20),
            ("str, one middleware", takes_str, {"middleware": [our_middleware]}, takes_str,
             {"middlewares": [TheirMiddleware]}, TEXT, 10, 20),
            ("str, default logging", takes_str, {}, takes_str, {"logs": True}, TEXT, 10, 20),
            ("str + Message + Logger", ours_message_logger, {}, theirs_message_logger, {}, TEXT, 30, 60),
            ("str + inline dependency", ours_inline, {}, theirs_inline, {}, TEXT, 30, 60),
            ("str, def handler", blocking, {}, blocking, {}, TEXT, 1.5, 2),
            ("str + dependency in a thread", ours_thread, {}, theirs_inline, {}, TEXT, 1.5, 2),
        ]  # fmt: skip
        for name, ours, our_options, theirs, their_options, body, bar, aim in cases:
            async with AsyncExitStack() as stack:
                us = await our_feed(stack, ours, body, **our_options)
                them = await their_feed(stack, url, theirs, body, **their_options)
                mine, peer = await interleaved(us, them)
            rows.append(Row(name, "FastStream 0.7.8", micros(mine), micros(peer), peer / mine, bar, aim))
    return render("Framework time per message", rows)


def main() -> str:
    with _silent():
        return asyncio.run(measure())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What the peer logs is formatted, not shown."""
    saved = {number: os.dup(number) for number in (1, 2)}
    with open(os.devnull, "w") as nowhere:
        for number in saved:
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
