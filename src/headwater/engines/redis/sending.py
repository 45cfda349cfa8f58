"""Messages on their way out: added to streams, or published to channels, many in one round trip."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ...clock import Clock
from ...codecs.envelope import seal
from ...engine import option_of
from ...errors import (
    AuthenticationError,
    DeliveryUnknownError,
    HeadwaterError,
    MessageTooLargeError,
    NotSupportedError,
    PublishError,
    RefusedError,
    TopicNotFoundError,
)
from ...message import Headers, Outgoing, Receipt
from . import delays, entries, names
from .options import Redis
from .servers import Call, Servers
from .wire import Disconnected, Refusal

MAX_KNOWN: Final = 10_000  # topics that are remembered as announced

Answer = Receipt | HeadwaterError


class Sender:
    """Turns messages into commands and replies into receipts."""

    def __init__(
        self,
        servers: Servers,
        clock: Clock,
        check_topic: Callable[[str], None],
        *,
        url: str,
        streams: bool,
        auto_create: bool,
        maxlen: int | None,
        limit: int,
    ) -> None:
        self.on_delay: Callable[[], object] = lambda: None
        self._servers, self._clock, self._check_topic = servers, clock, check_topic
        self._url, self._streams, self._limit = url, streams, limit
        self._create = () if auto_create else ("NOMKSTREAM",)
        self._maxlen = maxlen
        self._known: set[str] = set()

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        """Receipts in order. Raises PublishError, for one message its reason; DeliveryUnknownError if it is not known.

        What cannot be sent at all is left out, the others go.
        """
        started = time.monotonic()
        calls, refused = self._calls(messages)
        announcements = self._announcements(messages)
        try:
            replies = await self._servers.ask([*announcements, *calls] if announcements else calls)
        except Disconnected as error:
            raise DeliveryUnknownError(messages[0].topic, round(time.monotonic() - started, 3)) from error
        if announcements:
            del replies[: len(announcements)]
        if not refused and not any(type(reply) is Refusal for reply in replies) and None not in replies:
            return [self._receipt(outgoing, reply) for outgoing, reply in zip(messages, replies, strict=True)]
        answers = iter(replies)
        return _all_or_raise([
            refused[index] if index in refused else self._answer(outgoing, next(answers))
            for index, outgoing in enumerate(messages)
        ])  # fmt: skip

    # --- out ------------------------------------------------------------------------------------------

    def _calls(self, messages: Sequence[Outgoing]) -> tuple[list[Call], dict[int, HeadwaterError]]:
        calls: list[Call] = []
        refused: dict[int, HeadwaterError] = {}
        for index, outgoing in enumerate(messages):
            try:
                calls.append(self._call(outgoing))
            except HeadwaterError as error:
                refused[index] = error
        return calls, refused

    def _call(self, outgoing: Outgoing) -> Call:
        topic = outgoing.topic
        if topic not in self._known:
            self._check_topic(topic)
        if len(outgoing.body) > self._limit:
            raise MessageTooLargeError(topic, len(outgoing.body), self._limit)
        if outgoing.partition:
            raise NotSupportedError("redis", f"partition={outgoing.partition}", "a stream is one")
        if not self._streams or topic.startswith(names.ANSWERS):
            return self._publication(outgoing)
        fields = entries.fields_of(outgoing)
        if outgoing.delay:
            return topic, delays.held(topic, outgoing.delay, fields)
        if self._create or self._maxlen or outgoing.options:
            return topic, ("XADD", topic, *self._create, *self._trim(outgoing), "*", *fields)
        return topic, ("XADD", topic, "*", *fields)

    def _publication(self, outgoing: Outgoing) -> Call:
        if outgoing.delay:
            raise NotSupportedError("redis", "delay= on a channel", "nothing is kept there: use streams")
        assert isinstance(outgoing.headers, Headers)
        return outgoing.topic, ("PUBLISH", outgoing.topic, seal(outgoing.key_bytes, outgoing.headers, outgoing.body))

    def _trim(self, outgoing: Outgoing) -> tuple[Any, ...]:
        option = option_of(outgoing.options, Redis)
        maxlen = self._maxlen if option is None or option.maxlen is None else option.maxlen
        return () if maxlen is None else ("MAXLEN", "~", maxlen)

    def _announcements(self, messages: Sequence[Outgoing]) -> list[Call]:
        """What is said first: the topics this process writes for the first time, and those with delayed messages."""
        found: list[Call] = []
        for outgoing in messages:
            topic = outgoing.topic
            if topic not in self._known:
                if len(self._known) > MAX_KNOWN:
                    self._known.clear()
                self._known.add(topic)
                if self._streams and not topic.startswith(names.ANSWERS):
                    found.append((topic, ("PUBLISH", names.NEW_TOPICS, topic)))
            if outgoing.delay and self._streams:
                self.on_delay()
                found.append((names.DELAYS, ("SADD", names.DELAYS, topic)))
        return found

    # --- back -----------------------------------------------------------------------------------------

    def _receipt(self, outgoing: Outgoing, reply: Any) -> Receipt:
        if type(reply) is bytes and not outgoing.delay:
            offset = reply.decode()
            return Receipt(outgoing.topic, 0, offset, entries.time_of(offset))
        return Receipt(outgoing.topic, None, None, self._clock.time())

    def _answer(self, outgoing: Outgoing, reply: Any) -> Answer:
        if reply is None:
            return TopicNotFoundError(outgoing.topic, "it was not declared, and auto_create is off")
        if not isinstance(reply, Refusal):
            return self._receipt(outgoing, reply)
        if reply.code == "NOPERM":
            return AuthenticationError(self._url, str(reply))
        return RefusedError(outgoing.topic, str(reply))


def _all_or_raise(answers: Sequence[Answer]) -> Sequence[Receipt]:
    receipts = [answer if isinstance(answer, Receipt) else None for answer in answers]
    errors = [answer if isinstance(answer, HeadwaterError) else None for answer in answers]
    failed = [error for error in errors if error is not None]
    if failed and len(answers) == 1:
        raise failed[0]
    if failed:
        raise PublishError(receipts, errors)
    return [receipt for receipt in receipts if receipt is not None]
