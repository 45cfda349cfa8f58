"""Messages on their way into partitions: one batch at a time to each, in the order they were published."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from ...codecs.envelope import seal
from ...errors import (
    ConfigurationError,
    DeliveryUnknownError,
    HeadwaterError,
    MessageTooLargeError,
    NotConnectedError,
    NotSupportedError,
    PublishError,
    RefusedError,
    TopicNotFoundError,
)
from ...message import Headers, Outgoing, Receipt
from . import apis, names
from .apis import Place, Produced
from .batching import LONGEST_RECORD_HEAD, MAX_BATCH, partition_of, write_batch, write_record
from .cluster import Cluster
from .connection import LostError
from .records import CODECS, COUNT, HEAD, compress
from .settings import Settings
from .wire import TIMED_OUT, TOO_LARGE, TOPIC_DELETED, TOPIC_NOT_FOUND, Fault, Reader

ANSWER_WITHIN: Final = 30.0  # seconds that a leader has to confirm a batch
MOST: Final = MAX_BATCH - HEAD - COUNT - LONGEST_RECORD_HEAD  # bytes of a key and a value, envelope included
_ALL: Final = -1  # replicas in sync
_LEADER: Final = 1


class Post:
    """Messages that were sent together, until each of them has its receipt or its error."""

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.messages = messages
        self.receipts: list[Receipt | None] = [None] * len(messages)
        self.errors: list[HeadwaterError | None] = [None] * len(messages)
        self.abandoned = False  # nobody waits any more
        self._left = len(messages)
        self._done = asyncio.Event()

    def settle(self, index: int, outcome: Receipt | HeadwaterError) -> None:
        if isinstance(outcome, Receipt):
            self.receipts[index] = outcome
        else:
            self.errors[index] = outcome
        self._left -= 1
        if not self._left:
            self._done.set()

    async def answer(self) -> Sequence[Receipt]:
        """All receipts. Raises PublishError, or the error of a single message. Cancelled, what was not sent is not."""
        try:
            await self._done.wait()
        except asyncio.CancelledError:
            self.abandoned = True
            raise
        failed = [error for error in self.errors if error is not None]
        if failed and len(self.messages) == 1:
            raise failed[0]
        if failed:
            raise PublishError(self.receipts, self.errors)
        return self.receipts  # type: ignore[return-value]  # none is missing


class Letter(NamedTuple):
    """A message that is ready to travel, and where its outcome goes."""

    post: Post
    number: int  # of it in the post
    key: bytes | None
    value: bytes

    @property
    def size(self) -> int:
        return LONGEST_RECORD_HEAD + len(self.value) + (len(self.key) if self.key else 0)

    def settle(self, outcome: Receipt | HeadwaterError) -> None:
        self.post.settle(self.number, outcome)


class Route(NamedTuple):
    """A topic, and where those of its messages go that are sent together: what has no key to one partition."""

    topic: str
    partitions: int
    turn: int

    def place(self, outgoing: Outgoing, key: bytes | None) -> Place:
        """The partition of a message. Raises ConfigurationError for one that is not there."""
        number = outgoing.partition
        if number is None:
            return self.topic, self.turn if key is None else partition_of(key, self.partitions)
        if not 0 <= number < self.partitions:
            raise ConfigurationError(f"{outgoing.topic!r} has partitions 0 to {self.partitions - 1}, not {number}")
        return self.topic, number


def _letter(post: Post, number: int, outgoing: Outgoing) -> Letter:
    if outgoing.delay:
        raise NotSupportedError("fluvio", "delay=", "it keeps no message back")
    headers = outgoing.headers if isinstance(outgoing.headers, Headers) else Headers(outgoing.headers)
    letter = Letter(post, number, outgoing.key_bytes, seal(None, headers, outgoing.body))
    size = len(letter.value) + len(letter.key or b"")
    if size > MOST:
        raise MessageTooLargeError(outgoing.topic, size, MOST)
    return letter


class Sender:
    """Puts messages into the lane of their partition."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        """Raises MissingExtraError for a compression that is not installed."""
        compress(b"", CODECS[settings.compression])
        self._settings, self._cluster = settings, cluster
        self._lanes: dict[Place, Lane] = {}
        self._order = asyncio.Lock()  # who has to ask for a topic first keeps those that come later behind
        self._turns: dict[str, int] = {}  # the partition that messages without a key went to last, by topic

    async def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        """Receipts of these. Raises PublishError, or the error of a single message."""
        post = Post(messages)
        topics = {message.topic for message in messages}
        if self._order.locked() or not all(map(self._knows, topics)):
            async with self._order:
                refused = {topic: error for topic in topics if (error := await self._learn(topic)) is not None}
                self._put(post, refused)
        else:
            self._put(post, {})
        return await post.answer()

    def _knows(self, topic: str) -> bool:
        try:
            return self._cluster.knows(names.native(topic))
        except HeadwaterError:
            return False

    async def _learn(self, topic: str) -> HeadwaterError | None:
        """Find or make a topic; why it cannot be published to."""
        try:
            native = names.native(topic)
            try:
                await self._cluster.recount(native)
            except TopicNotFoundError:
                if not self._settings.auto_create:
                    raise
                made = apis.TopicSettings(self._settings.partitions, self._settings.replication)
                await self._cluster.create(native, made)
                await self._cluster.recount(native)
        except HeadwaterError as error:
            return error
        return None

    def _put(self, post: Post, refused: Mapping[str, HeadwaterError]) -> None:
        routes: dict[str, Route] = {}
        for number, outgoing in enumerate(post.messages):
            try:
                topic = outgoing.topic
                route = routes.get(topic)
                if route is None:
                    if topic in refused:
                        raise refused[topic]
                    route = routes[topic] = self._route(topic)
                letter = _letter(post, number, outgoing)
                self._lane(route.place(outgoing, letter.key)).put(letter)
            except HeadwaterError as error:
                post.settle(number, error)

    def _route(self, topic: str) -> Route:
        native = names.native(topic)
        count = self._cluster.known_count(native)
        if count is None:  # forgotten a moment ago
            raise TopicNotFoundError(topic)
        turn = self._turns[native] = (self._turns.get(native, -1) + 1) % count
        return Route(native, count, turn)

    def _lane(self, place: Place) -> Lane:
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = Lane(place, self._settings, self._cluster)
        return lane

    async def close(self) -> None:
        """Give up what is not confirmed."""
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            await lane.close()


class Lane:
    """What goes to one partition, a batch at a time."""

    def __init__(self, place: Place, settings: Settings, cluster: Cluster) -> None:
        self.place = place
        self._cluster = cluster
        self._codec = CODECS[settings.compression]
        self._acks = _ALL if settings.acks == "all" else _LEADER
        self._waiting: deque[Letter] = deque()
        self._under_way: list[Letter] = []
        self._task: asyncio.Task[None] | None = None

    def put(self, letter: Letter) -> None:
        """This comes next."""
        self._waiting.append(letter)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for letter in self._under_way:
            letter.settle(DeliveryUnknownError(self._topic(letter), 0.0))
        for letter in self._waiting:
            letter.settle(NotConnectedError(f"Fluvio at {self._cluster.address}"))
        self._waiting.clear()

    async def _run(self) -> None:
        try:
            while letters := self._take():
                self._under_way = letters
                await self._deliver(letters)
                self._under_way = []
        finally:
            self._task = None

    def _take(self) -> list[Letter]:
        """As many as fit into a batch; those that nobody waits for any more are dropped."""
        taken: list[Letter] = []
        room = MAX_BATCH - HEAD - COUNT
        waiting = self._waiting
        while waiting:
            letter = waiting[0]
            if not letter.post.abandoned:
                room -= letter.size
                if room < 0:
                    break
                taken.append(letter)
            waiting.popleft()
        return taken

    async def _deliver(self, letters: Sequence[Letter]) -> None:
        now = time.time()
        started = time.monotonic()
        records = [write_record(number, letter.key, letter.value) for number, letter in enumerate(letters)]
        batch = partial(write_batch, records, round(now * 1000), self._codec)
        try:
            produced = await self._produce(await asyncio.to_thread(batch) if self._codec else batch())
        except Fault as fault:
            self._refuse(letters, fault)
        except (LostError, TimeoutError):
            took = round(time.monotonic() - started, 3)
            for letter in letters:
                letter.settle(DeliveryUnknownError(self._topic(letter), took))
        except HeadwaterError as error:
            for letter in letters:
                letter.settle(error)
        else:
            for number, letter in enumerate(letters):
                letter.settle(Receipt(self._topic(letter), self.place[1], produced + number, now))

    async def _produce(self, batch: bytes) -> int:
        """The offset of the first message. Raises Fault, LostError, TimeoutError, HeadwaterError."""

        def read(reader: Reader) -> Produced:
            produced = apis.read_produced(reader)[self.place]
            apis.raise_fault(produced.fault)
            return produced

        body = apis.produce({self.place: batch}, self._acks, ANSWER_WITHIN)
        return (await self._cluster.ask(self.place, apis.PRODUCE, body, read, ANSWER_WITHIN)).base

    def _refuse(self, letters: Sequence[Letter], fault: Fault) -> None:
        if fault.code in (TOPIC_NOT_FOUND, TOPIC_DELETED):
            self._cluster.forget(self.place[0])
        for letter in letters:
            topic = self._topic(letter)
            if fault.code in (TOPIC_NOT_FOUND, TOPIC_DELETED):
                letter.settle(TopicNotFoundError(topic))
            elif fault.code == TOO_LARGE:
                letter.settle(MessageTooLargeError(topic, len(letter.value)))
            elif fault.code == TIMED_OUT:  # it is written, but not by enough replicas
                letter.settle(DeliveryUnknownError(topic, ANSWER_WITHIN))
            else:
                letter.settle(RefusedError(topic, str(fault)))

    @staticmethod
    def _topic(letter: Letter) -> str:
        return letter.post.messages[letter.number].topic
