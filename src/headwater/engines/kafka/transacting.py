"""Acknowledgements and messages bound together: the transactions of one subscription."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer, TopicPartition

from ...errors import DeliveryUnknownError, HeadwaterError, NotConnectedError, PartitionLostError
from ...message import Outgoing, Receipt
from .logs import LibraryLog
from .membership import Membership
from .records import Claim, failure, produce, to_receipt

MOST: Final = 2000  # messages that one transaction takes together
POLL: Final = 1.0  # seconds
TRY_FOR: Final = 10.0  # seconds for one step, after which it is tried again
CLOSE_WAIT: Final = 10.0

_GONE: Final = frozenset(("ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "FENCED_INSTANCE_ID", "REBALANCE_IN_PROGRESS"))

_log = logging.getLogger("headwater.kafka")


class Part:
    """One commit: up to where each of its claims is done, and what is sent for that."""

    __slots__ = ("answer", "offsets", "receipts", "sends")

    def __init__(self, offsets: Mapping[Claim, int], sends: Sequence[Outgoing]) -> None:
        self.offsets, self.sends = offsets, sends
        self.receipts: list[Receipt | None] = [None] * len(sends)
        self.answer: Future[Sequence[Receipt]] = Future()


class Transactions:
    """Commits what is asked for, in a thread of its own; all that is asked meanwhile goes into the next transaction.

    The server takes a transaction only from a member that still has its partitions: the group's generation travels
    with the offsets. What was aborted is seen by nobody who reads committed messages.
    """

    def __init__(
        self, config: dict[str, Any], member: Membership, address: str, on_fatal: Callable[[Exception], None]
    ) -> None:
        # Without an error_cb a fatal error is raised out of whichever call comes next, in the middle of callbacks.
        self._producer = Producer(config | {"error_cb": _heard_later}, logger=LibraryLog())
        self._member = member
        self._group = member.group or ""
        self._address = address
        self._on_fatal = on_fatal
        self._parts: SimpleQueue[Part | None] = SimpleQueue()
        self._closing = False
        self._dead: HeadwaterError | None = None
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="headwater kafka transactions", daemon=True)
        self._thread.start()

    # On the loop

    async def ready(self) -> None:
        """Return once no earlier process of our name has a transaction open. Raises what forbids us any."""
        await asyncio.wrap_future(self._ready)

    async def commit(self, offsets: Mapping[Claim, int], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        """These offsets and these messages, both or none. Raises PartitionLostError if others have a partition now."""
        if self._dead is not None:
            raise self._dead
        part = Part(offsets, sends)
        self._parts.put(part)
        return await asyncio.wrap_future(part.answer)

    async def close(self) -> None:
        """Finish what was asked for, and end."""
        self._closing = True
        self._parts.put(None)
        await asyncio.to_thread(self._thread.join, CLOSE_WAIT)

    # In the thread

    def _run(self) -> None:
        try:
            self._insist(self._producer.init_transactions)
        except KafkaException as error:
            self._die(error)
            self._ready.set_exception(failure(error.args[0], self._address))
            return
        self._ready.set_result(None)
        while (first := self._next()) is not None:
            parts = [first, *self._more(len(first.sends))]
            self._commit_all([part for part in parts if part.answer.set_running_or_notify_cancel()])

    def _next(self) -> Part | None:
        while True:
            try:
                return self._parts.get(timeout=POLL)
            except Empty:
                self._producer.poll(0)  # the library may have something to say

    def _more(self, count: int) -> list[Part]:
        """What was asked for since: it shares the transaction."""
        found: list[Part] = []
        while count < MOST and not self._parts.empty():
            part = self._parts.get()
            if part is None:
                self._parts.put(None)
                break
            found.append(part)
            count += len(part.sends) + 1
        return found

    def _commit_all(self, parts: Sequence[Part]) -> None:
        """Commit these together; if that fails each by itself, so that one does not fail the others."""
        if not parts:
            return
        try:
            self._transact_as_we_are(parts)
        except Exception as error:
            reason = self._reason(error, parts)
            if len(parts) > 1 and self._dead is None:
                for part in parts:
                    self._commit_all([part])
                return
            for part in parts:
                part.answer.set_exception(reason)
        else:
            for part in parts:
                part.answer.set_result(part.receipts)  # type: ignore[arg-type]  # all were delivered

    def _transact_as_we_are(self, parts: Sequence[Part]) -> None:
        """Once more where that is sure to help.

        A rebalance that took nothing from us still made us another: ask who we are. And the purge of a transaction that
        was aborted may take a message of the next one with it, which never left then.
        """
        try:
            self._transact(parts)
        except NotConnectedError:
            if self._closing:
                raise
            self._transact(parts)
        except KafkaException as error:
            if error.args[0].name() not in _GONE or self._dead is not None or self._closing:
                raise
            self._member.fetcher.call(self._member.look_up_generation).result(TRY_FOR)
            self._transact(parts)

    def _transact(self, parts: Sequence[Part]) -> None:
        if self._dead is not None:
            raise self._dead
        self._producer.begin_transaction()
        try:
            refused = self._produce(parts)
            if refused is not None:
                raise refused
            self._send_offsets(parts)
            self._insist(self._producer.commit_transaction)
        except Exception as error:
            self._abort(error)
            raise

    def _produce(self, parts: Sequence[Part]) -> Exception | None:
        """Have all messages delivered; the first error."""
        errors: list[HeadwaterError] = []

        def delivered(part: Part, index: int, error: KafkaError | None, record: Any) -> None:
            outgoing = part.sends[index]
            if error is not None:
                errors.append(failure(error, self._address, outgoing, TRY_FOR))
                return
            receipt = part.receipts[index] = to_receipt(outgoing, record)
            if receipt.offset is None:
                errors.append(DeliveryUnknownError(outgoing.topic, TRY_FOR))

        for part in parts:
            for index, outgoing in enumerate(part.sends):
                self._produce_one(outgoing, partial(delivered, part, index))
        while self._producer.flush(1.0) and not errors:
            pass
        return errors[0] if errors else None

    def _produce_one(self, outgoing: Outgoing, delivered: Callable[[Any, Any], None]) -> None:
        while True:
            try:
                return produce(self._producer, outgoing, delivered)
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                if error.args[0].fatal():
                    raise
                raise failure(error.args[0], self._address, outgoing) from error

    def _send_offsets(self, parts: Sequence[Part]) -> None:
        offsets: dict[Claim, int] = {}
        for part in parts:
            for claim, offset in part.offsets.items():
                offsets[claim] = max(offset, offsets.get(claim, 0))
        # The generation first: a claim that is live after that was ours in it, and the server refuses an old one.
        generation = self._member.generation
        for claim in offsets:
            if not claim.live:
                raise PartitionLostError(claim.topic, claim.partition, self._group)
        positions = [TopicPartition(claim.topic, claim.partition, offset) for claim, offset in offsets.items()]
        if positions:
            self._insist(lambda within: self._producer.send_offsets_to_transaction(positions, generation, within))

    def _insist(self, step: Callable[[float], None]) -> None:
        """Take a step of a transaction, again while that may help."""
        while True:
            try:
                return step(TRY_FOR)
            except KafkaException as error:
                if not error.args[0].retriable() or self._closing:
                    raise
                _log.debug("a step of a transaction is tried again: %s", error)

    def _abort(self, error: Exception) -> None:
        if isinstance(error, KafkaException) and error.args[0].fatal():
            self._die(error)
            return
        try:
            self._producer.purge()
            self._producer.flush(0.1)
            self._insist(self._producer.abort_transaction)
        except KafkaException as worse:
            self._die(worse)

    def _die(self, error: KafkaException) -> None:
        """No transaction of this producer is possible any more: another took its place."""
        self._dead = HeadwaterError(
            f"group {self._group!r} can commit no more here: another process took its place, or the server gave it "
            f"up ({error.args[0].str()})"
        )
        self._on_fatal(self._dead)

    def _reason(self, error: Exception, parts: Sequence[Part]) -> Exception:
        gone = isinstance(error, KafkaException) and error.args[0].name() in _GONE
        if gone or self._dead is not None:
            for part in parts:
                for claim in part.offsets:
                    return PartitionLostError(claim.topic, claim.partition, self._group)
        return failure(error.args[0], self._address) if isinstance(error, KafkaException) else error


def _heard_later(_error: KafkaError) -> None:
    """Each step of a transaction fails with it, too."""
