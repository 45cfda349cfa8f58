"""Messages on their way from synchronous code: bounded, counted, confirmed or given up."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from ..errors import DeliveryUnknownError, HeadwaterError, TooManyInFlightError
from ..message import Outgoing, Receipt

WhenFull = Literal["block", "raise", "drop"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of the messages published through one blocking face, in this process.

    `queued` wait for the connection, `in_flight` for their confirmation. `delivered` were confirmed, `failed` were
    refused, cancelled or not confirmed in time, `lost` were dropped for want of room or left behind at exit.
    """

    queued: int = 0
    in_flight: int = 0
    delivered: int = 0
    failed: int = 0
    lost: int = 0


class DeliveryFuture(Future[Receipt]):
    """The confirmation of one message: a `concurrent.futures.Future`, callbacks included.

    `outgoing` is the message. Callbacks run in the loop thread: keep them short.
    """

    def __init__(self, outgoing: Outgoing, timeout: float) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.reason: HeadwaterError | None = None  # why it is still here
        self.context: contextvars.Context | None = None

    def result(self, timeout: float | None = None) -> Receipt:
        """The receipt, within `timeout` seconds; by default within those it was published with.

        Raises what refused the message, ConnectError if it never left, and DeliveryUnknownError, once it was
        cancelled, if its confirmation does not come.
        """
        wait = max(0.0, self.deadline - time.monotonic()) if timeout is None else timeout
        try:
            return super().result(wait)
        except TimeoutError as error:
            if self.done():  # it failed with a timeout of its own
                raise
            self.cancel()
            unknown = DeliveryUnknownError(self.outgoing.topic, self.timeout if timeout is None else timeout)
            raise self.reason or unknown from error
        except BaseException:
            self.cancel()  # interrupted: what was not sent yet is not sent
            raise


class Deliveries:
    """What is under way, kept below a limit and counted."""

    def __init__(self, most: int, when_full: WhenFull) -> None:
        self.most = most
        self.when_full = when_full
        self.start_afresh()

    def start_afresh(self) -> None:
        """Count from zero."""
        self.under_way = self.delivered = self.failed = self.lost = 0
        self._changed = threading.Condition()
        self._waiting = 0

    def enter(self, delivery: DeliveryFuture) -> bool:
        """Count this in; False if it was dropped, and has failed, as there is no room.

        Raises TooManyInFlightError, where that is wanted, or after the delivery's timeout.
        """
        with self._changed:
            if self.under_way >= self.most and not self._wait_for_room(delivery):
                self.lost += 1
                delivery.set_exception(TooManyInFlightError(delivery.outgoing.topic, self.most))
                return False
            self.under_way += 1
        delivery.add_done_callback(self._leave)
        return True

    def _wait_for_room(self, delivery: DeliveryFuture) -> bool:
        if self.when_full == "drop":
            return False
        if self.when_full == "block" and self._wait(lambda: self.under_way < self.most, delivery.timeout):
            return True
        raise TooManyInFlightError(delivery.outgoing.topic, self.most)

    def _wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        self._waiting += 1
        try:
            return self._changed.wait_for(condition, timeout)
        finally:
            self._waiting -= 1

    def _leave(self, delivery: Future[Receipt]) -> None:
        with self._changed:
            self.under_way -= 1
            if delivery.cancelled() or delivery.exception() is not None:
                self.failed += 1
            else:
                self.delivered += 1
            if self._waiting:
                self._changed.notify_all()

    def wait_for_all(self, timeout: float) -> bool:
        """Whether nothing was under way any more within `timeout` seconds."""
        with self._changed:
            return self._wait(lambda: self.under_way == 0, timeout)

    def give_up(self) -> int:
        """Count what is still under way as lost; how many that are."""
        with self._changed:
            left, self.under_way = self.under_way, 0
            self.lost += left
            return left
