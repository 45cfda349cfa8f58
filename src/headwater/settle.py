"""What becomes of a message: its handler is called, and it is done, tried again, or a dead letter.

The only place that logs the failures of handlers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec

from .clock import Clock
from .engine import Capabilities, Subscription
from .errors import (
    BatchError,
    ConfigurationError,
    DecodeError,
    Reject,
    RetryLater,
    Signal,
    Skip,
    StopApp,
    StopConsuming,
    TopicNotFoundError,
)
from .handler import Call, Handler
from .letters import dead_letter, described, retried
from .message import DEADLINE, ONLY_GROUP, REPLY_TO, Message, Outgoing
from .results import failure_reply, reply
from .retry import LONG_WAIT, Again, Dead, Retry, judge
from .topics import dead_topic, match, retry_topic

if TYPE_CHECKING:
    from .broker import Broker

AckMode = Literal["auto", "manual", "on_receive"]
DeadLetterTo = bool | str | tuple["Broker", str]
Messages = tuple[Message, ...]

DEATHS_ALLOWED: Final = 2  # a message that was received when its process died may not have been begun
DELIVERIES_ALLOWED: Final = 10  # the same where being received and given back counts, at each restart

_FATE = {  # of what is given up, by whether it has dead letters and whether its engine has
    (True, False): "kept as a dead letter",
    (False, True): "rejected, its engine decides what becomes of it",
    (False, False): "dropped, since it has no dead letters",
}
_NONE: Mapping[int, BaseException] = {}
_UNTIL_IT_IS_TAKEN = Retry(backoff=(0.5, 30.0))  # the wait between tries to write a dead letter


class Batch(msgspec.Struct, frozen=True):
    """Hand messages over in lists: of `size`, or what has come `wait` seconds after the first."""

    size: int = 100
    wait: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.wait < 0:
            raise ValueError(f"Batch(size={self.size}, wait={self.wait}): size is at least 1, wait at least 0 seconds")


class Route(msgspec.Struct):
    """A handler of a subscription, and what is done with its failures.

    `call` is all that happens for a message, composed at start, and gives the handler's result. Under
    `exactly_once` it has settled the message, too.
    """

    handler: Handler
    call: Call
    retry: Retry
    dead_letter: DeadLetterTo
    accepts: Callable[[Message], bool | Awaitable[bool]] | None = None
    failed: int = 0
    """Attempts that failed, and were to be repeated or not."""
    gave_up: int = 0
    """Messages that got no further attempt."""


class Settings(msgspec.Struct, kw_only=True):
    """How one subscription is worked on, resolved at start."""

    name: str
    topics: tuple[str, ...]
    routes: Sequence[Route]
    send: Callable[[Sequence[Outgoing]], Awaitable[Any]]
    prepare: Callable[[Sequence[Outgoing]], Awaitable[Sequence[Outgoing]]]
    logger: logging.Logger
    clock: Clock
    capabilities: Capabilities
    group: str | None = None
    concurrency: int = 1
    prefetch: int = 1000
    ordered: bool = False
    batch: Batch | None = None
    ack: AckMode = "auto"
    exactly_once: bool = False
    retry_through_topic: bool = False
    stop_app: Callable[[], None]
    gave_up: Callable[[Message, BaseException], None] | None = None


class Loop(Protocol):
    """What settling asks of the loop that received the messages."""

    subscription: Subscription

    @property
    def cancelling(self) -> bool:
        """Whether what is in work is being cancelled."""
        ...

    def finish(self, message: Message) -> None:
        """This one is over: acknowledge it soon."""
        ...

    def forget(self, *messages: Message) -> None:
        """These are over, and acknowledged already."""
        ...

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """Acknowledge these now, and what was to be acknowledged soon."""
        ...

    async def commit(self, messages: Sequence[Message], sends: Sequence[Outgoing]) -> None:
        """Acknowledge these and send those in one transaction; they are over."""
        ...

    def park(self, message: Message, delay: float) -> None:
        """Handle this one again after `delay` seconds."""
        ...

    async def pause(self, delay: float) -> None:
        """Wait in place for `delay` seconds. Raises CancelledError once the loop stops, at once if it has."""
        ...

    def look_again(self) -> None:
        """Something was settled outside the lanes: they may have work."""
        ...

    def stop_soon(self) -> None:
        """Receive nothing more."""
        ...


class Settler:
    """Has messages handled and settles them. Settles by hand, too: it is what `Message.ack` acts on."""

    def __init__(self, settings: Settings, loop: Loop) -> None:
        self.settings = settings
        self.loop = loop
        self._only = settings.routes[0] if len(settings.routes) == 1 and not settings.routes[0].accepts else None
        self._acks_itself = settings.ack != "auto"
        attempts = max(route.retry.attempts for route in settings.routes) + (settings.batch is not None)
        proof = DELIVERIES_ALLOWED if settings.capabilities.counts_unbegun else DEATHS_ALLOWED
        self._deaths_allowed = max(proof, attempts)
        self._is_special = self._acks_itself or settings.exactly_once
        self._open: set[Message] = set()  # handed to a manual handler, not settled by it yet
        self._committed: set[Message] = set()  # in a transaction, while their handler's clean-up still runs
        self._refused: dict[Message, Mapping[Message, Exception]] = {}  # by the first of a batch, what it goes without
        self._warned = False

    # --- one message ----------------------------------------------------------------------------------

    async def process(self, message: Message) -> None:
        """Handle one message and settle it. Nothing escapes but the cancellation of this worker."""
        route = self._only
        special = message.attempt > 1 or message.headers.control or self._is_special
        try:
            if special and await self._prepare(message):
                return
            if route is None:
                route = await self._choose(message)
            result = await route.call(message)
            if special and _wants_reply(message) and not self.settings.exactly_once:
                await self.settings.send([reply(message, result)])
        except (Exception, asyncio.CancelledError) as error:
            if self._is_cancelled(error):
                raise
            await self._failed(message, route or self.settings.routes[0], error)
        else:
            if special:
                self._succeeded(message)
            else:
                self.loop.finish(message)

    async def _prepare(self, message: Message) -> bool:
        """What some messages need before their handler; True when that settled them."""
        settings, headers = self.settings, message.headers
        if headers.get(ONLY_GROUP, settings.group) != settings.group or self._expired(message, 0.0):
            self.loop.finish(message)
            return True
        if message.attempt > 1:
            if message.attempt > self._deaths_allowed and not message._called:
                raise Reject("its process died each time it was handled")
            if settings.capabilities.counts_unbegun and not message._called:
                message.attempt -= (message._delivery or message).attempt - 1  # deliveries, not calls of the handler
            if message.attempt > 1:
                self._begin(message)
        if settings.ack == "on_receive":
            await self.loop.acknowledge([message])
        elif settings.ack == "manual":
            message._settlement = self
            self._open.add(message)
        return False

    def _begin(self, message: Message) -> None:
        """Note the attempt with the source, without those that were only deferred: nobody died over them."""
        attempt = message.attempt
        message.attempt -= message._deferred
        self.loop.subscription.begin(message)
        message.attempt = attempt

    async def _choose(self, message: Message) -> Route:
        for route in self.settings.routes:
            accepted = True if route.accepts is None else route.accepts(message)
            if isinstance(accepted, Awaitable):
                accepted = await accepted
            if accepted:
                return route
        raise Reject("no handler takes it")

    async def commit(
        self, messages: Messages, result: Any, sends: list[Outgoing], failed: Mapping[int, BaseException] = _NONE
    ) -> None:
        """Acknowledge and send in one transaction, with dead letters for the members that failed for good.

        Raises BatchError, and commits nothing, while one of them may be tried again: a partition is committed
        without gaps, so then the whole batch is.
        """
        route, refused = self.settings.routes[0], self._refused.get(messages[0], {})
        for message, error in [*((messages[index], error) for index, error in failed.items()), *refused.items()]:
            verdict = judge(error, message.attempt, route.retry)
            if isinstance(verdict, Again):
                raise BatchError(failed)
            self._log(route, message, error, verdict)
            sends += self._in_its_place(message, route, error, verdict.reason)
        sends += [
            reply(message, result)
            for index, message in enumerate(messages)
            if _wants_reply(message) and index not in failed
        ]
        settled = (*messages, *refused)
        await self.loop.commit(settled, await self.settings.prepare(sends))
        self._committed.update(settled)

    # --- a batch --------------------------------------------------------------------------------------

    async def process_batch(self, messages: Messages) -> None:
        """Handle some messages together. One that cannot be decoded goes to the dead letters alone."""
        route = self.settings.routes[0]
        ready, refused = await self._sort_out(messages, route)
        if refused and not (ready and self.settings.exactly_once):
            for message, error in refused.items():
                await self._failed(message, route, error)
            refused = {}
        if not ready:
            return
        together = ready
        if refused:
            waiting = {*ready, *refused}
            together = [message for message in messages if message in waiting]
        try:
            self._refused[ready[0]] = refused
            await route.call(tuple(ready))
        except BatchError as error:
            if self.settings.exactly_once:
                await self._batch_failed(together, route, error, refused)
                return
            delay = route.retry.delay(ready[0].attempt)
            for index, message in enumerate(ready):
                if index in error.failed:
                    await self._failed(message, route, error.failed[index], delay)
                elif not self._is_settled(message):
                    self._over(message)
        except (Exception, asyncio.CancelledError) as error:
            if self._is_cancelled(error):
                raise
            await self._batch_failed(together, route, error, refused)
        else:
            for message in together:
                self._succeeded(message)
        finally:
            self._refused.pop(ready[0], None)

    def _succeeded(self, message: Message) -> None:
        if self._acks_itself:
            self._handled(message)
        elif self.settings.exactly_once:
            self._committed.discard(message)
        else:
            self.loop.finish(message)

    async def _sort_out(self, messages: Messages, route: Route) -> tuple[list[Message], dict[Message, Exception]]:
        """Those the handler gets, and those it cannot get with the reason; the rest is settled."""
        ready: list[Message] = []
        refused: dict[Message, Exception] = {}
        for message in messages:
            try:
                if not await self._prepare(message):
                    message._decode = route.handler.decode
                    _ = message.value
                    ready.append(message)
            except (DecodeError, Reject) as error:
                refused[message] = error
        return ready, refused

    async def _batch_failed(
        self, messages: list[Message], route: Route, error: BaseException, refused: Mapping[Message, Exception]
    ) -> None:
        """All are tried again, together and so in order.

        Those whose attempts are exhausted come back one by one (see `Worker`), so that the bad one stands alone.
        """
        open_ones = [message for message in messages if not self._is_settled(message)]
        judged_alone = len(open_ones) <= 1 or isinstance(error, (Signal, DecodeError))
        if judged_alone or not isinstance(error, route.retry.on):
            for message in messages:
                await self._failed(message, route, refused.get(message, error))
            return
        attempt = open_ones[0].attempt
        delay = route.retry.delay(attempt)
        text = "%s failed on a batch of %d, attempt %d: %s; %s in %.3g s"
        how = "again" if attempt < route.retry.attempts else "one by one"
        self.settings.logger.warning(text, route.handler.name, len(open_ones), attempt, described(error), how, delay)
        for message in open_ones:
            self._again(message, delay)

    # --- failures -------------------------------------------------------------------------------------

    def _is_cancelled(self, error: BaseException) -> bool:
        """Whether this is the loop cancelling us. A cancellation that a handler made up is a failure like others."""
        if not isinstance(error, asyncio.CancelledError) or self.loop.cancelling:
            return isinstance(error, asyncio.CancelledError)
        task = asyncio.current_task()
        while task is not None and task.cancelling():
            task.uncancel()
        return False

    async def _failed(self, message: Message, route: Route, error: BaseException, delay: float | None = None) -> None:
        """What a handler raised ends here. With `delay` a retry waits so long, whatever the policy says."""
        if self._is_settled(message):
            self._committed.discard(message)
            self.settings.logger.error("%s failed after it settled %s", route.handler.name, message.id, exc_info=error)
            return
        if isinstance(error, (Skip, StopConsuming, StopApp)):
            self._over(message)
            if not isinstance(error, Skip):
                self.loop.stop_soon()
            if isinstance(error, StopApp):
                self.settings.stop_app()
            return
        verdict = judge(error, message.attempt, route.retry)
        if isinstance(error, RetryLater):
            message._deferred += 1
        elif isinstance(verdict, Again) and delay is not None:
            verdict = Again(delay)
        if isinstance(verdict, Again) and self._expired(message, verdict.delay):
            verdict = Dead("nobody waits for the reply any more")
        self._log(route, message, error, verdict)
        if isinstance(verdict, Dead):
            await self._give_up(message, route, error, verdict.reason)
        elif verdict.delay > LONG_WAIT and self.settings.retry_through_topic:
            await self._replace(message, [retried(message, self._retry_topic(message), verdict.delay)])
        else:
            self._again(message, verdict.delay)

    def _again(self, message: Message, delay: float) -> None:
        self._open.discard(message)
        message.attempt += 1
        message._called = True
        message._value = msgspec.UNSET  # the handler may have changed the value it was given
        message._decode = None  # filters read it untyped
        self.loop.park(message, delay)

    async def _give_up(self, message: Message, route: Route, error: BaseException, reason: str) -> None:
        """Write the dead letter, tell who asked, and only then let go of the message."""
        if isinstance(route.dead_letter, tuple):
            broker, topic = route.dead_letter
            await self._until_taken(message, [dead_letter(message, topic, reason, error)], broker.send)
        rejected = reason if self._is_rejected(route) else None
        await self._replace(message, self._in_its_place(message, route, error, reason), rejected)
        if self.settings.gave_up is not None and not isinstance(error, (Signal, DecodeError)):
            self.settings.gave_up(message, error)

    def _in_its_place(self, message: Message, route: Route, error: BaseException, reason: str) -> list[Outgoing]:
        """What is sent when a message is given up."""
        instead = [failure_reply(message, error)] if _wants_reply(message) else []
        if route.dead_letter is True:
            instead.append(dead_letter(message, dead_topic(message.topic), reason, error))
        elif isinstance(route.dead_letter, str):
            instead.append(dead_letter(message, route.dead_letter, reason, error))
        return instead

    def _is_rejected(self, route: Route) -> bool:
        """Whether what is given up is left to the engine, which has dead letters of its own."""
        settings = self.settings
        return route.dead_letter is False and settings.capabilities.reject and settings.ack != "on_receive"

    async def _replace(self, message: Message, sends: list[Outgoing], rejected: str | None = None) -> None:
        """Send these in place of the message, and only then let go of it: reject it for that reason, or acknowledge."""
        if self.settings.exactly_once:
            await self._until_taken(message, sends, partial(self._commit_one, message))
            return
        if sends:
            await self._until_taken(message, sends, self.settings.send)
        if rejected is None:
            self._over(message)
        else:
            await self._reject(message, rejected)

    async def _commit_one(self, message: Message, sends: Sequence[Outgoing]) -> None:
        await self.loop.commit((message,), await self.settings.prepare(sends))

    async def _reject(self, message: Message, reason: str) -> None:
        self._open.discard(message)
        try:
            await self.loop.subscription.reject([message._delivery or message], reason)
        except Exception as error:
            self.settings.logger.error("cannot reject %s, it will come again: %s", message.id, described(error))
        self.loop.forget(message)

    async def _until_taken(
        self, message: Message, sends: Sequence[Outgoing], send: Callable[[Sequence[Outgoing]], Awaitable[Any]]
    ) -> None:
        """Send what becomes of the message. While that is not taken the message is not acknowledged: try on."""
        for tries in itertools.count(1):
            try:
                await send(sends)
                return
            except Exception as error:
                answers = [outgoing for outgoing in sends if outgoing.topic == message.reply_to]
                if answers and isinstance(error, ConfigurationError | TopicNotFoundError):
                    self.settings.logger.error("%s cannot be answered: %s", message.id, error)
                    sends = [outgoing for outgoing in sends if outgoing not in answers]
                    continue
                delay = _UNTIL_IT_IS_TAKEN.delay(tries)
                self.settings.logger.error(
                    "cannot publish to %s what becomes of %s: %s; again in %.3g s, it stays unacknowledged",
                    ", ".join(outgoing.topic for outgoing in sends),
                    message.id,
                    described(error),
                    delay,
                )
                await self.loop.pause(delay)

    def _over(self, message: Message) -> None:
        self._open.discard(message)
        if self.settings.ack == "on_receive":
            self.loop.forget(message)
        else:
            self.loop.finish(message)

    def _expired(self, message: Message, delay: float) -> bool:
        """Whether this is a request that nobody waits for, in `delay` seconds from now."""
        deadline = message.headers.get(DEADLINE) if message.headers.control else None
        if deadline is None:
            return False
        try:
            return self.settings.clock.time() + delay > float(deadline)
        except ValueError:
            return False  # some other program's header: no deadline

    def _retry_topic(self, message: Message) -> str:
        topics = self.settings.topics
        declared = next((topic for topic in topics if match(topic, message.topic) is not None), message.topic)
        return retry_topic(declared, self.settings.group or "")

    def _log(self, route: Route, message: Message, error: BaseException, verdict: Again | Dead) -> None:
        """A failure, counted: a warning while it will be tried again, an error with a traceback in the end."""
        route.failed += not isinstance(error, RetryLater)
        route.gave_up += isinstance(verdict, Dead)
        logger, handler = self.settings.logger, route.handler.name
        if isinstance(error, RetryLater):
            logger.debug("%s wants %s again in %.3g s", handler, message.id, error.delay)
        elif isinstance(verdict, Again):
            text = "%s failed on %s, attempt %d: %s; again in %.3g s"
            logger.warning(text, handler, message.id, message.attempt, described(error), verdict.delay)
        else:
            logger.error(
                "%s gave up %s after %d attempt(s), %s: %s; %s",
                handler,
                message.id,
                message.attempt,
                verdict.reason,
                described(error),
                _FATE[bool(route.dead_letter), self._is_rejected(route)],
                exc_info=None if isinstance(error, (Signal, DecodeError)) else error,
            )

    # --- settling by hand -----------------------------------------------------------------------------

    def _is_settled(self, message: Message) -> bool:
        """Whether what is raised now comes too late to change anything."""
        return message in self._committed or (self.settings.ack == "manual" and message not in self._open)

    def owes(self, message: Message, *, begun: bool) -> bool:
        """Whether the source still waits to hear what became of this one; `begun` says that its handler runs."""
        if self.settings.ack == "on_receive":
            return not (begun or message._called)
        return not (begun and self._is_settled(message))

    def _handled(self, message: Message) -> None:
        if self.settings.ack == "on_receive":
            self.loop.forget(message)
        elif message in self._open and not self._warned:
            self._warned = True
            self.settings.logger.warning(
                "%s returned without settling %s: it stays unacknowledged until message.ack(), nack() or reject()",
                self.settings.name,
                message.id,
            )

    def _close(self, message: Message) -> None:
        if message not in self._open:
            raise RuntimeError(f"{message.id} is settled already")
        self._open.discard(message)

    async def ack(self, message: Message) -> None:
        self._close(message)
        self.loop.finish(message)
        await self.loop.acknowledge(())
        self.loop.look_again()

    async def nack(self, message: Message, delay: float | None) -> None:
        route = self._only or await self._choose(message)
        self._close(message)
        message._deferred += 1
        self._again(message, route.retry.delay(message.attempt) if delay is None else delay)

    async def reject(self, message: Message, reason: str) -> None:
        route = self._only or await self._choose(message)
        self._close(message)
        await self._give_up(message, route, Reject(reason), reason or "rejected")
        await self.loop.acknowledge(())
        self.loop.look_again()

    async def extend(self, message: Message) -> None:
        await self.loop.subscription.extend([message])


def _wants_reply(message: Message) -> bool:
    return message.headers.control and REPLY_TO in message.headers
