"""Exchanges, queues and bindings: what topics and groups are made of, made where it is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import aiormq
import msgspec

from ...engine import Source, Topic
from ...errors import ConfigurationError, NotSupportedError, TopicNotFoundError
from ...topics import is_internal, is_pattern, retry_topic
from .link import Link, described, is_passing
from .names import HUB, QUEUE_PREFIX, READER_QUEUE, group_queue, keeps, wildcard
from .options import DEFAULT, QueueType, Rabbit, rabbit_of

READER_LIVES: Final = 60_000  # milliseconds that a reader's queue waits for it to come back

_EVERYTHING: Final = "#"
_OTHER_TYPE: Final = re.compile(r"inequivalent arg 'type' .* current is '([\w-]+)'")

# A quorum queue of RabbitMQ 4 drops what was given back twenty times. How often is often enough is the core's to say.
_NEVER_DROPPED: Final = {"x-delivery-limit": 1_000_000}


class Binding(msgspec.Struct, frozen=True):
    """How a queue gets the messages of an exchange. Without a key it gets all of them."""

    queue: str
    exchange: str
    topic: str
    key: str | None = None
    arguments: Mapping[str, Any] | None = None


class Place(msgspec.Struct):
    """A queue that is consumed: what it is made of, and which topics its messages belong to."""

    queue: str
    arguments: dict[str, Any]
    bindings: list[Binding]
    taken_as_it_is: bool = False  # if it is there
    temporary: bool = False  # a reader's, deleted when it leaves
    stream: bool = False  # keeps what it delivered


class Topology:
    """What this process declares, and declares again when the server lost it."""

    def __init__(self, queue_type: QueueType, auto_create: bool) -> None:
        self._queue_type = queue_type
        self._auto_create = auto_create
        self._known: set[str] = set()  # exchanges that are there, as far as we heard
        self._types: dict[str, str] = {}  # of exchanges
        self._declared: dict[str, Topic] = {}  # topics with options or settings of their own
        self._bindings: list[Binding] = []  # of the subscriptions of this process

    # --- what is where --------------------------------------------------------------------------------

    def options(self, topic: str, given: Rabbit) -> Rabbit:
        """Those given, with what makes the topic itself from its declaration. Internal topics have none."""
        if is_internal(topic):
            return DEFAULT
        declared = self._declared.get(topic)
        if declared is None:
            return given
        own = rabbit_of(declared.options)
        return msgspec.structs.replace(
            given,
            exchange=own.exchange if given.exchange is None else given.exchange,
            exchange_type=given.exchange_type or own.exchange_type,
            queue_type="stream" if own.queue_type == "stream" else given.queue_type,
        )

    def exchange_of(self, topic: str, options: Rabbit) -> str:
        return topic if options.exchange is None else options.exchange

    def is_kept(self, topic: str) -> bool:
        """Whether this process knows the topic as one that keeps its messages."""
        return keeps(topic, self.options(topic, DEFAULT).queue_type or self._queue_type)

    def places(self, source: Source) -> list[Place]:
        """The queues of a group. Its retries come back to the queue they left."""
        assert source.group is not None
        given, found = rabbit_of(source.options), dict[str, Place]()
        retries = {retry_topic(topic, source.group): topic for topic in source.topics}
        for topic in source.topics:
            if topic in retries:
                continue
            options = self.options(topic, given)
            queue = options.queue or group_queue(topic, source.group)
            place = found.setdefault(queue, Place(queue, {}, [], options.queue is not None))
            place.arguments = self._queue_arguments(options, source.exclusive)
            place.bindings.append(self._binding(queue, topic, options))
            retry = retry_topic(topic, source.group)
            if retry in source.topics:
                place.bindings.append(Binding(queue, retry, retry))
        return list(found.values())

    def reading_places(self, source: Source) -> list[Place]:
        """What a reader without a group reads: the streams of topics that keep their messages, and a queue of its own.

        The queue outlives a short absence, so that nothing is missed.
        """
        given, found = rabbit_of(source.options), list[Place]()
        arguments = {"x-queue-type": "classic", "x-expires": READER_LIVES}
        queue, bindings = f"{READER_QUEUE}{os.urandom(9).hex()}", list[Binding]()
        for topic in source.topics:
            options = self.options(topic, given)
            if topic.startswith(QUEUE_PREFIX):
                found.append(Place(topic[len(QUEUE_PREFIX) :], arguments, [], temporary=True))
            elif is_pattern(topic) or not keeps(topic, options.queue_type or self._queue_type):
                bindings.append(self._binding(queue, topic, options))
            else:
                binding = Binding(topic, self.exchange_of(topic, options), topic)
                found.append(Place(topic, {"x-queue-type": "stream"}, [binding], taken_as_it_is=True, stream=True))
        if bindings:
            found.append(Place(queue, arguments, bindings, temporary=True))
        return found

    def _binding(self, queue: str, topic: str, options: Rabbit) -> Binding:
        if is_pattern(topic):
            return Binding(queue, HUB, topic, wildcard(topic))
        return Binding(queue, self.exchange_of(topic, options), topic, options.routing_key, options.binding_arguments)

    def _queue_arguments(self, options: Rabbit, exclusive: bool) -> dict[str, Any]:
        kind = options.queue_type or self._queue_type
        if kind == "stream":  # the topic is; the group's own queue is not
            kind = "quorum"
        arguments: dict[str, Any] = {"x-queue-type": kind}
        if kind == "quorum":
            arguments |= _NEVER_DROPPED
        if exclusive:
            arguments["x-single-active-consumer"] = True
        return arguments | dict(options.arguments or {})

    # --- topics ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Whatever there is may be gone: look again before it is used."""
        self._known.clear()

    def knows(self, exchange: str) -> bool:
        """Whether this exchange is there, as far as we heard."""
        return exchange in self._known or not exchange

    async def declare(self, link: Link, topic: Topic) -> None:
        """Make a topic as its owner wants it. Raises NotSupportedError for what RabbitMQ's topics do not have."""
        options = DEFAULT if is_internal(topic.name) else rabbit_of(topic.options)
        if topic.partitions not in (None, 1):
            raise NotSupportedError("rabbit", f"partitions={topic.partitions} ({topic.name})", "a topic has none")
        if (topic.retention or topic.retention_bytes) and not keeps(topic.name, options.queue_type or self._queue_type):
            hint = 'an exchange keeps nothing: give options=[Rabbit(queue_type="stream")]'
            raise NotSupportedError("rabbit", f"retention ({topic.name})", hint)
        if topic.options or topic.retention or topic.retention_bytes:
            self._declared[topic.name] = topic
        await self.make_topic(link, topic.name, options)

    async def check(self, link: Link, topic: Topic) -> None:
        """Raise TopicNotFoundError if the exchange of a topic is not there."""
        exchange = self.exchange_of(topic.name, self.options(topic.name, rabbit_of(topic.options)))
        if not await self._is_there(link, exchange):
            raise TopicNotFoundError(topic.name)

    async def make_topic(self, link: Link, topic: str, options: Rabbit, *, again: bool = False) -> None:
        """Have the exchange of a topic, what it passes messages on to, and the bindings of our own to it.

        Raises TopicNotFoundError where nothing may be made, ConfigurationError where it is there and differs.
        """
        exchange = self.exchange_of(topic, options)
        if self.knows(exchange) and not again:
            return
        is_missing = True  # or may be: what is called like its topic is made as we know it
        if options.exchange is not None or not self._auto_create:
            is_missing = not await self._is_there(link, exchange)
        if is_missing and not self._auto_create:
            raise TopicNotFoundError(topic, "and auto_create is off")
        if is_missing:
            await self._make_exchange(link, exchange, options.exchange_type)
            await self._pass_on(link, topic, exchange, options)
        self._known.add(exchange)
        await self._bind_all(link, [binding for binding in self._bindings if binding.exchange == exchange])

    async def _is_there(self, link: Link, exchange: str) -> bool:
        try:
            async with link.channel() as channel:
                await channel.exchange_declare(exchange, passive=True)
        except aiormq.ChannelNotFoundEntity:
            return False
        return True

    async def _make_exchange(self, link: Link, exchange: str, kind: str | None) -> None:
        """An exchange that is there keeps its type, unless it was asked for another one."""
        try:
            async with link.channel() as channel:
                await channel.exchange_declare(exchange, exchange_type=kind or "topic", durable=True)
        except aiormq.ChannelPreconditionFailed as error:
            other = _OTHER_TYPE.search(described(error))
            if kind is not None or other is None:
                raise ConfigurationError(
                    f"the exchange {exchange!r} is there and differs: {described(error)}"
                ) from None
            kind = other[1]
        self._types[exchange] = kind or "topic"

    async def _pass_on(self, link: Link, topic: str, exchange: str, options: Rabbit) -> None:
        """To patterns, which internal topics never match, and to the stream of a topic that keeps its messages."""
        async with link.channel() as channel:
            if not is_internal(topic):
                await channel.exchange_declare(HUB, exchange_type="topic", durable=True)
                await channel.exchange_bind(HUB, exchange, self._key(exchange, topic))
        if keeps(topic, options.queue_type or self._queue_type):
            await self._make_stream(link, topic, options)

    async def _make_stream(self, link: Link, topic: str, options: Rabbit) -> None:
        """The stream that keeps what is published to a topic."""
        arguments: dict[str, Any] = {"x-queue-type": "stream"}
        declared = self._declared.get(topic)
        if declared is not None and declared.retention is not None:
            arguments["x-max-age"] = f"{max(1, round(declared.retention.total_seconds()))}s"
        if declared is not None and declared.retention_bytes is not None:
            arguments["x-max-length-bytes"] = declared.retention_bytes
        exchange = self.exchange_of(topic, options)
        await self._make_queue(link, Place(topic, arguments, [Binding(topic, exchange, topic)]))

    # --- queues ---------------------------------------------------------------------------------------

    async def make_place(self, link: Link, place: Place, options: Rabbit, *, again: bool = False) -> None:
        """Have a queue with its exchanges and bindings, and remember them. Raises as `make_topic` does."""
        for binding in place.bindings:
            if binding.exchange == HUB:
                async with link.channel() as channel:
                    await channel.exchange_declare(HUB, exchange_type="topic", durable=True)
            else:
                await self.make_topic(link, binding.topic, self.options(binding.topic, options), again=again)
        await self._make_queue(link, place)
        self._bindings += [binding for binding in place.bindings if binding not in self._bindings]

    def forget_place(self, place: Place) -> None:
        """A subscription is over: what it bound is for others to bind again."""
        self._bindings = [binding for binding in self._bindings if binding not in place.bindings]

    async def _make_queue(self, link: Link, place: Place) -> None:
        try:
            if not (place.taken_as_it_is and await queue_is_there(link, place.queue)):
                async with link.channel() as channel:
                    await channel.queue_declare(place.queue, durable=True, arguments=place.arguments)
            await self._bind_all(link, place.bindings)
        except aiormq.ChannelPreconditionFailed as error:
            raise ConfigurationError(
                f"the queue {place.queue!r} is there and differs: {described(error)}. Delete it, or give its options"
            ) from None

    async def _bind_all(self, link: Link, bindings: Sequence[Binding]) -> None:
        if not bindings:
            return
        async with link.channel() as channel:
            for one in bindings:
                key = self._key(one.exchange, one.topic) if one.key is None else one.key
                await channel.queue_bind(one.queue, one.exchange, key, arguments=dict(one.arguments or {}))

    def _key(self, exchange: str, topic: str) -> str:
        """What binds all that is published to a topic, whatever the type of its exchange is."""
        return topic if self._types.get(exchange) == "direct" else _EVERYTHING


async def queue_is_there(link: Link, queue: str) -> bool:
    try:
        async with link.channel() as channel:
            await channel.queue_declare(queue, passive=True)
    except aiormq.ChannelNotFoundEntity as error:
        if is_passing(error):
            raise
        return False
    return True
