"""A place in subjects that nobody keeps: who listens gets what comes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from ...engine import Source
from ...errors import NotSupportedError
from ...inbox import Inbox
from ...message import CORRELATION, NO_HEADERS, REPLY_TO, Message, Outgoing, Position, Receipt
from ...topics import is_pattern, match
from .connection import ANSWER_WITHIN, Connection, Route, log
from .options import Nats
from .subjects import INBOX, subject_of
from .wire import is_status, read

_COMPLAIN_EVERY: Final = 10.0  # seconds between two warnings of messages that had no room


class Listener:
    """A member of a group, which is a queue group, or a listener on its own. It has nothing to acknowledge.

    What comes while there is no room is dropped, counted and logged.
    """

    def __init__(self, connection: Connection, source: Source) -> None:
        self.source = source
        self.dropped = 0
        self._connection = connection
        self._inbox = Inbox((source.option(Nats) or Nats()).pending)
        self._group = source.group
        self._topics: dict[bytes, str | None] = {}  # by subject; None for those that no pattern matches
        self._complain_at = 0.0
        self._untold = 0  # dropped since the last warning

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Listener]:
        """Take the place."""
        routes = [self._subscribe(subject) for topic in self.source.topics for subject in _subjects(topic)]
        try:
            await self._connection.flush(ANSWER_WITHIN)
            self._connection.on_return.append(self._note_gap)
            yield self
        finally:
            if self._note_gap in self._connection.on_return:
                self._connection.on_return.remove(self._note_gap)
            await self._connection.unsubscribe(*routes)

    def _subscribe(self, subject: str) -> Route:
        return self._connection.subscribe(subject, self._take, "_".join((self._group or "").split()))

    def _note_gap(self) -> None:
        if not self.source.topics[0].startswith(INBOX):
            log.warning("what was published to %s while the server was away is missed", ", ".join(self.source.topics))

    def _take(self, subject: bytes, reply: bytes, body: bytes, block: bytes | None) -> None:
        topic = self._topics.get(subject, "")
        if topic == "":
            topic = self._topic_of(subject)
        if topic is None or (block is not None and is_status(block)):
            return  # a dead letter, or that nobody is there who could answer
        key, headers = (None, NO_HEADERS) if block is None else read(block)
        if reply and REPLY_TO not in headers:
            headers = headers.merged({REPLY_TO: reply})
        if topic.startswith(INBOX) and CORRELATION not in headers:
            headers = headers.merged({CORRELATION: subject.rpartition(b".")[2]})
        if not self._inbox.put(Message(topic, body, key, headers, None, None, time.time(), self._group)):
            self._drop()

    def _topic_of(self, subject: bytes) -> str | None:
        if len(self._topics) > 10_000:
            self._topics.clear()
        topic = subject.decode(errors="replace")
        read_here = topic.startswith(INBOX) or any(match(wanted, topic) is not None for wanted in self.source.topics)
        found = self._topics[subject] = topic if read_here else None
        return found

    def _drop(self) -> None:
        self.dropped += 1
        self._untold += 1
        now = time.monotonic()
        if now >= self._complain_at:
            text = "%d message(s) to %s were dropped: %d wait to be handled, which is as many as may"
            log.warning(text, self._untold, ", ".join(self.source.topics), self._inbox.size)
            self._complain_at, self._untold = now + _COMPLAIN_EVERY, 0

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        return await self._inbox.receive(limit, wait)

    def wake(self) -> None:
        self._inbox.wake()

    def begin(self, message: Message) -> None:
        pass  # nothing is kept that could be counted

    async def ack(self, messages: Sequence[Message]) -> None:
        pass  # nobody waits for it

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("nats", "nack", "nobody would give the message out again")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("nats", "reject", "nobody keeps the message")

    async def extend(self, messages: Sequence[Message]) -> None:
        pass  # no leases

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("nats", "transactions")

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        self._inbox.pause()

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self._inbox.resume()

    async def seek(self, position: Position) -> None:
        raise NotSupportedError("nats", "seek", "nothing is kept")


def _subjects(topic: str) -> tuple[str, ...]:
    """Where the messages of a topic come; answers come to a subject below the inbox, one for each request, too."""
    return (topic, f"{topic}.*") if topic.startswith(INBOX) and not is_pattern(topic) else (subject_of(topic),)
