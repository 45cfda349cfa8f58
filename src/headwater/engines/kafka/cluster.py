"""What is asked of the cluster as a whole: topics, offsets, groups. The futures of the client library, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Final, Literal, TypeVar

from confluent_kafka import KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it says not that it exports them
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from ...errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    GroupNotFoundError,
    HeadwaterError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
)
from ...topics import is_pattern, match
from .offsets import store, stored
from .records import Place, failure, passes
from .settings import Settings

K = TypeVar("K")
T = TypeVar("T")
When = Literal["earliest", "latest"] | datetime

TIMEOUT: Final = 10.0  # seconds for one question
LOOK: Final = 3.0  # ... whether somebody is there at all
_AGAIN: Final = 0.05  # seconds until a question is asked again whose answer is not known everywhere yet


class Cluster:
    """Questions and orders, each answered within some seconds or failing with an error of ours."""

    def __init__(self, settings: Settings) -> None:
        self.address = settings.address
        self._settings = settings
        # It is asked and never polled, so what it would log would pile up: every failure is an answer, too.
        self.client = AdminClient(settings.connection() | {"log_level": 0})

    async def _answers(self, ask: Callable[[], Mapping[K, Future[T]]], subject: str = "") -> dict[K, T]:
        """The answers to questions, asked again while the cluster is only changing.

        Raises ConnectError, AuthenticationError, or another HeadwaterError if one is refused.
        """
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while True:
            try:
                return {key: await asyncio.wrap_future(future) for key, future in ask().items()}
            except KafkaException as error:
                kafka: KafkaError = error.args[0]
                if not passes(kafka) or asyncio.get_running_loop().time() > deadline:
                    raise _refused(kafka, subject, self.address) from error
            await asyncio.sleep(_AGAIN)

    async def _answer(self, ask: Callable[[], Future[T]]) -> T:
        return (await self._answers(lambda: {None: ask()}))[None]

    async def _metadata(self) -> Any:
        try:
            return await asyncio.to_thread(self.client.list_topics, timeout=TIMEOUT)
        except KafkaException as error:
            raise failure(error.args[0], self.address) from error

    # Topics

    async def topics(self) -> Mapping[str, int]:
        """All topics with how many partitions they have."""
        return {name: len(topic.partitions) for name, topic in (await self.layout()).items()}

    async def layout(self) -> Mapping[str, Any]:
        """All topics with their partitions, as the client library describes them."""
        found: Mapping[str, Any] = (await self._metadata()).topics
        return found

    async def partitions(self, topics: Collection[str]) -> Mapping[str, int]:
        """How many partitions these topics have, without those that are not there."""
        found = await asyncio.gather(*(self._count(topic) for topic in topics))
        return {topic: count for topic, count in zip(topics, found, strict=True) if count is not None}

    async def _count(self, topic: str) -> int | None:
        try:
            return len((await self.described(topic)).partitions)
        except TopicNotFoundError:
            return None

    async def described(self, topic: str) -> Any:
        """A topic and its partitions, as the client library describes them. Raises TopicNotFoundError."""

        def ask() -> Mapping[str, Future[Any]]:
            return self.client.describe_topics(TopicCollection([topic]), request_timeout=TIMEOUT)

        return (await self._answers(ask, topic))[topic]

    async def places(self, topics: Sequence[str]) -> list[Place]:
        """The partitions of all topics that these names and patterns match."""
        names = [topic for topic in topics if not is_pattern(topic)]
        found = dict(await self.partitions(names))
        if len(names) < len(topics):
            there = await self.topics()
            found |= {n: count for n, count in there.items() if any(match(topic, n) is not None for topic in topics)}
        return [(name, number) for name, count in found.items() for number in range(count)]

    async def existing(self, topic: str) -> int:
        """How many partitions this topic has. Raises TopicNotFoundError."""
        found = await self.partitions([topic])
        if topic not in found:
            raise TopicNotFoundError(topic)
        return found[topic]

    async def create(self, name: str, partitions: int | None, replication: int | None, config: dict[str, str]) -> None:
        """Make a topic; one that is there stays as it is. Returns once every question knows it."""
        settings = self._settings
        new = NewTopic(
            name,
            num_partitions=partitions or settings.partitions or -1,
            replication_factor=replication or settings.replication or -1,
            config=config,
        )
        try:
            await self._answers(lambda: self.client.create_topics([new], request_timeout=TIMEOUT), name)
        except _ThereAlreadyError:
            return
        await _until(lambda: self._is_known(name, 1))

    async def delete(self, name: str) -> None:
        """Delete a topic; returns once it is gone. Raises TopicNotFoundError."""
        await self.existing(name)
        await self._answers(lambda: self.client.delete_topics([name], request_timeout=TIMEOUT), name)

        async def gone() -> bool:
            return not await self._count(name) and name not in await self.topics()

        await _until(gone)

    async def add_partitions(self, name: str, total: int) -> None:
        """Have so many partitions; returns once they are there."""
        new = NewPartitions(name, total)
        await self._answers(lambda: self.client.create_partitions([new], request_timeout=TIMEOUT), name)
        await _until(lambda: self._is_known(name, total))

    async def _is_known(self, name: str, partitions: int) -> bool:
        """Whether a topic has so many partitions, and the nodes that lead them have heard of it."""
        try:
            count = await self.existing(name)
            await self.offsets([(name, number) for number in range(count)], "latest")
        except TopicNotFoundError:
            return False
        return count >= partitions

    async def configs(self, topics: Collection[str]) -> Mapping[str, Mapping[str, ConfigEntry]]:
        """The configuration of topics, in Kafka's words."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in topics]
        if not resources:
            return {}
        found = await self._answers(lambda: self.client.describe_configs(resources, request_timeout=TIMEOUT))
        return {resource.name: entries for resource, entries in found.items()}

    async def configure(self, topic: str, config: Mapping[str, str]) -> None:
        """Set some of a topic's configuration."""
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        await self._answers(lambda: self.client.incremental_alter_configs([resource], request_timeout=TIMEOUT), topic)

    # Offsets

    async def offsets(self, places: Sequence[Place], when: When) -> dict[Place, int]:
        """The first offset kept, the one the next message gets, or the first at or after a time."""
        if not places:
            return {}
        asked = {TopicPartition(*place): _spec(when) for place in places}
        topics = ", ".join(sorted({topic for topic, _ in places}))
        answers = await self._answers(lambda: self.client.list_offsets(asked, request_timeout=TIMEOUT), topics)
        found = {(position.topic, position.partition): answer.offset for position, answer in answers.items()}
        if isinstance(when, datetime):  # none so late
            late = [place for place, offset in found.items() if offset < 0]
            found |= await self.offsets(late, "latest")
        return found

    async def ranges(self, places: Sequence[Place]) -> dict[Place, tuple[int, int]]:
        """The first offset kept, and the one the next message gets."""
        earliest, latest = await asyncio.gather(self.offsets(places, "earliest"), self.offsets(places, "latest"))
        return {place: (earliest[place], latest[place]) for place in places}

    async def check(self, offsets: Mapping[Place, int]) -> None:
        """Raise OffsetOutOfRangeError unless reading can begin at these."""
        for place, (earliest, latest) in (await self.ranges(list(offsets))).items():
            if not earliest <= offsets[place] <= latest:
                raise OffsetOutOfRangeError(*place, offsets[place], earliest, latest)

    async def delete_below(self, offsets: Mapping[Place, int]) -> None:
        """Make what lies below these unreadable."""
        positions = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        if positions:
            what = positions[0].topic
            await self._answers(lambda: self.client.delete_records(positions, request_timeout=TIMEOUT), what)

    # Groups

    async def stored(self, group: str, places: Sequence[Place] | None = None) -> dict[Place, int]:
        """Where a group is on these partitions, or on all there are; without those it has no position on."""
        if places is None:
            places = [(name, number) for name, count in (await self.topics()).items() for number in range(count)]
        try:
            return await stored(self._settings, group, places)
        except ConnectError:
            await self._check_allowed(group)
            raise

    async def _check_allowed(self, group: str) -> None:
        """Raise AuthenticationError for a group that is not for this user: all that `stored` hears then is silence."""
        answers = self.client.describe_consumer_groups([group], request_timeout=LOOK)
        try:
            await asyncio.wrap_future(answers[group])
        except KafkaException as error:
            if isinstance(refusal := _refused(error.args[0], group, self.address), AuthenticationError):
                raise refusal from error

    async def store(self, group: str, offsets: Mapping[Place, int]) -> None:
        """Move a group that has no live member. Raises ConfigurationError if it has."""
        await store(self._settings, group, offsets)

    async def group_names(self) -> list[str]:
        """All consumer groups."""
        listed = await self._answer(lambda: self.client.list_consumer_groups(request_timeout=TIMEOUT))
        for error in listed.errors or ():  # each in an exception, or as it is
            raise failure(error.args[0] if isinstance(error, KafkaException) else error, self.address)
        return [found.group_id for found in listed.valid or ()]

    async def groups(self, names: Sequence[str]) -> list[Any]:
        """The descriptions of groups, as the client library gives them."""
        if not names:
            return []

        def ask() -> Mapping[str, Future[Any]]:
            return self.client.describe_consumer_groups(list(names), request_timeout=TIMEOUT)

        return list((await self._answers(ask, ", ".join(names))).values())

    async def has_members(self, group: str) -> bool:
        """Whether somebody takes part in a group."""
        try:
            return any(found.members for found in await self.groups([group]))
        except GroupNotFoundError:
            return False

    async def delete_group(self, group: str) -> None:
        """Forget a group. Raises GroupNotFoundError, and ConfigurationError while it has a live member."""
        await self._answers(lambda: self.client.delete_consumer_groups([group], request_timeout=TIMEOUT), group)

    async def nodes(self) -> Any:
        """The brokers of the cluster, as the client library describes them."""
        return await self._answer(lambda: self.client.describe_cluster(request_timeout=TIMEOUT))

    async def problems(self) -> list[str]:
        """What is wrong with the nodes and the partitions, one sentence each.

        A node goes on telling what it last heard when most of the controllers are gone. So each one is asked itself,
        and the controller whether it would do something.
        """
        found = await self._metadata()
        nodes = list(found.brokers.values())
        is_led, *are_there = await asyncio.gather(
            asyncio.to_thread(self._is_led), *(asyncio.to_thread(self._is_there, node.id) for node in nodes)
        )
        problems = [] if is_led else ["there is no controller: most of those that elect one are away"]
        for node, is_there in zip(nodes, are_there, strict=True):
            if not is_there:
                problems.append(f"the node {node.id} at {node.host}:{node.port} does not answer")
        for name, topic in sorted(found.topics.items()):
            for number, partition in sorted(topic.partitions.items()):
                if partition.leader < 0:
                    problems.append(f"{name}[{number}] has no leader")
                elif len(partition.isrs) < len(partition.replicas):
                    problems.append(f"{name}[{number}] has {len(partition.isrs)} of {len(partition.replicas)} copies")
        return problems

    def _is_led(self) -> bool:
        """Blocks. Over a connection of its own: a node without a controller holds up what is asked after this."""
        client = AdminClient(self._settings.connection() | {"log_level": 0})
        new = NewTopic("headwater-health", num_partitions=1, replication_factor=1)
        return _is_answered(client.create_topics([new], validate_only=True, request_timeout=LOOK))

    def _is_there(self, node: int) -> bool:
        """Blocks."""
        resource = ConfigResource(ResourceType.BROKER, str(node))
        return _is_answered(self.client.describe_configs([resource], request_timeout=LOOK))


def _is_answered(answers: Mapping[Any, Future[Any]]) -> bool:
    """Whether somebody says something to this, be it no."""
    try:
        for answer in answers.values():
            answer.result()
    except KafkaException as error:
        return error.args[0].name() not in _SILENCE
    return True


_SILENCE: Final = frozenset(("_ALL_BROKERS_DOWN", "_TIMED_OUT", "_TRANSPORT", "NOT_CONTROLLER", "REQUEST_TIMED_OUT"))
_BUSY: Final = frozenset(("NON_EMPTY_GROUP", "UNKNOWN_MEMBER_ID", "REBALANCE_IN_PROGRESS"))
_UNWANTED: Final = frozenset(
    (
        "INVALID_CONFIG",
        "INVALID_PARTITIONS",
        "INVALID_REPLICATION_FACTOR",
        "INVALID_REQUEST",
        "POLICY_VIOLATION",
        "TOPIC_EXCEPTION",
        "_INVALID_ARG",
    )
)


class _ThereAlreadyError(HeadwaterError):
    """A topic of this name; never leaves this module."""


async def _until(holds: Callable[[], Awaitable[object]]) -> None:
    """Return once this is so: what was ordered is done, but not yet known everywhere."""
    while not await holds():  # noqa: ASYNC110 - nobody would set an Event: the server is asked
        await asyncio.sleep(_AGAIN)


def _refused(error: KafkaError, what: str, address: str) -> HeadwaterError:
    """An order that the cluster did not follow."""
    name, reason = error.name(), error.str()
    if name in _BUSY:
        return ConfigurationError(f"group {what!r} has live members: stop them, then try again")
    if name in _UNWANTED:
        return ConfigurationError(f"{what!r}: Kafka does not take it: {reason}")
    if name == "TOPIC_ALREADY_EXISTS":
        return _ThereAlreadyError(reason)
    if name == "UNKNOWN_TOPIC_OR_PART":
        return TopicNotFoundError(what)
    if name == "GROUP_ID_NOT_FOUND":
        return GroupNotFoundError(what)
    return failure(error, address, what=what)


def _spec(when: When) -> Any:
    if isinstance(when, datetime):
        return OffsetSpec.for_timestamp(round(when.timestamp() * 1000))
    spec = OffsetSpec.earliest if when == "earliest" else OffsetSpec.latest
    return spec()  # type: ignore[no-untyped-call]  # not in its annotations
