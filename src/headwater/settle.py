"""What becomes of a message once its handler was called: done, again later, or a dead letter.

The only place that logs failures of handlers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from typing import Final

import msgspec

from .errors import DecodeError, Reject, RetryLater, Signal
from .message import (
    ATTEMPTS,
    EXCEPTION,
    GROUP,
    OFFSET,
    ONLY_GROUP,
    PARTITION,
    REASON,
    TOPIC,
    Message,
    Outgoing,
)

LONG_WAIT: Final = 60.0  # seconds; longer waits leave the process and go through a retry topic


class Retry(msgspec.Struct, frozen=True):
    """How often and how soon a failing handler is called again.

    `attempts` counts every call, the first included. The wait doubles from `backoff[0]` seconds up to
    `backoff[1]`; with `jitter` a random half of it is taken off, so that failures do not come back in step.
    Only exceptions of the type `on` (or types, in a tuple) are retried; others are dead letters at once.
    """

    attempts: int = 3
    backoff: tuple[float, float] = (0.5, 30.0)
    jitter: bool = True
    on: type[BaseException] | tuple[type[BaseException], ...] = Exception

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Retry(attempts={self.attempts}): the first call counts, so it is at least 1")
        if not 0 <= self.backoff[0] <= self.backoff[1]:
            raise ValueError(f"Retry(backoff={self.backoff}): give (first, longest) in seconds")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after this attempt, counted from 1."""
        first, longest = self.backoff
        wait = min(longest, first * 2.0 ** min(attempt - 1, 64))
        return wait * random.uniform(0.5, 1.0) if self.jitter else wait

    @staticmethod
    def later(seconds: float) -> RetryLater:
        """`raise Retry.later(30)`: handle this message again after so many seconds."""
        return RetryLater(seconds)


ONCE: Final = Retry(attempts=1)


class Again(msgspec.Struct, frozen=True):
    """Call the handler again after `delay` seconds."""

    delay: float


class Dead(msgspec.Struct, frozen=True):
    """Give the message up."""

    reason: str


def judge(error: BaseException, attempt: int, retry: Retry) -> Again | Dead:
    """What a failure of this attempt means."""
    if isinstance(error, RetryLater):
        return Again(max(0.0, error.delay))
    if isinstance(error, Reject):
        return Dead(error.reason or "rejected")
    if isinstance(error, DecodeError):
        return Dead("undecodable")
    if not isinstance(error, retry.on):
        return Dead("not retried")
    if attempt >= retry.attempts:
        return Dead("attempts exhausted")
    return Again(retry.delay(attempt))


def dead_letter(message: Message, topic: str, reason: str, error: BaseException | None) -> Outgoing:
    """The message as a dead letter on `topic`: body, key and headers as they were, and why it is there."""
    about: dict[str, str | None] = {
        REASON: reason,
        EXCEPTION: None if error is None or isinstance(error, Signal) else _described(error),
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
    )


def replayed(letter: Message) -> Outgoing:
    """A dead letter on its way back to its topic, for the group that gave it up alone."""
    headers = letter.headers
    kept = [(name, value) for name, value in headers.pairs if name not in _ABOUT]
    if GROUP in headers:
        kept.append((ONLY_GROUP, headers[GROUP].encode()))
    return Outgoing(letter.body, headers[TOPIC], key=letter.key_bytes, headers=kept)


_ABOUT: Final = frozenset((REASON, EXCEPTION, TOPIC, PARTITION, OFFSET, ATTEMPTS, GROUP, ONLY_GROUP))


def _readdressed(message: Message, topic: str, about: Mapping[str, str]) -> Outgoing:
    return Outgoing(message.body, topic, key=message.key_bytes, headers=message.headers.merged(about))


def _described(error: BaseException) -> str:
    text = f"{type(error).__qualname__}: {error}" if str(error) else type(error).__qualname__
    return text[:2000]


def log_failure(
    logger: logging.Logger, handler: str, message: Message, error: BaseException, verdict: Again | Dead, kept: bool
) -> None:
    """One line for a failure: a warning while it will be tried again, an error with a traceback in the end."""
    if isinstance(error, RetryLater):
        logger.debug("%s wants %s again in %.3g s", handler, message.id, error.delay)
    elif isinstance(verdict, Again):
        logger.warning(
            "%s failed on %s, attempt %d: %s; again in %.3g s",
            handler,
            message.id,
            message.attempt,
            _described(error),
            verdict.delay,
        )
    else:
        unexpected = not isinstance(error, (Signal, DecodeError))
        fate = "kept as a dead letter" if kept else "dropped, since there are no dead letters here"
        logger.error(
            "%s gave up %s after %d attempt(s), %s: %s; %s",
            handler,
            message.id,
            message.attempt,
            verdict.reason,
            _described(error),
            fate,
            exc_info=error if unexpected else None,
        )
