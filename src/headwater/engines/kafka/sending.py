"""Messages on their way to Kafka: produced from the loop, their delivery reported by a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from ...errors import (
    AuthenticationError,
    ConnectError,
    DeliveryUnknownError,
    HeadwaterError,
    NotConnectedError,
    PublishError,
    TopicNotFoundError,
)
from ...message import Outgoing, Receipt
from .cluster import Cluster
from .logs import LibraryLog
from .records import UNKNOWN_TOPIC, failure, produce, to_receipt
from .settings import Settings

POLL: Final = 0.2  # seconds that the thread waits for reports before it looks whether it is to end
ROOM_WAIT: Final = 0.05  # seconds until a full client is tried again, if no report comes before
ANSWER_WITHIN: Final = 5.0  # seconds
CLOSE_WAIT: Final = 5.0

_log = logging.getLogger("headwater.kafka")

Report = tuple["Batch", int, Any, Any]  # of one message: where it belongs, its error and its record


class Batch:
    """What one `send` was given, and what became of it so far."""

    __slots__ = ("answer", "errors", "left", "outgoings", "receipts", "tried_again", "unknown")

    def __init__(self, outgoings: Sequence[Outgoing], answer: asyncio.Future[Sequence[Receipt]]) -> None:
        self.outgoings, self.answer = outgoings, answer
        self.receipts: list[Receipt | None] = [None] * len(outgoings)
        self.errors: dict[int, HeadwaterError] = {}
        self.left = len(outgoings)
        self.unknown: list[int] = []  # refused because their topic or partition was not known
        self.tried_again = False

    def finish(self) -> None:
        """Answer, once all is known."""
        if self.answer.done():
            return
        if not self.errors:
            self.answer.set_result(self.receipts)  # type: ignore[arg-type]  # without errors there are all of them
        elif len(self.outgoings) == 1:
            self.answer.set_exception(self.errors[0])
        else:
            errors = [self.errors.get(index) for index in range(len(self.outgoings))]
            self.answer.set_exception(PublishError(self.receipts, errors))


class Sender:
    """Publishes in the order of the calls, also while some of them wait for a topic or for room.

    The client library holds what was handed to it, within bounds, and sends it once the server can be reached; a
    caller that gives up leaves its message there for as long as `delivery_timeout`.
    """

    def __init__(self, settings: Settings, cluster: Cluster, on_error: Callable[[KafkaError], None]) -> None:
        self._on_error = on_error
        self._settings = settings
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._known = set[str]()  # topics that are there
        self._waiting = 0  # sends that could not be handed over at once; all later ones wait behind them
        self._turns = asyncio.Lock()
        self._room = asyncio.Event()
        self._reports: list[Report] = []
        self._closing = False
        self._broken = False  # the library gave this producer up: it wants a new one
        self.producer = self._make()
        self._thread = threading.Thread(target=self._serve, name="headwater kafka reports", daemon=True)
        self._thread.start()

    def _make(self) -> Producer:
        return Producer(self._settings.producer() | {"error_cb": self._error}, logger=LibraryLog())

    # On the loop

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:
        """Have these accepted; the receipts, in order."""
        batch = Batch(messages, self._loop.create_future())
        if self._waiting:
            return self._later(batch, range(len(messages)))
        known, producer = self._known, self.producer
        for index, outgoing in enumerate(messages):
            if outgoing.topic not in known:
                return self._later(batch, range(index, len(messages)))
            try:
                produce(producer, outgoing, partial(self._report, batch, index))
            except (BufferError, KafkaException):
                return self._later(batch, range(index, len(messages)))
        return batch.answer

    def _later(self, batch: Batch, indices: Sequence[int]) -> asyncio.Future[Sequence[Receipt]]:
        """What cannot be handed over at once; whoever comes meanwhile waits for it, so that order is kept."""
        self._waiting += 1
        task = self._loop.create_task(self._hand_over(batch, indices))
        task.add_done_callback(self._came_through)
        batch.answer.add_done_callback(lambda _: task.cancel())  # nobody waits any more
        return batch.answer

    def _came_through(self, _task: object) -> None:
        self._waiting -= 1

    async def _hand_over(self, batch: Batch, indices: Sequence[int]) -> None:
        async with self._turns:
            for index in indices:
                try:
                    await self._hand_over_one(batch, index)
                except HeadwaterError as error:
                    batch.errors[index] = error
                    self._count_down(batch)

    async def _hand_over_one(self, batch: Batch, index: int) -> None:
        outgoing, looked_again = batch.outgoings[index], False
        while not self._closing:
            await self._know_in_time(outgoing.topic)
            self._room.clear()
            try:
                produce(self.producer, outgoing, partial(self._report, batch, index))
                return
            except BufferError:
                pass
            except KafkaException as error:
                name = error.args[0].name()
                if name in UNKNOWN_TOPIC and not looked_again:
                    self._known.discard(outgoing.topic)  # it was deleted, or got partitions, since we last looked
                    looked_again = True
                    continue
                if name != "_FATAL":
                    raise failure(error.args[0], self._settings.address, outgoing) from error
            await self._wait_for_room()
        raise NotConnectedError(f"Kafka at {self._settings.address}")

    async def _know_in_time(self, topic: str) -> None:
        """A server that is away is waited for: whoever publishes decides how long."""
        while topic not in self._known:
            try:
                await self.know([topic])
            except AuthenticationError:
                raise
            except ConnectError:
                await asyncio.sleep(ROOM_WAIT)

    async def _wait_for_room(self) -> None:
        timer = self._loop.call_later(ROOM_WAIT, self._room.set)
        try:
            await self._room.wait()
        finally:
            timer.cancel()

    async def know(self, topics: Sequence[str]) -> None:
        """Have these topics be there, ready, and known to the producer.

        Raises TopicNotFoundError where none may be made, ConnectError.
        """
        for topic in topics:
            if topic in self._known:
                continue
            if topic not in await self._cluster.partitions([topic]):
                if not self._settings.auto_create:
                    raise TopicNotFoundError(topic, "create it, or give the broker auto_create=True")
                await self._cluster.create(topic, None, None, {})
            count = await self._look_up(topic)
            # Before they lead, servers refuse the first messages of a pipeline and may then take later ones, which
            # the library believes to stand for those before them. A server that tells offsets leads.
            await self._cluster.offsets([(topic, number) for number in range(count)], "latest")
            self._known.add(topic)

    async def _look_up(self, topic: str) -> int:
        """Tell the producer of the topic as it is now, by itself it asks much later; how many partitions it has."""
        try:
            found = await asyncio.to_thread(self.producer.list_topics, topic, ANSWER_WITHIN)
        except KafkaException as error:
            raise failure(error.args[0], self._settings.address) from error
        return len(found.topics[topic].partitions)

    def _reported(self, reports: Sequence[Report]) -> None:
        for batch, index, error, record in reports:
            if error is None and (receipt := to_receipt(batch.outgoings[index], record)).offset is not None:
                batch.receipts[index] = receipt
            elif error is not None and error.name() in UNKNOWN_TOPIC and not batch.tried_again:
                batch.unknown.append(index)
            else:
                batch.errors[index] = self._reason(error, batch.outgoings[index])
            self._count_down(batch)
        self._room.set()

    def _reason(self, error: KafkaError | None, outgoing: Outgoing) -> HeadwaterError:
        settings = self._settings
        if error is None:  # without an offset, see `know`
            return DeliveryUnknownError(outgoing.topic, settings.delivery_timeout)
        return failure(error, settings.address, outgoing, settings.delivery_timeout)

    def _count_down(self, batch: Batch) -> None:
        """Once all is known of it, answer; what found its topic gone meanwhile is tried again, once."""
        batch.left -= 1
        if batch.left:
            return
        if not batch.unknown or batch.answer.done():
            batch.finish()
            return
        indices, batch.unknown = batch.unknown, []
        batch.tried_again, batch.left = True, len(indices)
        self._known.difference_update(batch.outgoings[index].topic for index in indices)
        self._later(batch, indices)

    def greet(self, topic: str, timeout: float) -> None:
        """Ask the cluster for a sign of life. Blocks, and raises KafkaException if none comes in time."""
        self.producer.list_topics(topic, timeout)

    async def close(self) -> None:
        """End the thread. What nobody waits for any more is given up."""
        self._closing = True
        self._room.set()
        await asyncio.to_thread(self._thread.join, CLOSE_WAIT)

    # In the thread

    def _report(self, batch: Batch, index: int, error: Any, record: Any) -> None:
        self._reports.append((batch, index, error, record))

    def _error(self, error: KafkaError) -> None:
        if error.fatal():
            self._broken = True
        self._tell(self._on_error, error)

    def _serve(self) -> None:
        while not self._closing:
            try:
                self.producer.poll(POLL)
            except KafkaException as error:
                self._error(error.args[0])
                time.sleep(POLL)  # who may not publish is refused again, and at once
            self._hand_back()
            if self._broken:
                self._replace()
        self._end(self.producer)

    def _replace(self) -> None:
        """A producer with a fatal error takes nothing any more; what it had is reported as not delivered."""
        _log.warning("Kafka at %s gave up our producer: it gets another", self._settings.address)
        broken, self.producer, self._broken = self.producer, self._make(), False
        self._end(broken)

    def _end(self, producer: Producer) -> None:
        deadline = time.monotonic() + CLOSE_WAIT / 2
        producer.purge()
        while len(producer) and time.monotonic() < deadline:
            with suppress(KafkaException):  # what ended it, once more
                producer.poll(0.05)
        self._hand_back()

    def _hand_back(self) -> None:
        """Give what was reported to the loop, all of it at once."""
        if self._reports:
            reports, self._reports = self._reports, []
            self._tell(self._reported, reports)

    def _tell(self, function: Callable[[Any], None], argument: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, argument)
        except RuntimeError:  # the loop is closed: nobody waits
            pass
