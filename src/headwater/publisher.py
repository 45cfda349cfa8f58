"""Messages on their way out: what is published in one turn of the loop goes to the engine in one send."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, Final, Protocol

from .engine import Engine, Source
from .errors import ConfigurationError, DeliveryUnknownError, PublishError, TopicNotFoundError
from .message import Outgoing, Receipt

STREAK: Final = 4  # messages that a lone publisher may send before everybody else gets a turn of the loop
MAX_PENDING: Final = 100_000  # unconfirmed messages after which a publish waits for earlier ones


class Confirmation(Protocol):
    """Who is told what became of a message; a future, for instance."""

    def done(self) -> bool: ...
    def set_result(self, receipt: Receipt, /) -> None: ...
    def set_exception(self, error: BaseException, /) -> None: ...


Pending = tuple[Outgoing, Confirmation, float]  # the message, its confirmation, seconds to wait for it


class Outbox:
    """Sends messages in the order they were put, and confirms each one.

    A confirmation that does not come in time fails with DeliveryUnknownError. Nothing here retries: a message that
    was refused is its publisher's again.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._all_or_nothing = engine.capabilities(Source(topics=())).atomic_batch
        self.alone = True  # whether the last turn of the loop saw no more than one publisher
        self._lone = False  # whether one is on its way by itself ...
        self._crowded = False  # ... and another came meanwhile
        self._streak = 0
        self._batch: list[Pending] = []
        self._sends: dict[asyncio.Future[Any], list[Pending]] = {}  # those the engine has not answered yet
        self._unconfirmed = 0

    @property
    def busy(self) -> bool:
        """Whether something is not confirmed yet."""
        return bool(self._batch or self._sends)

    @property
    def full(self) -> bool:
        """Whether to wait with `room` before putting more."""
        return self._unconfirmed + len(self._batch) >= MAX_PENDING

    async def publish_alone(self, outgoing: Outgoing, timeout: float) -> Receipt:
        """Send this at once, as nobody else seems to be publishing; its confirmation.

        It saves a lone publisher a turn of the loop. Who publishes in the same turn finds `alone` unset, and is
        sent together with others from then on.
        """
        self._lone, self.alone, self._crowded = True, False, False
        try:
            answer = self._engine.send((outgoing,))
            if isinstance(answer, asyncio.Future):
                return (await self._in_time(answer, outgoing, timeout))[0]
            if not isinstance(answer, Sequence):
                future: asyncio.Future[Receipt] = self._loop.create_future()
                self._wait_for([(outgoing, future, timeout)], answer)
                return await future
            self._streak += 1
            if self._streak % STREAK == 0:
                await _turn()
            return answer[0]
        except PublishError as error:
            raise error.errors[0] or error from None
        finally:
            self._lone, self.alone = False, not self._crowded

    async def _in_time(
        self, answer: asyncio.Future[Sequence[Receipt]], outgoing: Outgoing, timeout: float
    ) -> Sequence[Receipt]:
        """Wait in the publisher's own task: one for that would cost more than all the rest of a publish."""
        timer = self._loop.call_later(timeout, answer.cancel)
        self._sends[answer] = []
        self._unconfirmed += 1
        try:
            return await answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise DeliveryUnknownError(outgoing.topic, timeout) from None
        finally:
            timer.cancel()
            del self._sends[answer]
            self._unconfirmed -= 1

    def publish(self, outgoing: Outgoing, timeout: float) -> asyncio.Future[Receipt]:
        """Send this soon; its confirmation."""
        future: asyncio.Future[Receipt] = self._loop.create_future()
        self.put(outgoing, timeout, future)
        return future

    def put(self, outgoing: Outgoing, timeout: float, confirmation: Confirmation) -> None:
        """Send this soon, and tell the confirmation. The message is ready to travel: see `codecs.encode`."""
        self._crowded, self.alone = True, False  # who comes next must not overtake this one
        batch = self._batch
        if not batch:
            self._loop.call_soon(self.flush)
        batch.append((outgoing, confirmation, timeout))

    def flush(self) -> None:
        """Hand what was put to the engine now."""
        batch, self._batch = self._batch, []
        if batch:
            self.alone = len(batch) == 1 and not self._lone
            self._send(batch)

    def _send(self, batch: list[Pending]) -> None:
        try:
            answer = self._engine.send([outgoing for outgoing, _, _ in batch])
        except Exception as error:
            self._refuse(batch, error)
            return
        if isinstance(answer, Sequence):
            _confirm(batch, answer)
        else:
            self._wait_for(batch, answer)

    def _wait_for(self, batch: list[Pending], answer: Awaitable[Sequence[Receipt]]) -> None:
        self._unconfirmed += len(batch)
        task = self._loop.create_task(self._await(batch, answer))
        self._sends[task] = batch
        task.add_done_callback(self._sends.pop)

    async def _await(self, batch: list[Pending], answer: Awaitable[Sequence[Receipt]]) -> None:
        sending = asyncio.current_task()
        assert sending is not None
        first = min(timeout for _, _, timeout in batch)
        timer = self._loop.call_later(first, self._expire, batch, self._loop.time(), sending)
        try:
            _confirm(batch, await answer)
        except Exception as error:
            self._refuse(batch, error)
        except asyncio.CancelledError:
            _give_up(batch)
            raise
        finally:
            timer.cancel()
            self._unconfirmed -= len(batch)

    def _expire(self, batch: list[Pending], started: float, sending: asyncio.Task[None]) -> None:
        """Tell those whose time is over; once nobody waits any more the send is given up."""
        now = self._loop.time()
        _give_up([pending for pending in batch if now - started >= pending[2] - 0.001])
        waiting = [started + timeout - now for _, future, timeout in batch if not future.done()]
        if waiting:
            self._loop.call_later(max(0.001, min(waiting)), self._expire, batch, started, sending)
        else:
            sending.cancel()

    def _refuse(self, batch: list[Pending], error: Exception) -> None:
        """Tell each publisher its own error. One bad message does not fail those that happened to be beside it."""
        if isinstance(error, PublishError) and len(error.errors) == len(batch):
            for (_, future, _), receipt, reason in zip(batch, error.receipts, error.errors, strict=True):
                if not future.done():
                    future.set_exception(reason) if reason is not None else future.set_result(receipt)
        elif len(batch) > 1 and self._all_or_nothing and isinstance(error, ConfigurationError | TopicNotFoundError):
            for pending in batch:
                self._send([pending])
        else:
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(error)

    async def room(self, timeout: float, topic: str) -> None:
        """Wait until less is unconfirmed. Raises DeliveryUnknownError after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self.some_confirmed()
        except TimeoutError as error:
            raise DeliveryUnknownError(topic, timeout) from error

    async def some_confirmed(self) -> None:
        """Wait until less is unconfirmed."""
        self.flush()
        while self.full:
            await asyncio.wait(self._sends, return_when=asyncio.FIRST_COMPLETED)

    def let_go(self) -> None:
        """Give up what nobody waits for any more."""
        self._batch = [pending for pending in self._batch if not pending[1].done()]
        for sending, batch in self._sends.items():
            if batch and all(confirmation.done() for _, confirmation, _ in batch):
                sending.cancel()

    async def drain(self, timeout: float) -> bool:
        """Wait until what was put before is confirmed; False if `timeout` seconds were not enough."""
        self.flush()
        if not self._sends:
            return True
        _, late = await asyncio.wait(list(self._sends), timeout=timeout)
        return not late

    async def close(self, timeout: float) -> None:
        """Wait until everything is confirmed; who waits for what is left after that gets DeliveryUnknownError."""
        deadline = self._loop.time() + timeout
        while self.busy and (rest := deadline - self._loop.time()) > 0:
            await self.drain(rest)
        await asyncio.sleep(0)  # one that has not begun could tell nobody
        sends = list(self._sends)
        for sending in sends:
            sending.cancel()
        await asyncio.gather(*sends, return_exceptions=True)


@types.coroutine
def _turn() -> Generator[None]:
    """Let the loop go round once."""
    yield


def _give_up(batch: list[Pending]) -> None:
    for outgoing, future, timeout in batch:
        if not future.done():
            future.set_exception(DeliveryUnknownError(outgoing.topic, timeout))


def _confirm(batch: list[Pending], receipts: Sequence[Receipt]) -> None:
    for (_, future, _), receipt in zip(batch, receipts, strict=True):
        if not future.done():
            future.set_result(receipt)
