"""Messages that left their topic: dead letters, those on their way through a retry topic, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .errors import Signal
from .message import (
    ATTEMPTS,
    DEADLINE,
    EXCEPTION,
    GROUP,
    OFFSET,
    ONLY_GROUP,
    PARTITION,
    REASON,
    REPLY_TO,
    TOPIC,
    Message,
    Outgoing,
)


def dead_letter(message: Message, topic: str, reason: str, error: BaseException | None) -> Outgoing:
    """The message as a dead letter on `topic`: body, key and headers as they were, and why it is there."""
    about: dict[str, str | None] = {
        REASON: reason,
        EXCEPTION: None if error is None or isinstance(error, Signal) else described(error),
        TOPIC: message.topic,
        PARTITION: None if message.partition is None else str(message.partition),
        OFFSET: None if message.offset is None else str(message.offset),
        ATTEMPTS: str(message.attempt),
        GROUP: message.group,
    }
    return _readdressed(message, topic, {name: value for name, value in about.items() if value})


def retried(message: Message, topic: str, delay: float) -> Outgoing:
    """The message on its way through the retry topic, to come back after `delay` seconds."""
    about = {
        TOPIC: message.topic,
        PARTITION: str(message.partition or 0),
        OFFSET: str(message.offset),
        ATTEMPTS: str(message.attempt),
    }
    outgoing = _readdressed(message, topic, about)
    outgoing.delay = delay
    return outgoing


def returned(message: Message) -> Message:
    """A message from the retry topic as it was on its own topic; settling it settles this delivery."""
    headers = message.headers
    offset = headers.get(OFFSET, "")
    return Message(
        headers.get(TOPIC, message.topic),
        message.body,
        message.key_bytes,
        headers,
        int(headers.get(PARTITION, 0)),
        int(offset) if offset.isdigit() else offset,
        message.time,
        message.group,
        int(headers.get(ATTEMPTS, 0)) + message.attempt,
        _delivery=message,
        _called=message.attempt == 1,
    )


def replayed(letter: Message) -> Outgoing:
    """A dead letter on its way back to its topic, for the group that gave it up alone.

    Nobody waits for the answer to an old request: a deadline would only have it skipped.
    """
    headers = letter.headers
    kept = [(name, value) for name, value in headers.pairs if name not in _ABOUT]
    if GROUP in headers:
        kept.append((ONLY_GROUP, headers[GROUP].encode()))
    return Outgoing(letter.body, headers[TOPIC], key=letter.key_bytes, headers=kept)


_ABOUT: Final = frozenset(
    (REASON, EXCEPTION, TOPIC, PARTITION, OFFSET, ATTEMPTS, GROUP, ONLY_GROUP, REPLY_TO, DEADLINE)
)


def _readdressed(message: Message, topic: str, about: Mapping[str, str]) -> Outgoing:
    return Outgoing(message.body, topic, key=message.key_bytes, headers=message.headers.merged(about))


def described(error: BaseException) -> str:
    text = f"{type(error).__qualname__}: {error}" if str(error) else type(error).__qualname__
    return text[:2000]
