"""The thread that consumes for one subscription: the client library wants one, and calls back in it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka import Message as Record

from ...errors import NotConnectedError
from ...message import Message
from .handover import Handover
from .logs import LibraryLog

T = TypeVar("T")

BURST: Final = 500  # messages consumed and handed over at once
POLL: Final = 0.05  # seconds that a quiet consumer, or a busy loop, is waited for before the thread looks around
PATIENCE: Final = 20  # times that the thread waits for room before it holds the partitions back

_log = logging.getLogger("headwater.kafka")


class Job(Protocol):
    """What a thread does besides consuming. All of it is called in the thread."""

    def begin(self, consumer: Consumer) -> None: ...
    def between(self, consumer: Consumer) -> None:
        """Called between two rounds, many times a second."""
        ...

    def end(self, consumer: Consumer) -> None:
        """The last thing before the consumer is closed."""
        ...

    def convert(self, records: Sequence[Record]) -> list[Message]: ...
    def failed(self, error: Exception) -> BaseException:
        """What to tell who receives, of an error that ends the thread."""
        ...


class Fetcher:
    """Consumes as long as there is room for it.

    While there is none it holds the partitions back and goes on asking the library, which serves the group by that: a
    member whose handlers are slow stays a member. The library lets one thread at a time use a consumer, and who asks
    while it consumes would wait for long: whatever others want of it is done here, between two rounds.
    """

    def __init__(self, config: dict[str, Any], handover: Handover, job: Job) -> None:
        self.consumer = Consumer(config, logger=LibraryLog())
        self.stopping = False
        self._job = job
        self._handover = handover
        self._calls: deque[tuple[Callable[[Consumer], Any], Future[Any]]] = deque()
        self._held_back: list[TopicPartition] | None = None
        self._waited = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="headwater kafka consumer", daemon=True)

    # On the loop

    def start(self) -> None:
        self._thread.start()

    def call(self, function: Callable[[Consumer], T]) -> Future[T]:
        """Have the thread call this between two rounds, in the order asked for; what it gives. From any thread."""
        answer: Future[T] = Future()
        self._calls.append((function, answer))
        if self._ended.is_set():
            self._refuse_calls()
        self._handover.interrupt()
        return answer

    async def stop(self, within: float) -> bool:
        """Leave; False if that was not done in so many seconds, it goes on by itself then."""
        self.stopping = True
        self._handover.interrupt()
        return self._thread.ident is None or await asyncio.to_thread(self._ended.wait, within)

    # In the thread

    def _run(self) -> None:
        try:
            self._job.begin(self.consumer)
            while not self.stopping:
                self.serve_calls()
                self._job.between(self.consumer)
                self._round()
        except Exception as error:
            self._handover.fail(self._job.failed(error))
        finally:
            self.stopping = True
            try:
                self._job.end(self.consumer)
                self.consumer.close()
            except Exception as error:
                _log.warning("a consumer of Kafka could not leave in order: %s", error)
            self._ended.set()
            self._refuse_calls()

    def _round(self) -> None:
        room = self._handover.room
        if room <= 0 and self._held_back is None:
            self._waited = 0 if self._handover.wait_for_room(POLL) else self._waited + 1
            if self._waited > PATIENCE:
                self._hold_back()
            return
        self._waited = 0
        if room > 0 and self._held_back is not None:
            self._let_go()
        records = self.consumer.consume(min(max(room, 1), BURST), 0) or self.consumer.consume(1, POLL)
        if records:
            self._handover.put(self._job.convert(records))
            if self._held_back is not None:  # of partitions that came meanwhile
                self._hold_back()

    def _hold_back(self) -> None:
        self._held_back = self.consumer.assignment()
        self.consumer.pause(self._held_back)

    def _let_go(self) -> None:
        """Go on with what was held back, but for what the core paused, and what is no longer ours."""
        held, self._held_back = self._held_back or (), None
        paused, mine = self._handover.paused, {(p.topic, p.partition) for p in self.consumer.assignment()}
        places = [(p.topic, p.partition) for p in held]
        self.consumer.resume([TopicPartition(*place) for place in places if place in mine and place not in paused])

    def serve_calls(self) -> None:
        """Do what others want of the consumer."""
        while self._calls:
            function, answer = self._calls.popleft()
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(function(self.consumer))
                except Exception as error:
                    answer.set_exception(error)

    def _refuse_calls(self) -> None:
        while self._calls:
            _, answer = self._calls.popleft()
            if answer.set_running_or_notify_cancel():
                answer.set_exception(NotConnectedError("this subscription"))
