"""A cluster: its controller and its SPUs, which partition is led by which, and questions to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from ...errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    HeadwaterError,
    NotConnectedError,
    TopicNotFoundError,
)
from . import apis, names
from .apis import Api, PartitionState, Place, Spu, Stored, TopicSettings, TopicState
from .connection import ANSWER_WITHIN, WHO, Address, Connection, LostError, dial
from .link import Link, log
from .settings import Settings
from .wire import NO_PERMISSION, PASSING, TOPIC_DELETED, TOPIC_EXISTS, TOPIC_NOT_FOUND, Fault, Reader

T = TypeVar("T")

READY_WITHIN: Final = 15.0  # seconds that a new topic is given to have its partitions led, and an old one to go
PARTITIONS_GONE_WITHIN: Final = 5.0  # seconds
AGAIN: Final = 0.05  # seconds between two looks at what is about to change
LOOK_AGAIN: Final = 0.5  # seconds until somebody else may lead the partitions of an SPU that is away
HOPELESS: Final = frozenset(("insufficient resources", "invalid config"))  # resolutions of a topic
COUNTS_FOR: Final = 60.0  # seconds until whoever publishes asks again how many partitions a topic has
OFFSETS: Final[Place] = ("consumer-offset", 0)  # where the cluster keeps what consumers store


class Cluster:
    """Asks the controller of topics and partitions, and keeps links to each SPU that is spoken to."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = str(settings.address)
        self._controller: Link | None = None
        self._spus: dict[int, Spu] = {}
        self._links: dict[int, Link] = {}
        self._writing: dict[int, Link] = {}  # to the same: nothing else is answered there until replicas have it all
        self._opening = asyncio.Lock()
        self._leaders: dict[Place, int] = {}
        self._counts: dict[str, int] = {}  # partitions of a topic ...
        self._counted: dict[str, float] = {}  # ... and when that was asked, on the monotonic clock

    # --- coming and going -----------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        """Whether the controller, and every SPU that was spoken to, could be reached when last heard of."""
        controller = self._controller
        return controller is not None and controller.available and all(link.available for link in self._links.values())

    async def open(self) -> None:
        """Reach the controller. Raises ConnectError, AuthenticationError."""
        link = Link(f"Fluvio at {self.address}", lambda: self._dial(self.settings.address))
        await link.open()
        self._controller = link

    async def close(self) -> None:
        links = [*self._links.values(), *self._writing.values()]
        links += [self._controller] if self._controller is not None else []
        self._links, self._writing, self._controller = {}, {}, None
        for link in links:
            await link.close()

    async def check(self) -> None:
        """Raise ConnectError unless the controller answers and an SPU is online."""
        if not any(spu.online for spu in await self.spus()):
            raise ConnectError(self.address, "no SPU is online: nothing can be kept")

    async def _dial(self, address: Address) -> Connection:
        return await dial(address, self.settings.dial_timeout)

    # --- the controller -------------------------------------------------------------------------------

    async def control(self, api: Api, body: Callable[[int], bytes], read: Callable[[Reader], T]) -> T:
        """What the controller answers. Raises ConnectError, AuthenticationError, Fault."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                connection = await self._controlling()
                return await connection.ask(api, body(connection.spoken.version_of(api)), read)
        except TimeoutError:
            raise ConnectError(self.address, f"no answer within {ANSWER_WITHIN:g} s") from None
        except LostError as error:
            raise ConnectError(self.address, str(error)) from error
        except Fault as fault:
            if fault.code == NO_PERMISSION:
                raise AuthenticationError(self.address, str(fault)) from fault
            raise

    async def _controlling(self) -> Connection:
        if self._controller is None:
            raise NotConnectedError(f"Fluvio at {self.address}")
        return await self._controller.connection()

    async def listed(self, label: str, read: Callable[[Reader, str], T], *, system: bool = False) -> list[T]:
        """All objects of a kind."""
        return await self.control(
            apis.LIST,
            lambda _: apis.list_of(label, summary=True, system=system),
            lambda reader: apis.read_list(reader, read),
        )

    async def version(self) -> str:
        """Of the controller."""
        return await self.control(apis.VERSIONS, lambda _: WHO, lambda reader: apis.read_versions(reader).platform)

    async def spus(self) -> list[Spu]:
        found = await self.listed(apis.SPU, apis.read_spu)
        self._spus = {spu.id: spu for spu in found}
        return found

    async def topics(self) -> list[TopicState]:
        """Those of users."""
        return await self.listed(apis.TOPIC, apis.read_topic)

    async def topic(self, name: str) -> TopicState:
        """Raises TopicNotFoundError."""
        found = await self.control(
            apis.LIST,
            lambda _: apis.list_of(apis.TOPIC, name=name),
            lambda reader: apis.read_list(reader, apis.read_topic),
        )
        for topic in found:
            if topic.name == name and topic.resolution != "deleting":
                return topic
        raise TopicNotFoundError(names.ours(name))

    async def partitions(self, topic: str | None = None) -> list[PartitionState]:
        """All of users' topics, or those of one topic, in order."""
        system = topic == OFFSETS[0]
        found = await self.listed(apis.PARTITION, apis.read_partition, system=system)
        for partition in found:
            self._leaders[partition.topic, partition.number] = partition.leader
        wanted = [partition for partition in found if topic in (None, partition.topic)]
        return sorted(wanted, key=lambda partition: (partition.topic, partition.number))

    async def count(self, topic: str) -> int:
        """How many partitions a topic has; asked once. Raises TopicNotFoundError."""
        return self._counts[topic] if topic in self._counts else len(await self.recount(topic))

    async def recount(self, topic: str) -> list[Place]:
        """The partitions that a topic has now. Raises TopicNotFoundError."""
        self._counts.pop(topic, None)
        count = self._counts[topic] = (await self.topic(topic)).settings.partitions
        self._counted[topic] = time.monotonic()
        return [(topic, number) for number in range(count)]

    def known_count(self, topic: str) -> int | None:
        """How many partitions it had when that was asked, if it was."""
        return self._counts.get(topic)

    def knows(self, topic: str) -> bool:
        """Whether that was not long ago."""
        return topic in self._counts and time.monotonic() - self._counted[topic] < COUNTS_FOR

    def forget(self, topic: str) -> None:
        """What was known of a topic is not so any more."""
        self._counts.pop(topic, None)
        for place in [place for place in self._leaders if place[0] == topic]:
            del self._leaders[place]

    async def create(self, name: str, settings: TopicSettings) -> None:
        """Make a topic and wait until it can be written to; one that is there stays. Raises ConfigurationError.

        The controller answers once it believes that all partitions are led, which it may never do, and nothing else on
        that connection meanwhile. The leaders know better.
        """
        connection = await self._dial(self.settings.address)
        asking = asyncio.create_task(self._ask_to_create(connection, name, settings))
        looking = asyncio.create_task(self._until_led(name, settings.partitions))
        try:
            await asyncio.wait((asking, looking), return_when=asyncio.FIRST_COMPLETED)
            if looking.done() or await asking:
                await looking
        finally:
            asking.cancel()
            looking.cancel()
            await asyncio.gather(asking, looking, return_exceptions=True)
            connection.abort("not needed any more")

    async def _ask_to_create(self, connection: Connection, name: str, settings: TopicSettings) -> bool:
        """Whether it was made; False if it is there already."""
        version = connection.spoken.version_of(apis.CREATE)
        body = apis.create(apis.TOPIC, name, apis.topic_spec(settings, version), READY_WITHIN)
        try:
            await connection.ask(apis.CREATE, body, apis.read_status, READY_WITHIN)
        except Fault as fault:
            if fault.code == TOPIC_EXISTS:
                return False
            if fault.code == NO_PERMISSION:
                raise AuthenticationError(self.address, str(fault)) from fault
            raise ConfigurationError(f"Fluvio makes no topic {names.ours(name)!r}: {fault}") from fault
        except (LostError, TimeoutError) as error:
            raise ConnectError(self.address, f"it does not answer the wish for a topic: {error}") from error
        return True

    async def delete(self, name: str) -> None:
        """Raises TopicNotFoundError."""
        await self.topic(name)
        try:
            await self.control(apis.DELETE, lambda _: apis.delete(apis.TOPIC, name), apis.read_status)
        except Fault as fault:
            if fault.code in (TOPIC_NOT_FOUND, TOPIC_DELETED):
                raise TopicNotFoundError(names.ours(name)) from fault
            raise self.refused(fault) from fault
        self.forget(name)
        await self._until(lambda: self._is_gone(name), f"topic {names.ours(name)!r} is still there")
        try:
            await self._until(lambda: self._has_no_partitions(name), "partitions of it are", PARTITIONS_GONE_WITHIN)
        except ConnectError:  # seen with 0.18: it never notices, and nobody can remove them
            log.warning("Fluvio still lists partitions of the topic %r, which was deleted", names.ours(name))

    async def _is_gone(self, name: str) -> bool:
        return not any(state.name == name for state in await self.topics())

    async def _has_no_partitions(self, name: str) -> bool:
        return not await self.partitions(name)

    async def add_partitions(self, name: str, total: int) -> None:
        """Have a topic have so many. Raises ConfigurationError for fewer than it has."""
        have = (await self.topic(name)).settings.partitions
        if total < have:
            raise ConfigurationError(f"{names.ours(name)!r} has {have} partitions, none can be taken away")
        if total == have:
            return
        try:
            await self.control(apis.UPDATE, lambda _: apis.add_partitions(name, total - have), apis.read_status)
        except Fault as fault:
            raise self.refused(fault) from fault
        await self._until_led(name, total)

    async def _until_led(self, name: str, count: int) -> None:
        """Wait until a topic has so many partitions, and their leaders know it. Raises ConnectError."""
        wanted = f"topic {names.ours(name)!r} has not {count} partition(s) with a leader"
        await self._until(lambda: self._is_led(name, count), wanted)
        self.forget(name)

    async def _is_led(self, name: str, count: int) -> bool:
        """Raises ConfigurationError for a topic that the cluster cannot place."""
        states = await self.partitions(name)
        if len(states) < count:
            await self._check_placed(name)
            return False
        await self.ranges([(name, state.number) for state in states])
        return True

    async def _check_placed(self, name: str) -> None:
        try:
            topic = await self.topic(name)
        except TopicNotFoundError:
            return  # it is not heard of yet
        if topic.resolution in HOPELESS:
            online = sum(spu.online for spu in await self.spus())
            raise ConfigurationError(
                f"Fluvio has no place for topic {names.ours(name)!r}, which is left there: {topic.resolution} "
                f"{topic.reason}. It wants {topic.settings.replicas} copies, and {online} SPU(s) are online"
            )

    async def _until(self, is_so: Callable[[], Awaitable[bool]], otherwise: str, within: float = READY_WITHIN) -> None:
        """Look until something is so. Raises ConnectError, saying what is so otherwise."""
        try:
            async with asyncio.timeout(within):
                while True:
                    if await is_so():
                        return
                    await asyncio.sleep(AGAIN)
        except TimeoutError:
            raise ConnectError(self.address, f"{otherwise} after {within:g} s") from None

    def refused(self, fault: Fault) -> HeadwaterError:
        return HeadwaterError(f"Fluvio at {self.address} refused: {fault}")

    # --- the SPUs -------------------------------------------------------------------------------------

    async def leader(self, place: Place) -> int:
        """Who leads a partition. Raises TopicNotFoundError, ConnectError."""
        if place not in self._leaders:
            await self.partitions(place[0])
        if place not in self._leaders:
            if place not in await self.recount(place[0]):
                raise TopicNotFoundError(names.ours(place[0]), f"it has no partition {place[1]}")
            raise ConnectError(self.address, f"{names.ours(place[0])!r}[{place[1]}] has no leader yet")
        return self._leaders[place]

    def leader_changed(self, place: Place) -> None:
        """It is not the one that was known."""
        self._leaders.pop(place, None)

    async def address_of(self, spu: int) -> Address:
        """Where an SPU is reached. Raises ConnectError if the controller does not know it."""
        if spu not in self._spus:
            await self.spus()
        found = self._spus.get(spu)
        if found is None:
            raise ConnectError(self.address, f"SPU {spu} is not known to the controller")
        return self.settings.address._replace(host=found.host, port=found.port)

    async def greet(self, spu: int, within: float) -> None:
        """Have an SPU say what it speaks, on a connection of its own. Raises ConnectError."""
        (await dial(await self.address_of(spu), within)).abort("greeted")

    async def link(self, spu: int, *, writing: bool = False) -> Link:
        """The link to this SPU for questions, or the one that is written through. Raises ConnectError."""
        links = self._writing if writing else self._links
        if spu not in links:
            async with self._opening:
                if spu not in self._links:
                    watched = Link(f"SPU {spu} of Fluvio at {self.address}", lambda: self._reach_again(spu))
                    await watched.open()
                    self._links[spu] = watched
                if spu not in links:
                    link = Link(f"writing to SPU {spu}", lambda: self._reach(spu), watched=False)
                    await link.open()
                    self._writing[spu] = link
        return links[spu]

    async def _reach_again(self, spu: int) -> Connection:
        """One that went away is not waited for by those who write, either."""
        if (writing := self._writing.get(spu)) is not None:
            writing.drop("its SPU went away")
        return await self._reach(spu)

    async def _reach(self, spu: int) -> Connection:
        try:
            return await self._dial(await self.address_of(spu))
        except ConnectError:
            self._spus.pop(spu, None)  # it may be somewhere else by now
            raise

    async def another(self, place: Place) -> Connection:
        """A connection of one's own to the leader of a partition. Raises ConnectError, TopicNotFoundError."""
        return await self._reach(await self.leader(place))

    async def ask(self, place: Place, api: Api, body: bytes, read: Callable[[Reader], T], timeout: float) -> T:
        """What the leader of a partition answers, asked again while the cluster settles down.

        Raises LostError, TimeoutError, ConnectError, TopicNotFoundError, and Fault for a refusal.
        """
        async with asyncio.timeout(timeout):
            while True:
                if (connection := await self._connection(place, writing=api is apis.PRODUCE)) is None:
                    continue
                try:
                    return await connection.ask(api, body, read, timeout)
                except Fault as fault:
                    if fault.code not in PASSING:
                        raise
                self.leader_changed(place)
                await asyncio.sleep(AGAIN)

    async def _connection(self, place: Place, *, writing: bool) -> Connection | None:
        """To the leader of a partition; None if it is away, or was: there may be another one by now."""
        try:
            link = await self.link(await self.leader(place), writing=writing)
            async with asyncio.timeout(LOOK_AGAIN):
                return await link.connection()
        except TimeoutError:
            pass
        except ConnectError:
            await asyncio.sleep(LOOK_AGAIN)
        self.leader_changed(place)
        return None

    async def known(self, place: Place, api: Api, body: bytes, read: Callable[[Reader], T]) -> T:
        """As `ask`, for questions that may be asked twice. Raises ConnectError, HeadwaterError."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                while True:
                    try:
                        return await self.ask(place, api, body, read, ANSWER_WITHIN)
                    except LostError:
                        self.leader_changed(place)
        except TimeoutError:
            raise ConnectError(self.address, f"no answer within {ANSWER_WITHIN:g} s") from None
        except Fault as fault:
            raise self.refused(fault) from fault

    async def range(self, place: Place) -> tuple[int, int]:
        """The first offset kept on a partition, and the one the next message will get."""
        return await self.known(place, apis.FETCH_OFFSETS, apis.fetch_offsets(*place), apis.read_offsets)

    async def ranges(self, places: Sequence[Place]) -> dict[Place, tuple[int, int]]:
        found = await asyncio.gather(*(self.range(place) for place in places))
        return dict(zip(places, found, strict=True))

    # --- what consumers stored ------------------------------------------------------------------------

    async def stored(self, place: Place | None = None, consumer: str | None = None) -> list[Stored]:
        """Offsets that consumers stored: of a partition and a consumer, or of all."""
        return await self.known(
            OFFSETS, apis.LIST_OFFSETS, apis.list_offsets(place, consumer), apis.read_stored_offsets
        )

    async def delete_stored(self, place: Place, consumer: str) -> None:
        await self.known(OFFSETS, apis.DELETE_OFFSET, apis.delete_offset(consumer, place), apis.read_deleted)
