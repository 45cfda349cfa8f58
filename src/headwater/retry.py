"""When a failed message is tried again, and when it is given up."""

from __future__ import annotations

import random
from typing import Final

import msgspec

from .errors import DecodeError, Reject, RetryLater

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
