"""`headwater copy`: the messages of a topic taken to another topic, of any engine; interrupted, it goes on later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

import typer

from ..broker import Broker
from ..codecs import RAW
from ..engine import Change, Revoked, Source, Subscription, Topic
from ..errors import GroupNotFoundError, NotSupportedError
from ..message import CONTENT_TYPE, Message, Outgoing
from .output import Counting, counted, counting, note, show_json
from .parameters import AsJson, Target, TopicName, read_start
from .target import ask, broker_of

CHUNK: Final = 1000  # messages on their way at once: so many at most arrive twice after an interruption
LOOK: Final = 0.2  # seconds without a message after which it is looked whether there are more
QUIET: Final = 2.0  # seconds without one that are the end, where the engine cannot tell
TIMEOUT: Final = 30.0  # seconds for a chunk to be accepted
GROUP: Final = "headwater-copy"


def copy(
    source: Target,
    topic: TopicName,
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="module:app, or a broker's URL.", show_default=False)
    ],
    to: Annotated[str | None, typer.Argument(metavar="TOPIC", help="By default one of the same name.")] = None,
    group: Annotated[str, typer.Option(help="Keeps the position: with the same one the next copy goes on.")] = GROUP,
    start: Annotated[
        str, typer.Option("--from", help="Where a new group begins: earliest, latest, an offset, or a time.")
    ] = "earliest",
    follow: Annotated[bool, typer.Option("--follow", help="Wait for what is published, instead of ending.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many messages.")] = None,
    keep_partitions: Annotated[
        bool, typer.Option("--keep-partitions", help="Into the partition of the same number, instead of by key.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a topic, as a consumer group: what is accepted there is acknowledged here.

    Bodies, keys and headers stay as they are. Interrupted and started again it goes on; at most the 1000 messages that
    were on their way arrive twice.
    """
    begin, told = read_start(start), to or topic

    async def run(broker: Broker) -> Counting:
        asked = Source(topics=(topic,), group=group, start=begin, prefetch=2 * CHUNK, client=GROUP)
        _check(broker, asked)
        async with broker_of(destination) as there:
            await _make(there, told, await _partitions(broker, topic))
            with counting("copying", silent=as_json) as count:
                copying = _Copying(there, told, keep_partitions, lambda: _lag(broker, group, topic), count)
                async with broker.engine.subscribe(asked, copying.on_change) as place:
                    await copying.run(place, limit, follow=follow)
            return count

    count = ask(source, run)
    if as_json:
        show_json([{"copied": count.total, "seconds": round(count.seconds, 3)}])
    else:
        note(f"copied {counted(count.total, 'message')} from {topic} to {told}, {count.rate}")


def _check(broker: Broker, asked: Source) -> None:
    able = broker.engine.capabilities(asked)
    if not able.groups:
        raise NotSupportedError(broker.engine.name, "copy", "it has no groups, which keep the position")
    if asked.start != "latest" and not able.replay:
        hint = "it keeps nothing to start from: give --from latest --follow"
        raise NotSupportedError(broker.engine.name, "copy", hint)


async def _partitions(broker: Broker, topic: str) -> int | None:
    """How many the topic has. Raises TopicNotFoundError, if the engine can tell."""
    if not broker.admin.capabilities["list_topics"]:
        return None
    return (await broker.admin.topics.describe(topic)).partitions


async def _make(broker: Broker, topic: str, partitions: int | None) -> None:
    """Have the topic; a new one with as many partitions as the other has, where there are any."""
    able = broker.engine.capabilities(Source(topics=(topic,)))
    await broker.declare([Topic(topic, partitions=partitions if able.partitions else None)])


async def _lag(broker: Broker, group: str, topic: str) -> int | None:
    """What is left to be copied; None where the engine cannot tell."""
    if not broker.admin.capabilities["lag"]:
        return None
    try:
        return (await broker.admin.groups.lag(group, topic)).total
    except GroupNotFoundError:  # it is only just made
        return None


class _Copying:
    """Takes messages from one place to another, a chunk at a time."""

    def __init__(
        self,
        there: Broker,
        topic: str,
        keep_partitions: bool,
        left: Callable[[], Awaitable[int | None]],
        count: Counting,
    ) -> None:
        self._there, self._topic, self._keep_partitions = there, topic, keep_partitions
        self._left, self._count = left, count
        self._chunk = asyncio.Lock()  # held while one is on its way

    async def run(self, place: Subscription, limit: int | None, *, follow: bool) -> None:
        """Until the limit, or the end unless it is to `follow`."""
        while limit is None or self._count.total < limit:
            most = CHUNK if limit is None else min(CHUNK, limit - self._count.total)
            messages = await self._next(place, most, follow)
            if not messages:
                return
            async with self._chunk:
                await self._there.publish_many([self._outgoing(one) for one in messages], timeout=TIMEOUT)
                await place.ack(messages)
            self._count(len(messages))

    async def _next(self, place: Subscription, most: int, follow: bool) -> Sequence[Message]:
        """Some messages; none at the end."""
        quiet = 0.0
        while True:
            messages = await place.receive(most, LOOK)
            if messages:
                return messages
            quiet += LOOK
            if not follow and (quiet > QUIET or await self._left() == 0):
                return ()

    async def on_change(self, change: Change) -> None:
        """A partition that another copy of this group gets is left once its chunk is acknowledged."""
        if isinstance(change, Revoked):
            async with self._chunk:
                pass

    def _outgoing(self, message: Message) -> Outgoing:
        codec = RAW if CONTENT_TYPE in message.headers else None  # it is named only where it was
        partition = message.partition if self._keep_partitions else None
        return Outgoing(message.body, self._topic, message.key_bytes, message.headers, partition, codec=codec)
