"""Messages on their way to JetStream: written together, each confirmed by the stream that keeps it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from ...clock import Clock
from ...engine import Topic
from ...errors import (
    DeliveryUnknownError,
    HeadwaterError,
    MessageTooLargeError,
    NotSupportedError,
    PublishError,
    RefusedError,
)
from ...message import Outgoing, Receipt
from .api import NO_SCHEDULES, TOO_LARGE, read_ack
from .connection import FULL, Connection, Flight, LostError
from .options import Settings
from .streams import SCHEDULES_SINCE, Streams
from .subjects import INBOX, check, schedule_of
from .wire import block_of, publication

PAUSE: Final = 0.05  # seconds before a stream that is there and did not answer is tried again ...
SLOWEST: Final = 1.0  # ... and at most, after many tries

T = TypeVar("T")
Command = tuple[bytes, bytes, bytes]  # the subject, the block of headers, the body
Outcome = Receipt | HeadwaterError | None  # None: nobody answered


class Sender:
    """Sends messages in the order they were given. What has to wait waits as long as its publisher does, no longer."""

    def __init__(self, connection: Connection, streams: Streams, settings: Settings, clock: Clock) -> None:
        self._connection, self._streams, self._settings = connection, streams, settings
        self._clock = clock
        self._marks = (f"{os.urandom(6).hex()}{number}" for number in itertools.count())

    def send(self, messages: Sequence[Outgoing]) -> Awaitable[Sequence[Receipt]]:
        """Written at once where nothing stands in the way."""
        commands = prepared(messages, self._command)
        if self._can_write(messages):
            return self._confirmed(messages, commands, self._write(messages, commands))
        return self._send_later(messages, commands)

    def _can_write(self, messages: Sequence[Outgoing]) -> bool:
        client, streams = self._connection.client, self._streams
        if client is None or self._connection.order.locked() or client.backlog > FULL:
            return False
        return all(streams.known(outgoing.topic) or not _is_kept(outgoing) for outgoing in messages)

    async def _send_later(
        self, messages: Sequence[Outgoing], commands: list[Command | HeadwaterError]
    ) -> Sequence[Receipt]:
        return await self._confirmed(messages, commands, await self._write_later(messages, commands))

    async def _write_later(self, messages: Sequence[Outgoing], commands: list[Command | HeadwaterError]) -> Flight:
        async with self._connection.order:
            await self._find_streams(messages, commands)
            while (client := await self._connection.ready()).backlog > FULL:
                await client.drained()
            return self._write(messages, commands)

    async def _find_streams(self, messages: Sequence[Outgoing], commands: list[Command | HeadwaterError]) -> None:
        """Have a stream for each topic; what has none is not sent."""
        for index, outgoing in enumerate(messages):
            topic = outgoing.topic
            if _is_kept(outgoing) and not self._streams.known(topic) and isinstance(commands[index], tuple):
                try:
                    await (
                        self._streams.ensure(Topic(topic)) if self._settings.auto_create else self._streams.of(topic)
                    )
                except HeadwaterError as error:
                    commands[index] = error

    def _command(self, outgoing: Outgoing) -> Command:
        """Raises what NATS would refuse."""
        if outgoing.partition:
            raise NotSupportedError("nats", f"partition={outgoing.partition}", "a stream has one, 0")
        if not self._streams.known(outgoing.topic):
            check(outgoing.topic)
        subject, extra = self._schedule(outgoing) if outgoing.delay else (outgoing.topic, b"")
        block = block_of(outgoing, extra)
        check_size(outgoing, block, self._connection.max_payload)
        return subject.encode(), block, outgoing.body

    def _schedule(self, outgoing: Outgoing) -> tuple[str, bytes]:
        """Where a delayed message waits, and the headers that say until when."""
        if not self._streams.can_schedule:
            needed = ".".join(map(str, SCHEDULES_SINCE))
            raise NotSupportedError("nats", "delay=", f"it needs a server of version {needed}, and schedules=True")
        due = datetime.fromtimestamp(self._clock.time() + (outgoing.delay or 0.0), UTC)
        extra = f"Nats-Schedule: @at {due:%Y-%m-%dT%H:%M:%S.%fZ}\r\nNats-Schedule-Target: {outgoing.topic}\r\n"
        return schedule_of(outgoing.topic, next(self._marks)), extra.encode()

    def _write(self, messages: Sequence[Outgoing], commands: Sequence[Command | HeadwaterError]) -> Flight:
        """Write what can be sent; the flight brings the streams' answers, in order."""
        connection = self._connection
        asking = [isinstance(c, tuple) and _is_kept(o) for o, c in zip(messages, commands, strict=True)]
        flight = connection.fly(sum(asking))
        number, parts = flight.first, list[bytes]()
        for asks, command in zip(asking, commands, strict=True):
            if isinstance(command, tuple):
                subject, block, body = command
                parts.append(publication(subject, connection.answer_to(number) if asks else b"", block, body))
                number += asks
        assert connection.client is not None  # the caller has seen it
        connection.client.write(b"".join(parts))
        return flight

    async def _confirmed(
        self, messages: Sequence[Outgoing], commands: list[Command | HeadwaterError], flight: Flight
    ) -> Sequence[Receipt]:
        outcomes = await self._outcomes(messages, commands, flight)
        for tries in itertools.count():
            again = [index for index, outcome in enumerate(outcomes) if outcome is None]
            if not again:
                break
            if tries:  # the stream is there: it may be starting, or it takes no delayed messages
                await asyncio.sleep(min(SLOWEST, PAUSE * 2.0 ** min(tries, 10)))
            some = [messages[index] for index in again]
            for outgoing in some:
                self._streams.forget(outgoing.topic)
            unanswered = [
                _unscheduled(o) if tries and o.delay else commands[i] for i, o in zip(again, some, strict=True)
            ]
            flight = await self._write_later(some, unanswered)
            for index, outcome in zip(again, await self._outcomes(some, unanswered, flight), strict=True):
                outcomes[index] = outcome
        return all_or_error(outcomes)

    async def _outcomes(
        self, messages: Sequence[Outgoing], commands: Sequence[Command | HeadwaterError], flight: Flight
    ) -> list[Outcome]:
        """What became of each message."""
        began = self._clock.time()
        try:
            await flight.done
        except LostError:
            pass  # those without an answer may have arrived
        finally:
            if not flight.landed:
                self._connection.drop(flight)
        now, answers = self._clock.time(), iter(flight.answers)
        outcomes: list[Outcome] = []
        for outgoing, command in zip(messages, commands, strict=True):
            if isinstance(command, HeadwaterError):
                outcomes.append(command)
            elif not _is_kept(outgoing):
                outcomes.append(Receipt(outgoing.topic, None, None, now))
            else:
                outcomes.append(_outcome(outgoing, *next(answers), began, now))
        return outcomes


def _outcome(outgoing: Outgoing, headers: bytes | None, body: bytes, began: float, now: float) -> Outcome:
    """What a stream's answer says; without headers and body none came."""
    topic = outgoing.topic
    if not body:
        return None if headers else DeliveryUnknownError(topic, round(now - began, 3))
    answer = read_ack(body)
    refusal = answer.error
    if refusal is None:
        return Receipt(topic, None, None if outgoing.delay else answer.seq, now)
    if refusal.err_code == TOO_LARGE:
        return MessageTooLargeError(topic, len(outgoing.body))
    if refusal.err_code == NO_SCHEDULES:
        return _unscheduled(outgoing)
    return RefusedError(topic, f"{refusal.description} ({refusal.err_code})")


def _unscheduled(outgoing: Outgoing) -> NotSupportedError:
    hint = "its stream was not made here, and takes none: give it allow_msg_schedules and the subjects hw.later.…"
    return NotSupportedError("nats", f"delayed messages to {outgoing.topic!r}", hint)


def _is_kept(outgoing: Outgoing) -> bool:
    """Whether a stream keeps it; an answer to a request goes to who waits for it."""
    return not outgoing.topic.startswith(INBOX)


# --- what both kinds of NATS share --------------------------------------------------------------------


def prepared(messages: Sequence[Outgoing], command: Callable[[Outgoing], T]) -> list[T | HeadwaterError]:
    """Each message as it travels, or why it cannot."""
    found: list[T | HeadwaterError] = []
    for outgoing in messages:
        try:
            found.append(command(outgoing))
        except HeadwaterError as error:
            found.append(error)
    return found


def check_size(outgoing: Outgoing, block: bytes, limit: int) -> None:
    """Raise MessageTooLargeError for what the server would end the connection over."""
    size = len(block) + len(outgoing.body)
    if size > limit:
        raise MessageTooLargeError(outgoing.topic, size, limit)


def all_or_error(outcomes: Sequence[Outcome]) -> list[Receipt]:
    """The receipts. Raises the reason if the only message was refused, PublishError if some of several were."""
    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    if len(receipts) == len(outcomes):
        return receipts
    errors = [outcome if isinstance(outcome, HeadwaterError) else None for outcome in outcomes]
    if len(errors) == 1 and errors[0] is not None:
        raise errors[0]
    raise PublishError([outcome if isinstance(outcome, Receipt) else None for outcome in outcomes], errors)
