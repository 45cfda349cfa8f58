"""The loop of one subscription: receive, hand out to lanes, acknowledge, drain."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final

from .clock import Timer
from .engine import Ack, Assigned, Change, Lost, Subscription
from .letters import returned
from .message import Message, Outgoing
from .order import Lineup, Partitions
from .settle import Settings, Settler
from .topics import RETRY_SUFFIX
from .watermark import Watermark

RECEIVE_WAIT: Final = 5.0  # seconds a quiet `receive` may take; it is woken for everything that matters
MAX_AHEAD: Final = 10_000  # messages held before the partition that holds most of them pauses
ACK_BURST: Final = 256  # handled messages that share one acknowledgement ...
ACK_WAIT: Final = 0.05  # ... unless the first of them has waited this long, in seconds

_NEVER: Final = -1
_ALWAYS: Final = 1 << 62

Work = Message | tuple[Message, ...]


class Worker:
    """Works on one subscription until told to stop.

    Lanes handle messages beside each other; a parked message (one that waits for another attempt) holds none.
    A message is acknowledged only after its handler, and what it published, succeeded.
    """

    def __init__(self, settings: Settings, lineup: Lineup) -> None:
        self.settings = settings
        self.settler = Settler(settings, self)
        self.subscription: Subscription  # given to `run`
        self.stopping = False
        self._cancelling = False
        self._task: asyncio.Task[Any] | None = None  # that runs this
        self.on_quiet: Callable[[], object] | None = None  # told whenever `busy` may have become 0
        self._lineup = lineup
        self.received = 0  # messages, over all
        self._held = 0  # received and not over
        self._watermark = Watermark() if settings.capabilities.ack is Ack.UP_TO else None
        self._finished: list[Message] = []  # over, to be acknowledged together
        self._acknowledge_at = 0.0  # on the monotonic clock, when some are finished
        self._acknowledging = 0  # acknowledgements on their way to the source
        self._tell_below = _NEVER  # how few ready messages somebody waits for
        self._running: list[Work | None] = [None] * settings.concurrency
        self._parked: dict[Message, tuple[Timer, float]] = {}  # what wakes each, and when
        self._sleepers: deque[asyncio.Future[None]] = deque()  # idle lanes
        self._wants_room: asyncio.Future[None] | None = None  # the receiver, waiting for the lanes
        self._revoking: asyncio.Future[None] | None = None
        self._paused: Counter[tuple[str, int]] = Counter()  # paused partitions, and how many they hold ...
        self._resume_at: dict[tuple[str, int], int] = {}  # ... and at how few each goes on
        self._pauses: dict[asyncio.Future[None], Timer] = {}
        self._batch_timer: Timer | None = None
        self._batch_due = False

    @property
    def cancelling(self) -> bool:
        """Whether what is in work is being cancelled, by a stop that waited long enough or with all of its loop."""
        return self._cancelling or (self._task is not None and self._task.cancelling() > 0)

    @property
    def held(self) -> int:
        """Messages that were received and are not over, parked ones included."""
        return self._held

    @property
    def parked(self) -> int:
        """Messages that wait for another attempt."""
        return len(self._parked)

    @property
    def busy(self) -> int:
        """Messages being handled or acknowledged, or that could be: those that wait for no time to pass."""
        ready = len(self._lineup.ready) if self._batch_is_ready() else 0
        handled = sum(1 for _ in self._handled())
        return max(0, ready + handled + len(self._finished) - len(self._pauses))

    async def run(self, subscription: Subscription) -> None:
        """Work until `stop_soon`. Raises what makes the subscription itself fail."""
        self.subscription, self._task = subscription, asyncio.current_task()
        lanes = [asyncio.create_task(self._lane(number)) for number in range(self.settings.concurrency)]
        receiver = asyncio.create_task(self._receive())
        keeper = asyncio.create_task(self._keep_leases())
        try:
            await _all_or_first_failure([receiver, *lanes])
        finally:
            self.stop_soon()
            self._cancelling = True
            for task in (keeper, *lanes):
                task.cancel()
            await asyncio.gather(keeper, *lanes, receiver, return_exceptions=True)
            self._running[:] = [None] * len(lanes)  # cancelled: a revocation has nothing left to wait for
            if self._revoking is not None:
                _set(self._revoking)
            await self.acknowledge(())
            await self._give_back_parked()

    def stop_soon(self) -> None:
        """Receive nothing more and let the lanes finish what they are doing.

        What was received and not begun goes back to the source; one that takes nothing back is worked through.
        """
        if self.stopping:
            return
        self.stopping = True
        if hasattr(self, "subscription"):
            self.subscription.wake()
        for pause in list(self._pauses):
            pause.cancel()
        self._make_room()
        self._wake_lanes(len(self._sleepers))

    # --- receiving ------------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while not self.stopping:
            room = self._room()
            if room <= 0:
                self._wants_room = asyncio.get_running_loop().create_future()
                self._tell_below = max(self._tell_below, self.settings.prefetch // 2)
                await self._wants_room
                self._wants_room = None
                continue
            messages = await self.subscription.receive(room, RECEIVE_WAIT)
            if messages and not self._leaves_the_rest():
                self._admit(messages)
        self._wake_lanes(len(self._sleepers))

    def _leaves_the_rest(self) -> bool:
        """Whether what was not begun goes back to its source."""
        return self.stopping and self.settings.capabilities.ack is not Ack.NONE

    def _room(self) -> int:
        """How many more messages may be received now."""
        while self._ahead() >= MAX_AHEAD:
            if not self._pause_the_fullest():
                return 0
        at_hand = len(self._lineup.ready) + len(self._running) - len(self._sleepers)
        return min(self.settings.prefetch - at_hand, MAX_AHEAD - self._ahead())

    def _ahead(self) -> int:
        """What was received and may not be acknowledged yet, without that of paused partitions."""
        return (self._held if self._watermark is None else len(self._watermark)) - self._paused.total()

    def _pause_the_fullest(self) -> bool:
        """Too much waits behind what is not done: pause the partition with most of it, the others go on."""
        if self._watermark is not None:
            waiting = self._watermark.held()
        elif self._parked:
            waiting = Counter(_partition(message) for message in (*self._lineup, *self._parked))
        else:
            return False
        for partition in self._paused:
            del waiting[partition]
        if not waiting:
            return False
        partition, count = waiting.most_common(1)[0]
        self._paused[partition], self._resume_at[partition] = count, count // 2
        self.subscription.pause(frozenset((partition,)))
        return True

    def _admit(self, messages: Sequence[Message]) -> None:
        if self._watermark is not None:
            self._watermark.add(messages)
        if self.settings.retry_through_topic:
            messages = [returned(m) if m.topic.endswith(RETRY_SUFFIX) else m for m in messages]
        self.received += len(messages)
        self._held += len(messages)
        self._lineup.add(messages)
        self._more_is_ready()
        self._tell_quiet()  # all of them may wait: behind a parked one, or for their batch

    def _more_is_ready(self) -> None:
        ready = len(self._lineup.ready)
        if self.settings.batch is None:
            self._wake_lanes(ready)
        elif self._batch_is_ready():
            self._wake_lanes(1)
        elif ready and self._batch_timer is None:
            self._batch_timer = self.settings.clock.call_later(self.settings.batch.wait, self._end_batch)
            self._tell_quiet()

    def _tell_who_waits(self) -> None:
        self._tell_below = _NEVER
        if self._revoking is not None:
            _set(self._revoking)
        if self._wants_room is not None:
            if self._ahead() * 4 <= MAX_AHEAD * 3:
                self._make_room()
            else:
                self._tell_below = self.settings.prefetch // 2

    def _make_room(self) -> None:
        if self._wants_room is not None:
            _set(self._wants_room)

    # --- lanes ----------------------------------------------------------------------------------------

    async def _lane(self, number: int) -> None:
        ready, running, finished = self._lineup.ready, self._running, self._finished
        batched = self.settings.batch is not None
        process: Callable[[Any], Any] = self.settler.process_batch if batched else self.settler.process
        take: Callable[[], Work] = self._take_batch if batched else ready.popleft
        while True:
            while ready and not (self.stopping and self._leaves_the_rest()) and (not batched or self._batch_is_ready()):
                work = running[number] = take()
                await process(work)
                running[number] = None
                if len(ready) <= self._tell_below:
                    self._tell_who_waits()
                if len(finished) >= ACK_BURST or time.monotonic() > self._acknowledge_at:
                    await self.acknowledge(())
            if finished:
                await self.acknowledge(())
            elif self.stopping:
                return
            else:
                if ready:  # too few for a batch: its wait begins, also for what had waited behind another
                    self._more_is_ready()
                await self._sleep()

    async def _sleep(self) -> None:
        sleeper: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        self._make_room()
        self._tell_quiet()
        await sleeper

    def _tell_quiet(self) -> None:
        if self.on_quiet is not None:
            self.on_quiet()

    def _wake_lanes(self, count: int) -> None:
        sleepers = self._sleepers
        while sleepers and count > 0:
            sleeper = sleepers.popleft()
            if not sleeper.done():
                sleeper.set_result(None)
                count -= 1

    # --- batches --------------------------------------------------------------------------------------

    def _batch_is_ready(self) -> bool:
        batch = self.settings.batch
        return batch is None or self._batch_due or self.stopping or len(self._lineup.ready) >= batch.size

    def _end_batch(self) -> None:
        self._batch_timer = None
        self._batch_due = True
        self._wake_lanes(1)

    def _take_batch(self) -> tuple[Message, ...]:
        assert self.settings.batch is not None
        ready, size = self._lineup.ready, self.settings.batch.size
        attempts = self.settings.routes[0].retry.attempts
        taken = [ready.popleft()]
        if taken[0].attempt <= attempts:  # the members of an exhausted batch are retried one by one
            while ready and len(taken) < size and ready[0].attempt <= attempts:
                taken.append(ready.popleft())
        self._batch_due = bool(ready) and ready[0].attempt > attempts
        if self._batch_timer is not None:
            self._batch_timer.cancel()
            self._batch_timer = None
        self._more_is_ready()
        return tuple(taken)

    # --- what settling asks for -----------------------------------------------------------------------

    def finish(self, message: Message) -> None:
        self._held -= 1
        self._lineup.settled(message)
        if self._watermark is None and not self._paused:
            self._finished.append(message)
        else:
            self._finished += self._released(message)

    def forget(self, *messages: Message) -> None:
        released = list[Message]()
        for message in messages:
            self._held -= 1
            self._lineup.settled(message)
            released += self._released(message)
        if self._watermark is not None:
            self._finished += _behind(released, messages)

    def _released(self, message: Message) -> list[Message]:
        """What may be acknowledged once this one is done: itself, or up to it and what had waited for it."""
        released = [message] if self._watermark is None else self._watermark.done(message._delivery or message)
        if self._paused:
            for one in released:
                self._count_down(_partition(one))
        return released

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        done = [*self._finished]
        self._finished.clear()
        for message in messages:
            done += [message] if self._watermark is None else self._released(message)
        self._acknowledge_at = time.monotonic() + ACK_WAIT
        if not done:
            return
        if self.settings.retry_through_topic:
            done = [message._delivery or message for message in done]
        self._acknowledging += 1
        try:
            await self.subscription.ack(done)
        except Exception as error:
            self.settings.logger.error(
                "%s could not acknowledge %d message(s), they will come again: %s", self.settings.name, len(done), error
            )
        finally:
            self._acknowledging -= 1
            if self._revoking is not None:
                _set(self._revoking)
        self._tell_quiet()

    async def commit(self, messages: Sequence[Message], sends: Sequence[Outgoing]) -> None:
        await self.acknowledge(())  # a transaction leaves no gap behind it
        await self.subscription.commit(messages, sends)
        self.forget(*messages)

    def park(self, message: Message, delay: float) -> None:
        if self._was_lost(message):
            self._held -= 1
            self._lineup.settled(message)
            return
        self._lineup.park(message)
        clock = self.settings.clock
        self._parked[message] = clock.call_later(delay, lambda: self._unpark(message)), clock.time() + delay

    def _was_lost(self, message: Message) -> bool:
        """Whether the partition of this unsettled message went to somebody else, who handles it."""
        delivery, mark = message._delivery or message, self._watermark
        return mark is not None and not mark.holds(delivery) and self.settler.owes(message, begun=False)

    def _unpark(self, message: Message) -> None:
        del self._parked[message]
        self._lineup.unpark(message)
        self._more_is_ready()

    async def pause(self, delay: float) -> None:
        if self.stopping:
            raise asyncio.CancelledError
        pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pauses[pause] = self.settings.clock.call_later(delay, partial(self._end_pause, pause))
        self._tell_quiet()
        try:
            await pause
        finally:
            self._end_pause(pause)

    def _end_pause(self, pause: asyncio.Future[None]) -> None:
        timer = self._pauses.pop(pause, None)
        if timer is not None:
            timer.cancel()
        _set(pause)

    async def _keep_leases(self) -> None:
        """Have nobody else given what waits or is handled here, however long that takes."""
        lease = self.settings.capabilities.lease
        while lease is not None:
            await asyncio.sleep(lease / 3)
            kept = self._leased()
            try:
                if kept:
                    await self.subscription.extend(kept)
            except Exception as error:
                text = "%s could not extend the lease on %d message(s), others may be given them: %s"
                self.settings.logger.warning(text, self.settings.name, len(kept), error)

    def _leased(self) -> list[Message]:
        """The deliveries that the source waits for."""
        waiting = [one for one in (*self._lineup, *self._parked) if self.settler.owes(one, begun=False)]
        handled = [one for one in self._handled() if self.settler.owes(one, begun=True)]
        return [one._delivery or one for one in (*waiting, *handled)]

    async def _give_back_parked(self) -> None:
        """Keep the wait of what is parked over a stop, where the source can; the rest it gives out again by itself."""
        now = self.settings.clock.time()
        can = self.settings.capabilities.delayed_nack and not self.settings.ordered
        for message, (timer, due) in self._parked.items():
            timer.cancel()
            if can and self.settler.owes(message, begun=False):
                try:
                    await self.subscription.nack([message._delivery or message], max(0.0, due - now))
                except Exception as error:
                    self.settings.logger.warning("%s could not give back %s: %s", self.settings.name, message.id, error)

    def look_again(self) -> None:
        self._tell_who_waits()
        self._more_is_ready()

    def _count_down(self, partition: tuple[str, int]) -> None:
        if partition in self._paused:
            self._paused[partition] -= 1
            if self._paused[partition] <= self._resume_at[partition]:
                del self._paused[partition]
                self.subscription.resume(frozenset((partition,)))
                self._make_room()

    # --- partitions that move -------------------------------------------------------------------------

    async def on_change(self, change: Change) -> None:
        """Partitions that leave are finished and acknowledged before this returns, unless they are lost already."""
        if isinstance(change, Assigned):
            return
        self._drop(change.partitions)
        if isinstance(change, Lost):
            self._finished[:] = [one for one in self._finished if _partition(one) not in change.partitions]
        else:
            await self._drain(change.partitions)
        if self._watermark is not None:
            self._watermark.drop(change.partitions)
        self._make_room()

    async def _drain(self, partitions: Partitions) -> None:
        """Finish and acknowledge what is being handled of these, and what is being acknowledged."""
        while self._acknowledging or self._handles_any_of(partitions):
            self._revoking, self._tell_below = asyncio.get_running_loop().create_future(), _ALWAYS
            await self._revoking
        self._revoking = None
        self._drop(partitions)  # what failed meanwhile waits for an attempt that others will make
        await self.acknowledge(())

    def _drop(self, partitions: Partitions) -> None:
        """Forget what is not being handled."""
        for partition in partitions:
            self._paused.pop(partition, None)
        self._held -= len(self._lineup.drop(partitions))
        for message in [message for message in self._parked if _partition(message) in partitions]:
            self._parked.pop(message)[0].cancel()
            self._held -= 1
            self._lineup.settled(message)

    def _handles_any_of(self, partitions: Partitions) -> bool:
        return any(_partition(message) in partitions for message in self._handled())

    def _handled(self) -> Iterator[Message]:
        """What is being handled."""
        for work in self._running:
            yield from (work,) if isinstance(work, Message) else work or ()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _behind(released: Sequence[Message], acknowledged: Sequence[Message]) -> list[Message]:
    """Those that stand behind all that is acknowledged of their partition: an acknowledgement never goes back."""
    known, behind, covered = {one._delivery or one for one in acknowledged}, list[Message](), set[tuple[str, int]]()
    for message in reversed(released):
        if message in known:
            covered.add(_partition(message))
        if _partition(message) not in covered:
            behind.append(message)
    return behind[::-1]


def _partition(message: Message) -> tuple[str, int]:
    return (message.topic, message.partition or 0)


async def _all_or_first_failure(tasks: Sequence[asyncio.Task[None]]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
