"""Requests and their answers, on engines that have no requests of their own."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta

from .engine import Change, Engine, Source, Subscription, Topic
from .errors import DeliveryUnknownError, NotConnectedError, RemoteError, RequestTimeoutError
from .message import CORRELATION, DEADLINE, ERROR, REPLY_TO, Headers, Message, Outgoing, Receipt
from .topics import REPLIES

Publish = Callable[[Outgoing, float], Awaitable[Receipt]]


class Requester:
    """Sends requests and hands each answer to whoever waits for it; the first one wins.

    Where the engine has no place for each requester, all of them read one reply topic and pick out what carries their
    own mark. It is read before the first request leaves, so no answer is missed.
    """

    def __init__(self, engine: Engine, publish: Publish) -> None:
        self._engine = engine
        self._publish = publish
        self._mark = os.urandom(9).hex()
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._starting = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._exits = AsyncExitStack()
        self._topic = engine.reply_topic(self._mark)
        self._closing = False
        self._wake: Callable[[], None] = lambda: None

    async def request(self, outgoing: Outgoing, timeout: float) -> Message:
        """The answer. Raises RequestTimeoutError after `timeout` seconds, RemoteError if the handler failed."""
        correlation = f"{self._mark}-{next(self._numbers)}"
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = future
        late = RequestTimeoutError(outgoing.topic, timeout)
        timer = asyncio.get_running_loop().call_later(timeout, _fail, future, late)
        try:
            await self._ensure_reading()
            deadline = self._engine.clock.time() + timeout
            control = {REPLY_TO: self._topic, CORRELATION: correlation, DEADLINE: f"{deadline:.3f}"}
            outgoing.headers = Headers(outgoing.headers).merged(control)
            try:
                await self._publish(outgoing, timeout)
            except DeliveryUnknownError as error:
                raise late from error
            answer = await future
        finally:
            timer.cancel()
            future.cancel()
            del self._waiting[correlation]
        if ERROR in answer.headers:
            raise RemoteError(answer.headers[ERROR], answer.body.decode(errors="replace"))
        return answer

    async def _ensure_reading(self) -> None:
        async with self._starting:
            if self._reader is not None and not self._reader.done():
                return
            if self._topic == REPLIES:
                await self._engine.declare([Topic(REPLIES, partitions=1, retention=timedelta(minutes=10))], "create")
            source = Source(topics=(self._topic,), start="latest")
            subscription = await self._exits.enter_async_context(self._engine.subscribe(source, _ignore))
            self._reader = asyncio.create_task(self._read(subscription), name="headwater replies")

    async def _read(self, subscription: Subscription) -> None:
        self._wake = subscription.wake
        while not self._closing:
            for message in await subscription.receive(1000, 60.0):
                future = self._waiting.get(message.headers.get(CORRELATION, ""))
                if future is not None and not future.done():
                    future.set_result(message)

    async def close(self) -> None:
        """Stop reading; who still waits gets NotConnectedError."""
        self._closing = True
        for future in self._waiting.values():
            _fail(future, NotConnectedError(self._engine.name))
        if self._reader is not None:
            self._wake()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._exits.aclose()


def _fail(future: asyncio.Future[Message], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def _ignore(_change: Change) -> None:
    """The reply topic is read without a group: nothing moves."""
