"""Where consumer groups are: asked, and moved, through a consumer that takes no part in them.

The client library's administration could do both, but it ends the process when the group's coordinator has just moved
or is still loading (librdkafka 2.16: OffsetFetch and OffsetCommit take the handle for a consumer's).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition

from ...errors import ConfigurationError
from .records import Place, failure, passes
from .settings import Settings

T = TypeVar("T")

TIMEOUT: Final = 10.0  # seconds
AGAIN: Final = 0.05  # seconds

_BUSY: Final = frozenset(("UNKNOWN_MEMBER_ID", "ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS"))


async def stored(settings: Settings, group: str, places: Sequence[Place]) -> dict[Place, int]:
    """Where the group is on those of these partitions that it has a position on."""
    if not places:
        return {}
    asked = [TopicPartition(*place) for place in places]
    found = await _beside(settings, group, lambda consumer: consumer.committed(asked, timeout=TIMEOUT))
    return {(p.topic, p.partition): p.offset for p in found if p.error is None and p.offset >= 0}


async def store(settings: Settings, group: str, offsets: Mapping[Place, int]) -> None:
    """Move a group that has no live member. Raises ConfigurationError if it has."""
    if not offsets:
        return
    wanted = [TopicPartition(*place, offset) for place, offset in offsets.items()]
    done = await _beside(settings, group, lambda consumer: consumer.commit(offsets=wanted, asynchronous=False))
    for position in done or ():
        if position.error is not None:
            raise failure(position.error, settings.address, what=group)


def _insist(ask: Callable[[], T]) -> T:
    """The answer, asked for again while the coordinator is only changing. Blocks."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return ask()
        except KafkaException as error:
            if not passes(error.args[0]) or time.monotonic() > deadline:
                raise
        time.sleep(AGAIN)


async def _beside(settings: Settings, group: str, ask: Callable[[Consumer], T]) -> T:
    """What a consumer with this group's name says, that never joins it."""

    def talk() -> T:
        own = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_uncommitted", "log_level": 0}
        consumer = Consumer(settings.connection() | own)
        try:
            return _insist(lambda: ask(consumer))
        finally:
            consumer.close()

    try:
        return await asyncio.to_thread(talk)
    except KafkaException as error:
        if error.args[0].name() in _BUSY:
            raise ConfigurationError(f"group {group!r} has live members: stop them, then try again") from error
        raise failure(error.args[0], settings.address, what=group) from error
