"""A member of a group on some streams: it reads, acknowledges, and takes over what members who died had."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

from ...engine import Lost, OnChange, Source
from ...errors import ConfigurationError, NotSupportedError, TopicNameError
from ...message import ATTEMPTS, Message, Outgoing, Position, Receipt
from ...topics import RETRY_SUFFIX, is_pattern
from . import names, places
from .entries import read
from .listening import rung
from .locks import Lock
from .patterns import streams_matching
from .reading import BLOCK, Basket, Reader
from .servers import Call, Servers, call, passes
from .wire import Command, Disconnected, Refusal

LEAVE_WITHIN: Final = 5.0  # seconds
AT_ONCE: Final = 1000  # ids in one command
_TRY_AGAIN: Final = 0.2  # seconds
GIVEN_BACK: Final = 1_000_000_000  # milliseconds that it seems to have been idle: more than any lease

_FORGET: Final = """
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  if consumer[2] == ARGV[2] and consumer[4] == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
end
return 1
"""

_log: Final = logging.getLogger("headwater.redis")


class Member:
    """A place in a group: see `Subscription`. `name` is what the server calls this consumer."""

    def __init__(self, servers: Servers, source: Source, name: str, lease: float, on_change: OnChange) -> None:
        assert source.group is not None
        self.name, self.group = name, source.group
        self.basket = Basket()
        self.basket.on_resume = self._interrupt
        self._servers, self._source, self._lease, self._on_change = servers, source, lease, on_change
        self._topics: list[str] = []
        self._readers: dict[int, Reader] = {}
        self._open = set[Message]()  # given to us and not acknowledged
        self._begun: dict[Message, int] = {}  # the repeated attempts that were noted with the server
        self._owed: dict[str, list[str]] = defaultdict(list)  # acknowledgements that did not get through
        self._moving = asyncio.Lock()  # held while entries become ours, so that none does twice
        self._lock = Lock(servers, self.group, source.topics, lease) if source.exclusive else None
        self._caught_up = asyncio.Event()  # whether what others left was taken, which comes first
        self._rung = asyncio.Event()
        self._cursors: dict[str, str] = {}  # how far the look at what others have got, where it is not done
        self._newcomer = True
        self._claimer: asyncio.Task[None] | None = None
        self._epochs = itertools.count(1)

    async def open(self) -> None:
        """Take the place: what is published from now on is for the group. Raises TopicNameError."""
        known = [topic for topic in self._source.topics if not is_pattern(topic)]
        await self._make_groups(known, self._source.start)
        await self._resolve_patterns()
        if self._lock is not None:
            self._lock.on_lost = self._lost
            await self._lock.open()
        self._claimer = asyncio.create_task(self._claim_on(), name=f"headwater redis claims {self.name}")
        self._read(self._topics)

    async def close(self) -> None:
        """Leave: what was not acknowledged is free for others at once."""
        try:
            async with asyncio.timeout(LEAVE_WITHIN):
                async with self._moving:  # what is becoming ours is to be given back, too
                    await self._stop()
                await self._pay()
                await self._give_back()
                if self._lock is not None:
                    await self._lock.give_up()
        except (Disconnected, Refusal, TimeoutError) as error:
            reason = error if str(error) else "the server is away"
            _log.warning("%s could not give back what it had, others get it after the lease: %s", self.name, reason)
        finally:
            await self._stop()
            if self._lock is not None:
                await self._lock.stop()

    async def _stop(self) -> None:
        if self._claimer is not None:
            self._claimer.cancel()
            await asyncio.gather(self._claimer, return_exceptions=True)
        await asyncio.gather(*(reader.stop() for reader in self._readers.values()))

    def ring(self, _what: bytes) -> None:
        """Something may be free."""
        self._rung.set()
        if self._lock is not None:
            self._lock.ring()

    # --- where the group begins -----------------------------------------------------------------------

    async def _make_groups(self, topics: Sequence[str], start: Any) -> None:
        """Have the group on these streams, from `start` on where it is new. Makes streams that are not there."""
        begin = "$" if start == "latest" else places.before(start, "")
        made = await self._servers.ask([
            (topic, ("XGROUP", "CREATE", topic, self.group, begin, "MKSTREAM")) for topic in topics
        ])  # fmt: skip
        fresh = []
        for topic, reply in zip(topics, made, strict=True):
            if not isinstance(reply, Refusal):
                fresh.append(topic)
            elif reply.code == "WRONGTYPE":
                raise TopicNameError(topic, "there is a key of that name which is no stream")
            elif reply.code != "BUSYGROUP":
                raise reply
        self._topics += [topic for topic in topics if topic not in self._topics]
        await self._servers.ask([
            (topic, ("XGROUP", "CREATECONSUMER", topic, self.group, self.name)) for topic in topics
        ])  # fmt: skip
        if fresh and start != "earliest":
            await self._log_skipped(fresh, start)

    async def _log_skipped(self, topics: Sequence[str], start: Any) -> None:
        if start == "latest":
            lengths = await self._servers.ask([(topic, ("XLEN", topic)) for topic in topics])
            skipped = sum(length for length in lengths if isinstance(length, int))
            if skipped:
                _log.info("the new group %r begins at %s and skips %d message(s)", self.group, start, skipped)
        else:
            _log.info("the new group %r begins at %s", self.group, start)

    async def _resolve_patterns(self) -> None:
        """A pattern's topics begin where the source says when the group first has it; later ones at their beginning."""
        for pattern in filter(is_pattern, self._source.topics):
            key = names.patterns(self.group)
            known = await call(self._servers, key, "SISMEMBER", key, pattern)
            found = await streams_matching(self._servers, [pattern])
            await self._make_groups(sorted(found), "earliest" if known else self._source.start)
            await call(self._servers, key, "SADD", key, pattern)

    async def take_in(self, topics: set[str]) -> None:
        """Read these topics of our patterns, too: those that were not there before, from their beginning."""
        new = sorted(topics.difference(self._topics))
        if new:
            await self._make_groups(new, "earliest")
            self._read(new)

    # --- reading --------------------------------------------------------------------------------------

    def _read(self, topics: Iterable[str]) -> None:
        for place, together in self._servers.together(topics).items():
            if place in self._readers:
                self._readers[place].read_too(together)
            else:
                self._readers[place] = Reader(self._servers, self, together)

    def _interrupt(self) -> None:
        for reader in self._readers.values():
            reader.interrupt()

    async def prepare(self, topics: Sequence[str]) -> None:
        """Acknowledge what did not get through, and find what was given to us and never came."""
        await self._pay()
        if self._lock is None or self._lock.held.is_set():  # who waits for the lock takes over all with it
            async with self._moving:
                await self._take_what_is_ours(topics)
        self._newcomer = False

    async def patience(self) -> float:
        while True:
            await self._caught_up.wait()
            if self._lock is None:
                return BLOCK
            if (left := self._lock.left) > 0:
                return min(BLOCK, left)
            await asyncio.sleep(_TRY_AGAIN)

    def read(self, topics: Sequence[str], count: int, block: int) -> Command:
        who, after = ("GROUP", self.group, self.name), [">"] * len(topics)
        return ("XREADGROUP", *who, "COUNT", count, "BLOCK", block, "STREAMS", *topics, *after)

    def arrived(self, reply: Any) -> None:
        group = self.group
        for raw, entries in reply:
            topic = raw.decode()
            self._take(read(topic, group, entries))

    async def refused(self, topics: Sequence[str], refusal: Refusal) -> bool:
        """A group that is gone, after a FLUSHALL or a failover, is made again from the beginning: nothing of what is
        there now was handled by it."""
        if refusal.code != "NOGROUP":
            return False
        await self._make_groups(topics, "earliest")
        _log.warning(
            "the group %r on %s was gone: it is made again and begins at the earliest", self.group, ", ".join(topics)
        )
        return True

    def _take(self, messages: list[Message]) -> None:
        self._open.update(messages)
        self.basket.put(messages)

    # --- taking over ----------------------------------------------------------------------------------

    async def _claim_on(self) -> None:
        """Take over what members left or died with, whenever there is room: first of all, when rung, now and then."""
        while True:
            self._rung.clear()
            try:
                if self._lock is not None:
                    await self._lock.held.wait()
                await self._pay()
                while await self._claim(await self.basket.demand()):
                    pass
                self._caught_up.set()
                await rung(self._rung, self._lease / 2)
            except (Disconnected, Refusal) as error:
                _log.debug("%s could not look for what others left: %s", self.name, error)
                self._doubt()
                await asyncio.sleep(_TRY_AGAIN)
            except Exception as error:
                self.basket.fail(error)
                raise

    def _doubt(self) -> None:
        """Something may have become ours that did not come."""
        for reader in self._readers.values():
            reader.unsure = True
            reader.interrupt()

    async def _claim(self, room: int) -> bool:
        """Take over at most so many messages; whether there may be more.

        A new active member of an exclusive group has the right to all that others have, before it reads on.
        """
        takes_all = self._lock is not None and not self._caught_up.is_set()
        idle = 0 if takes_all else int(self._lease * 1000)
        async with self._moving:
            topics = [topic for topic in self._cursors or self._topics if topic not in self.basket.paused]
            replies = await self._servers.ask([
                (topic, ("XPENDING", topic, self.group, "IDLE", idle, self._cursors.get(topic, "-"), "+", room))
                for topic in topics
            ])  # fmt: skip
            ours = {(message.topic, message.offset) for message in self._open} if any(replies) else set()
            self._cursors = {}
            for topic, pending in zip(topics, replies, strict=True):
                if isinstance(pending, Refusal):
                    continue  # the reader mends it
                found = [(entry[0].decode(), entry[3]) for entry in pending]
                left = [entry for entry in found if (topic, entry[0]) not in ours]
                if len(left) > room:
                    left = left[:room]
                    self._cursors[topic] = f"({left[-1][0]}" if left else "-"
                elif len(found) >= room:
                    self._cursors[topic] = f"({found[-1][0]}" if found else "-"
                if left:
                    await self._move_here(topic, left, idle, died=True)
                    room -= len(left)
        return bool(self._cursors)

    async def _take_what_is_ours(self, topics: Sequence[str]) -> None:
        """What the server says is ours and we do not know: its answer was lost, or who had our name before us died."""
        here = {(message.topic, message.offset) for message in self._open}
        starts = dict.fromkeys(topics, "-")
        while starts:
            replies = await self._servers.ask([
                (topic, ("XPENDING", topic, self.group, start, "+", AT_ONCE, self.name))
                for topic, start in starts.items()
            ])  # fmt: skip
            for topic, pending in zip(list(starts), replies, strict=True):
                if isinstance(pending, Refusal):
                    raise pending
                mine = [(entry[0].decode(), entry[3]) for entry in pending]
                unknown = [entry for entry in mine if (topic, entry[0]) not in here]
                if unknown:
                    await self._move_here(topic, unknown, 0, died=self._newcomer)
                if len(mine) < AT_ONCE:
                    del starts[topic]
                else:
                    starts[topic] = f"({mine[-1][0]}"

    async def _move_here(self, topic: str, left: Sequence[tuple[str, int]], idle: int, *, died: bool) -> None:
        """Make these ours, each with the attempts it had. One whose member died had one more."""
        counted = defaultdict[int, list[str]](list)
        for offset, deliveries in left:
            counted[deliveries + died].append(offset)
        who = (topic, self.group, self.name, idle)
        replies = await self._servers.ask([
            (topic, ("XCLAIM", *who, *offsets, "RETRYCOUNT", attempt)) for attempt, offsets in counted.items()
        ])  # fmt: skip
        messages: list[Message] = []
        for attempt, entries in zip(counted, replies, strict=True):
            if isinstance(entries, Refusal):
                raise entries
            for message in read(topic, self.group, entries):
                message.attempt = max(1, attempt)
                messages.append(message)
        if messages:
            messages.sort(key=_age)
            self._take(messages)

    # --- giving back ----------------------------------------------------------------------------------

    async def _give_back(self) -> None:
        """Leave what is not acknowledged to nobody, so that whoever looks next has it, and forget this consumer."""
        left = defaultdict[tuple[str, int], list[str]](list)
        for message in self._open:
            left[message.topic, self._calls_of(message)].append(str(message.offset))
        to, how = (self.group, names.FREE, 0), ("IDLE", GIVEN_BACK, "RETRYCOUNT")
        given: list[Call] = [
            (topic, ("XCLAIM", topic, *to, *some, *how, count, "JUSTID"))
            for (topic, count), offsets in left.items()
            for some in _chunks(offsets)
        ]
        forget: list[Call] = [(topic, ("EVAL", _FORGET, 1, topic, self.group, self.name)) for topic in self._topics]
        await self._servers.ask([*given, *forget, (self.group, ("PUBLISH", names.bell(self.group), ""))])

    def _calls_of(self, message: Message) -> int:
        """How often its handler was called, as far as that counts."""
        return max(message.attempt - message._deferred - 1, self._begun.get(message, 0))

    async def _lost(self) -> None:
        """Somebody else is the active member: what we have and did not begin is theirs."""
        self._caught_up.clear()
        self._rung.set()  # once it is ours again there may be something to take over
        self._interrupt()
        self.basket.clear()
        self._open.clear()
        self._begun.clear()
        topics = frozenset((topic, 0) for topic in self._topics)
        await self._on_change(Lost(topics, next(self._epochs)))

    # --- Subscription ---------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        return await self.basket.receive(limit, wait)

    def wake(self) -> None:
        self.basket.wake()

    def begin(self, message: Message) -> None:
        delivery = message._delivery or message
        attempt = message.attempt if delivery is message else message.attempt - int(message.headers.get(ATTEMPTS, 0))
        self._begun[delivery] = attempt
        topic = delivery.topic
        how = ("RETRYCOUNT", attempt, "JUSTID")
        self._servers.node_of(topic).post(("XCLAIM", topic, self.group, self.name, 0, delivery.offset, *how))

    async def ack(self, messages: Sequence[Message]) -> None:
        """Does not wait for the server. What does not get through is acknowledged once the server is back."""
        self._open.difference_update(messages)
        if self._begun:
            for message in messages:
                self._begun.pop(message, None)
        for topic, offsets in _by_topic(messages).items():
            said = self._servers.node_of(topic).say(self._acknowledgement(topic, offsets))
            said.add_done_callback(partial(self._acknowledged, topic, offsets))

    def _acknowledgement(self, topic: str, offsets: Sequence[str]) -> list[Command]:
        commands: list[Command] = [("XACK", topic, self.group, *offsets)]
        if topic.endswith(RETRY_SUFFIX):  # nobody else reads it, so that it need not grow
            commands.append(("XDEL", topic, *offsets))
        return commands

    def _acknowledged(self, topic: str, offsets: list[str], said: asyncio.Future[list[Any]]) -> None:
        """Keep in mind what did not get through: the connection was lost, or the server is not the right one now."""
        if said.cancelled() or said.exception() is not None or any(map(passes, said.result())):
            self._owed[topic] += offsets
            self._rung.set()

    async def _pay(self) -> None:
        """Acknowledge what did not get through before."""
        while self._owed:
            topic, offsets = next(iter(self._owed.items()))
            some = offsets[:AT_ONCE]
            await self._servers.ask([(topic, command) for command in self._acknowledgement(topic, some)])
            del offsets[: len(some)]
            if not offsets:
                self._owed.pop(topic, None)

    async def extend(self, messages: Sequence[Message]) -> None:
        who = (self.group, self.name, 0)
        ours = [message for message in (*messages, *self.basket.messages) if message in self._open]
        await self._servers.ask([
            (topic, ("XCLAIM", topic, *who, *ids, "JUSTID"))
            for topic, offsets in _by_topic(ours).items()
            for ids in _chunks(offsets)
        ])  # fmt: skip

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("redis", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("redis", "reject", "the core writes dead letters")

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("redis", "transactions")

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        self.basket.pause(partitions)

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self.basket.resume(partitions)

    async def seek(self, position: Position) -> None:
        raise ConfigurationError("the members of a group share its position: seek in a stream, without a group")


def _by_topic(messages: Sequence[Message]) -> dict[str, list[str]]:
    found = defaultdict[str, list[str]](list)
    for message in messages:
        found[message.topic].append(message.offset)  # type: ignore[arg-type]  # ours are str
    return found


def _chunks(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[first : first + AT_ONCE] for first in range(0, len(ids), AT_ONCE))


def _age(message: Message) -> tuple[int, int]:
    return places.order(str(message.offset))
