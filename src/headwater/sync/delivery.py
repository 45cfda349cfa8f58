"""Messages on their way from synchronous code: bounded, counted, confirmed or given up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass
from typing import Literal, Protocol

from .. import forks
from ..errors import ConfigurationError, DeliveryUnknownError, HeadwaterError, TooManyInFlightError
from ..message import Outgoing, Receipt

WhenFull = Literal["block", "raise", "drop"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the messages published through one blocking face, in this process.

    `queued` wait for the connection, `in_flight` for their confirmation. `delivered` were confirmed, `failed` were
    refused, cancelled or not confirmed in time, `lost` were dropped for want of room or left behind at exit, `spilled`
    were kept in the spill while the engine was away.
    """

    queued: int = 0
    in_flight: int = 0
    delivered: int = 0
    failed: int = 0
    lost: int = 0
    spilled: int = 0


class Carrier(Protocol):
    """Who takes deliveries to the broker."""

    def withdraw(self, delivery: DeliveryFuture) -> None:
        """Nobody waits for this any more."""
        ...

    def unsent(self) -> HeadwaterError:
        """Why a message is still here when its time is over."""
        ...


class DeliveryFuture(Future[Receipt]):
    """The confirmation of one message: a `concurrent.futures.Future`, callbacks included.

    `outgoing` is the message. Callbacks run in the loop thread: keep them short. Cancelling takes the message back
    unless it was sent already.
    """

    context: Context | None = None  # to publish it in; None where nothing would notice
    number = 0  # in the order they were taken
    sent = False
    over = False  # whether its outcome is decided; who waits for it is told at that moment, or just after
    sending: asyncio.Task[Receipt] | None = None

    def __init__(self, outgoing: Outgoing, timeout: float, deliveries: Deliveries, carrier: Carrier) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self._deliveries = deliveries
        self._carrier = carrier
        self._generation = forks.generation

    def result(self, timeout: float | None = None) -> Receipt:
        """The receipt, within `timeout` seconds; by default within those it was published with.

        Raises what refused the message, ConnectError if it never left, and DeliveryUnknownError, once it was
        cancelled, if its confirmation does not come. In a forked child a parent's message is unknown at once.
        """
        wait = self.timeout if timeout is None else timeout
        if self._generation != forks.generation:
            raise DeliveryUnknownError(self.outgoing.topic, wait)
        try:
            return super().result(max(0.0, self.deadline - time.monotonic()) if timeout is None else timeout)
        except TimeoutError:
            if not self.cancel():  # it failed with a timeout of its own, or was confirmed just now
                return super().result()
            raise self.unknown(wait) from None
        except BaseException:
            self.cancel()  # interrupted: what was not sent yet is not sent
            raise

    def unknown(self, timeout: float) -> HeadwaterError:
        """What to raise when its time is over."""
        return DeliveryUnknownError(self.outgoing.topic, timeout) if self.sent else self._carrier.unsent()

    def settle(self, receipt: Receipt) -> None:
        """It was accepted, unless its publisher gave it up before."""
        if self._deliveries.decide(self, delivered=1):
            self.set_result(receipt)
            self._deliveries.leave()

    def keep(self, receipt: Receipt) -> None:
        """It will be delivered once the engine is back."""
        if self._deliveries.decide(self, spilled=1):
            self.set_result(receipt)
            self._deliveries.leave()

    def fail(self, error: BaseException) -> None:
        """It was not accepted, or nobody knows."""
        if self._deliveries.decide(self, failed=1):
            self.set_exception(error)
            self._deliveries.leave()

    def drop(self) -> None:
        """There was no room for it: it was never under way."""
        self.over = True
        self.set_exception(TooManyInFlightError(self.outgoing.topic, self._deliveries.most))

    def leave_behind(self, error: BaseException) -> None:
        """It is given up, as its process ends."""
        if self._deliveries.decide(self, lost=1):
            self.set_exception(error)
            self._deliveries.leave()

    def cancel(self) -> bool:
        """Give it up; False if it was settled before. What was not sent yet is not sent then."""
        if not self._deliveries.decide(self, failed=1):
            return self.cancelled()
        super().cancel()
        self.set_running_or_notify_cancel()  # tells who waits for several futures
        self._deliveries.leave()
        self._carrier.withdraw(self)
        return True


class Deliveries:
    """What is under way, kept below a limit and counted."""

    def __init__(self, most: int, when_full: WhenFull) -> None:
        if most < 1 or when_full not in ("block", "raise", "drop"):
            raise ConfigurationError(
                f"max_in_flight={most!r}, when_full={when_full!r}: give a number from 1 on, "
                f"and 'block', 'raise' or 'drop'"
            )
        self.most = most
        self.when_full = when_full
        self.start_afresh()

    def start_afresh(self) -> None:
        """Count from zero."""
        self.under_way = self.undecided = 0
        self.delivered = self.failed = self.lost = self.spilled = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0
        self._waking = False

    def enter(self, topic: str, timeout: float, count: int = 1) -> bool:
        """Count some in, once there is room for one; False if they were dropped as there is none.

        Raises TooManyInFlightError, where that is wanted, or after `timeout` seconds.
        """
        with self._lock:
            if self.under_way >= self.most and not self._wait_for_room(topic, timeout):
                self.lost += count
                return False
            self.under_way += count
            self.undecided += count
        return True

    def _wait_for_room(self, topic: str, timeout: float) -> bool:
        if self.when_full == "drop":
            return False
        if self.when_full == "block" and self._wait(lambda: self.under_way < self.most, timeout):
            return True
        raise TooManyInFlightError(topic, self.most)

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        self._waiting += 1
        self._waking = False  # a loop that was about to may be gone
        try:
            return self._changed.wait_for(condition, timeout)
        finally:
            self._waiting -= 1

    def decide(
        self, delivery: DeliveryFuture, *, delivered: int = 0, failed: int = 0, lost: int = 0, spilled: int = 0
    ) -> bool:
        """Count this outcome; False if it has one: of a confirmation and a cancellation the first decides."""
        with self._lock:
            if delivery.over:
                return False
            delivery.over = True
            self.undecided -= 1
            self.delivered += delivered
            self.failed += failed
            self.lost += lost
            self.spilled += spilled
        return True

    def decide_several(self, *, delivered: int, failed: int) -> None:
        """Count these outcomes, and all out."""
        with self._lock:
            self.undecided -= delivered + failed
            self.delivered += delivered
            self.failed += failed
        self.leave(delivered + failed)

    def leave(self, count: int = 1) -> None:
        """Count some out, once those who wait for them are told."""
        with self._lock:
            self.under_way -= count
            if self._waiting and not self._waking:
                self._wake_soon()

    def _wake_soon(self) -> None:
        """Wake who waits; in a loop once in its turn: many are confirmed in one, and a wake-up costs more than all."""
        loop = asyncio._get_running_loop()
        if loop is None:
            self._changed.notify_all()
        else:
            self._waking = True
            loop.call_soon(self._wake)

    def _wake(self) -> None:
        with self._lock:
            self._waking = False
            self._changed.notify_all()

    def wait_for_all(self, timeout: float, *, besides: int = 0) -> bool:
        """Whether no more than these were under way any more within `timeout` seconds."""
        with self._lock:
            return self._wait(lambda: self.under_way <= besides, timeout)
