"""Who takes messages from any thread to their broker: in its loop, in order, again where they were not accepted."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

from .. import forks
from ..broker import Broker
from ..errors import AuthenticationError, ConnectError, DeliveryUnknownError, HeadwaterError, NotConnectedError
from ..message import Receipt
from ..publisher import Outbox
from ..retry import Retry
from .delivery import Deliveries, DeliveryFuture
from .spill import Spill
from .thread import SHARED, LoopGone, Mailbox

T = TypeVar("T")

GRACE: Final = 1.0  # seconds that a loop is given beyond the time of a call, to say what happened
LOOK_AGAIN: Final = 0.25  # seconds at most between two looks at whose time is over, while nothing can be sent
_RETRY: Final = Retry(backoff=(0.1, 5.0))  # waits between tries of what was certainly not accepted
_log: Final = logging.getLogger("headwater.sync")
NO_REASON: Final = "not connected in time"
_NOT_ACCEPTED: Final = (ConnectError, NotConnectedError)


class Courier:
    """Takes deliveries to a broker.

    It works in the loop the broker is connected in; if that is none, in the one that all faces share, and connects it
    there. While it holds something back (for a connection, for room, after a refusal), all that came later waits too.
    """

    def __init__(
        self,
        broker: Broker,
        deliveries: Deliveries,
        exit_timeout: float,
        spill: str | os.PathLike[str] | None = None,
    ) -> None:
        self.broker = broker
        self.spill = None if spill is None else Spill(spill, self)
        self._deliveries = deliveries
        self._exit_timeout = exit_timeout
        self._holding: asyncio.Task[None] | None = None
        self.start_afresh()

    def start_afresh(self) -> None:
        """Begin with nothing."""
        if self._holding is not None:
            forks.leave_alone(self._holding)
        if self.spill is not None:
            self.spill.start_afresh()
        self._numbers = itertools.count()
        self._queue: deque[DeliveryFuture] = deque()
        self._returned: list[DeliveryFuture] = []  # they come before the queue
        self._holding = None
        self._mailbox: Mailbox | None = None
        self._posted_to: Mailbox | None = None
        self._reason = NO_REASON
        self._failures = 0  # in a row
        self._leaves = False  # whether it is told of the end of the process
        self._left_behind = 0  # of what is under way, how many nothing more is done for

    @property
    def queued(self) -> int:
        """How many were not sent yet."""
        return len(self._queue) + len(self._returned)

    # --- from any thread ------------------------------------------------------------------------------

    @property
    def mailbox(self) -> Mailbox:
        """Of the loop to work in. Raises NotConnectedError if that stands still, so that nothing would ever happen."""
        loop = self._loop()
        if loop is SHARED.loop or loop is None:
            return SHARED.mailbox
        if not loop.is_running():
            raise NotConnectedError(str(self.broker), "the event loop that it was connected in does not run now")
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = Mailbox(loop)
        return mailbox

    def _loop(self) -> asyncio.AbstractEventLoop | None:
        loop = self.broker.loop
        return SHARED.loop if loop is None or loop.is_closed() else loop

    def take(self, delivery: DeliveryFuture) -> None:
        """Deliver this, after all that was taken before."""
        delivery.number = next(self._numbers)
        self._queue.append(delivery)
        mailbox = self.mailbox
        if self._posted_to is not mailbox:  # once for all that comes before it hands over
            self._posted_to = mailbox
            self._post(self.hand_over)
        if not self._leaves:
            self._leaves = True
            SHARED.leaving.add(self)

    def call(
        self, work: Callable[[float], Coroutine[Any, Any, T]], timeout: float, late: Callable[[], HeadwaterError]
    ) -> T:
        """Have the loop do this, once the broker is connected and has what was published before; what it gives.

        `work` is given the seconds that are left. Raises ConnectError if it could not begin within `timeout` seconds,
        and what `late` gives if it did not end. An interruption cancels it.
        """
        deadline = time.monotonic() + timeout
        begun = threading.Event()

        async def do() -> T:
            await self._be_ready(deadline)
            begun.set()
            return await work(max(0.001, deadline - time.monotonic()))

        while True:
            try:
                future = self.mailbox.submit(do)
            except LoopGone:
                continue
            try:
                return future.result(None if timeout == math.inf else deadline + GRACE - time.monotonic())
            except _Moved:
                continue
            except TimeoutError:
                if future.cancel():  # its loop is held up by something
                    raise (late() if begun.is_set() else self.unsent()) from None
                raise
            except BaseException:
                future.cancel()
                raise

    def _post(self, call: Callable[[], object]) -> None:
        try:
            self.mailbox.post(call)
        except LoopGone:
            self.mailbox.post(call)

    def withdraw(self, delivery: DeliveryFuture) -> None:
        """Nobody waits for this any more: what was not sent yet is not sent, what can be stopped is."""
        try:
            self._queue.remove(delivery)
        except ValueError:
            if delivery.sent and (loop := self._loop()) is not None:
                _call_in(loop, self._stop_sending, delivery)

    def finish(self) -> None:
        """Deliver what is under way within `exit_timeout` seconds; log how many messages were not."""
        counts = self._deliveries
        self._left_behind = min(self._left_behind, counts.under_way)
        if counts.under_way == self._left_behind:
            return
        missed = -counts.failed
        if not counts.wait_for_all(self._exit_timeout, besides=self._left_behind):
            missed += self._give_up() + counts.under_way
            self._left_behind = counts.under_way
        missed += counts.failed
        if missed:
            _log.error(
                "%s: %d of the last messages were not delivered in %g s", self.broker, missed, self._exit_timeout
            )

    def _give_up(self) -> int:
        """Leave behind what was not sent yet; how many that are."""
        left = [*self._returned, *self._queue]
        self._returned.clear()
        self._queue.clear()
        for delivery in left:
            delivery.leave_behind(self.unsent())
        return len(left)

    def unsent(self) -> HeadwaterError:
        """Why a message is still here when its time is over."""
        return ConnectError(str(self.broker), self._reason)

    # --- in the loop ----------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """What is queued goes to the broker."""
        self._posted_to = None  # first: what is queued from now on may be missed below
        if self._is_holding() or not self._queue:
            return
        if not self._is_here():
            self._post(self.hand_over)  # it has moved meanwhile
        elif self.spill is not None and not self.spill.idle:
            self._hold(self._take_to(self.spill))
        elif (outbox := self.broker.outbox) is None:
            self._hold(self._connect())
        else:
            self._send_all(outbox)

    def _is_here(self) -> bool:
        """Whether this loop is the one to work in; if it can be, it is from now on."""
        return asyncio.get_running_loop() is self._loop() and self.broker.claim()

    def _send_all(self, outbox: Outbox) -> None:
        queue = self._queue
        now = time.monotonic()
        while queue:
            if outbox.full:
                self._hold(outbox.some_confirmed())
                return
            delivery = queue.popleft()
            if not delivery.over:
                delivery.sent = True
                rest = max(0.001, delivery.deadline - now)
                if delivery.context is None:
                    outbox.put(delivery.outgoing, rest, _Confirmation(self, delivery))
                else:
                    self._send_in_task(delivery, rest)
        outbox.flush()

    def _send_in_task(self, delivery: DeliveryFuture, timeout: float) -> None:
        work = self.broker.deliver(delivery.outgoing, timeout)
        delivery.sending = asyncio.get_running_loop().create_task(work, context=delivery.context)
        delivery.sending.add_done_callback(partial(self._sent_by_task, delivery))

    def _sent_by_task(self, delivery: DeliveryFuture, sending: asyncio.Task[Receipt]) -> None:
        delivery.sending = None
        if sending.cancelled():
            delivery.fail(delivery.unknown(delivery.timeout))
        elif (error := sending.exception()) is not None:
            self.refused(delivery, error)
        else:
            delivery.settle(sending.result())

    def refused(self, delivery: DeliveryFuture, error: BaseException) -> None:
        """Try again what was certainly not accepted, as long as its time lasts."""
        if isinstance(error, DeliveryUnknownError):  # which knows only the time that was left
            error = delivery.unknown(delivery.timeout)
        if not isinstance(error, _NOT_ACCEPTED) or isinstance(error, AuthenticationError):
            delivery.fail(error)
            return
        if not self._is_holding():
            self._failures += 1
            self._hold(asyncio.sleep(_RETRY.delay(self._failures)))
        delivery.sent = False
        self._reason = error.reason if isinstance(error, ConnectError) else str(error)
        self._returned.append(delivery)

    def accepted(self) -> None:
        """All is well."""
        self._failures = 0

    def _stop_sending(self, delivery: DeliveryFuture) -> None:
        if delivery.sending is not None:
            delivery.sending.cancel()
        if (outbox := self.broker.outbox) is not None:
            outbox.let_go()

    # --- holding back ---------------------------------------------------------------------------------

    def _is_holding(self) -> bool:
        return self._holding is not None and not self._holding.get_loop().is_closed()

    def _hold(self, wait: Coroutine[Any, Any, object]) -> None:
        self._holding = asyncio.get_running_loop().create_task(self._hold_until(wait), name="headwater sync")

    async def _hold_until(self, wait: Coroutine[Any, Any, object]) -> None:
        watching = asyncio.create_task(self._let_go())
        try:
            await wait
        finally:
            watching.cancel()
            self._holding = None
            self._queue.extendleft(sorted(self._returned, key=lambda delivery: delivery.number, reverse=True))
            self._returned.clear()
            if not self._is_here():  # perhaps as this loop ends
                self._post(self.hand_over)
        self.hand_over()

    async def _be_ready(self, deadline: float) -> None:
        """Have the broker connected in this loop, and what was published handed over."""
        rest = deadline - time.monotonic()
        try:
            async with asyncio.timeout(None if rest == math.inf else rest):
                if not await self.join(lambda: True):
                    raise _Moved
                self.hand_over()
                while self._holding is not None and self._holding.get_loop() is asyncio.get_running_loop():
                    await asyncio.wait([self._holding])
        except TimeoutError:
            raise self.unsent() from None

    async def _let_go(self) -> None:
        """Tell those whose time is over."""
        while True:
            now = time.monotonic()
            ends = [self._expire(delivery, now) for delivery in (*self._returned, *self._queue)]
            await asyncio.sleep(min([LOOK_AGAIN, *(end - now for end in ends if end > now)]))

    def _expire(self, delivery: DeliveryFuture, now: float) -> float:
        if delivery.deadline <= now:
            self._drop(delivery, self.unsent())
        return delivery.deadline

    def _drop(self, delivery: DeliveryFuture, error: BaseException) -> None:
        for place in (self._queue, self._returned):
            if delivery in place:
                place.remove(delivery)
        delivery.fail(error)

    async def _connect(self) -> None:
        """Until the broker is connected, or nobody waits for it any more."""
        try:
            await self.join(lambda: bool(self._queue))
        except Exception as error:
            self._drop_all(error)

    async def _take_to(self, spill: Spill) -> None:
        try:
            await spill.take(self._queue)
        except Exception as error:
            self._drop_all(error)

    def _drop_all(self, error: Exception) -> None:
        for delivery in list(self._queue):
            self._drop(delivery, error)

    async def join(self, go_on: Callable[[], bool]) -> bool:
        """Have the broker connected in this loop; False if it is in another one.

        Tries again, with backoff, while it may `go_on`; else it raises ConnectError. AuthenticationError at once.
        """
        for tries in itertools.count(1):
            if not self._is_here():
                return False
            if self.broker.connected:
                self._reason = NO_REASON
                return True
            try:
                if asyncio.get_running_loop() is SHARED.loop:
                    await self.broker.connect()
                else:
                    await self._app_connects()
            except AuthenticationError:
                raise
            except ConnectError as error:
                self._reason = error.reason
                if not go_on():
                    raise
                await asyncio.sleep(_RETRY.delay(tries))
        raise AssertionError("it counts for ever")

    async def _app_connects(self) -> None:
        """Until the app that has the broker has connected it, or given it up."""
        moved = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.broker.call_on_move(lambda: _call_in(loop, moved.set))
        await moved.wait()


class _Moved(Exception):
    """The broker is in another loop now."""


class _Confirmation:
    """What the outbox tells of a delivery."""

    __slots__ = ("_courier", "_delivery")

    def __init__(self, courier: Courier, delivery: DeliveryFuture) -> None:
        self._courier = courier
        self._delivery = delivery

    def done(self) -> bool:
        return self._delivery.over

    def set_result(self, receipt: Receipt) -> None:
        self._courier.accepted()
        self._delivery.settle(receipt)

    def set_exception(self, error: BaseException) -> None:
        self._courier.refused(self._delivery, error)


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *arguments: Any) -> None:
    """Call this in the loop, unless it is gone."""
    try:
        loop.call_soon_threadsafe(call, *arguments)
    except RuntimeError:
        pass
