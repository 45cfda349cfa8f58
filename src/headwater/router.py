"""Handlers as declared, with no broker yet."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NoReturn, TypeVar

import msgspec

from .codecs import Codec
from .depends import resolve_hints
from .engine import Start
from .errors import ConfigurationError
from .handler import Middleware
from .message import HeadersLike, Message
from .order import OrderBy
from .results import KeyOf, Publisher
from .retry import ONCE, Retry
from .settle import AckMode, Batch, DeadLetterTo

F = TypeVar("F", bound=Callable[..., Any])
Filter = Callable[[Message], bool | Awaitable[bool]]


class Subscriber(msgspec.Struct, frozen=True, kw_only=True):
    """A function and the messages it wants, as `Router.subscriber` was told."""

    function: Callable[..., Any]
    topics: tuple[str, ...]
    group: str | None
    broadcast: bool
    start: Start
    concurrency: int
    order_by: OrderBy | None
    exclusive: bool
    batch: Batch | None
    ack: AckMode
    exactly_once: bool
    retry: Retry
    dead_letter: DeadLetterTo
    filter: Filter | None
    middleware: tuple[Middleware, ...]
    dependencies: tuple[Any, ...]
    codec: Codec | None
    title: str | None
    description: str | None
    options: tuple[Any, ...]
    hints: dict[str, Any] | None = None


Declared = tuple[Subscriber, tuple[Publisher, ...]]
Homeless = tuple[Callable[..., Any], Publisher]


class Router:
    """Handlers with no broker: declare here, include in an app, run on any engine.

    The prefix is put before the topics of the subscribers and publishers declared on it; middleware and
    dependencies go around and before those of its subscribers. Routers nest, prefixes concatenate.
    """

    def __init__(
        self, prefix: str = "", *, middleware: Sequence[Middleware] = (), dependencies: Sequence[Any] = ()
    ) -> None:
        self.prefix = prefix
        self.middleware = tuple(middleware)
        self.dependencies = tuple(dependencies)
        self._subscribers: list[Subscriber] = []
        self._publishers: list[tuple[Callable[..., Any], Publisher]] = []
        self._routers: list[Router] = []

    def subscriber(
        self,
        *topics: str,
        group: str | None = None,
        broadcast: bool = False,
        start: Start = "latest",
        concurrency: int = 1,
        order_by: OrderBy | None = None,
        exclusive: bool = False,
        batch: Batch | None = None,
        ack: AckMode = "auto",
        exactly_once: bool = False,
        retry: Retry | None = Retry(),
        dead_letter: DeadLetterTo | None = None,
        filter: Filter | None = None,
        middleware: Sequence[Middleware] = (),
        dependencies: Sequence[Any] = (),
        codec: Codec | None = None,
        title: str | None = None,
        description: str | None = None,
        options: Sequence[Any] = (),
    ) -> Callable[[F], F]:
        """Have the decorated function handle the messages of `topics`. It stays the function it was.

        Args:
            topics: names, which may carry fields: `"orders.{region}.created"` matches any region and fills a
                parameter `region`; `{rest:path}` matches all levels that follow.
            group: those of one group share the messages and their position is kept; by default the app's name.
            broadcast: every process gets every message from now on; nothing is kept or acknowledged.
            start: where a new group begins: "latest", "earliest", an offset or an aware datetime.
            concurrency: how many messages are handled beside each other in this process.
            order_by: keeps the messages of one "key", one "partition" or one value of a function in order. With
                `concurrency=1` the messages of a partition are in order without asking.
            exclusive: one process of the group gets everything while it lives.
            batch: hand over lists of messages.
            ack: "auto" after the handler and what it published succeeded, "on_receive" before (at most once), or
                "manual" through `message.ack()` and its siblings.
            exactly_once: acknowledge and publish the results in one transaction, where the engine can.
            retry: what is done about exceptions; None calls once.
            dead_letter: where to put what cannot be handled: True is `<topic>.dead`, a str another topic, a pair
                `(broker, topic)` one on another broker of the app, False nowhere: it is logged and dropped, or left
                to an engine that has dead letters of its own. By default True, for a broadcast False.
            filter: takes the Message, says whether this handler wants it; the first that does gets it.
            middleware: `async def mw(message, call_next)`, the first outermost.
            dependencies: called before each message for their effect.
            codec: decodes bodies whatever their content type says.
            title: for the documentation; by default the function's name.
            description: for the documentation; by default the function's docstring.
            options: per engine, such as `Kafka(...)`; those of other engines are ignored.

        Raises:
            ConfigurationError: options that contradict each other, here or at start.
        """
        if not topics:
            raise ConfigurationError("subscriber() needs at least one topic")
        if concurrency < 1:
            raise ConfigurationError(f"subscriber(concurrency={concurrency}): it is at least 1")
        if broadcast and (group is not None or exclusive or exactly_once):
            raise ConfigurationError("subscriber(broadcast=True) keeps no position: it takes no group, no exclusive")
        if exactly_once and ack != "auto":
            raise ConfigurationError("subscriber(exactly_once=True) acknowledges in its transaction: leave out ack")
        if dead_letter is None:
            dead_letter = not broadcast
        caller = sys._getframe(1).f_locals

        def declare(function: F) -> F:
            self._subscribers.append(
                Subscriber(
                    function=function,
                    topics=topics,
                    group=group,
                    broadcast=broadcast,
                    start=start,
                    concurrency=concurrency,
                    order_by=order_by,
                    exclusive=exclusive,
                    batch=batch,
                    ack=ack,
                    exactly_once=exactly_once,
                    retry=retry or ONCE,
                    dead_letter=dead_letter,
                    filter=filter,
                    middleware=tuple(middleware),
                    dependencies=tuple(dependencies),
                    codec=codec,
                    title=title,
                    description=description or inspect.getdoc(function),
                    options=tuple(options),
                    hints=_early_hints(function, caller),
                )
            )
            return function

        return declare

    def publisher(
        self,
        *topics: str,
        key: KeyOf | None = None,
        headers: HeadersLike | None = None,
        codec: Codec | None = None,
        when: Callable[[Any], bool] | None = None,
        title: str | None = None,
        description: str | None = None,
        options: Sequence[Any] = (),
    ) -> Callable[[F], F]:
        """Publish what the decorated handler returns to `topics`. None returned publishes nothing.

        Stackable, above or below `subscriber`. A generator publishes each item it yields.

        Args:
            topics: names; fields are taken from the incoming message's topic.
            key: for all results, or a function of the result; by default the incoming message's key.
            headers: added to each message.
            codec: writes the results.
            when: takes the result, says whether it is published here.
            title: for the documentation.
            description: for the documentation.
            options: per engine; those of other engines are ignored.
        """
        if not topics:
            raise ConfigurationError("publisher() needs at least one topic")

        def declare(function: F) -> F:
            for topic in topics:
                publisher = Publisher(
                    topic=topic,
                    key=key,
                    headers=headers,
                    codec=codec,
                    when=when,
                    title=title,
                    description=description,
                    options=tuple(options),
                )
                self._publishers.append((function, publisher))
            return function

        return declare

    def include_router(self, router: Router) -> None:
        """Take in all that is declared on `router`, now and until the app starts."""
        self._routers.append(router)

    def declared(self) -> list[Declared]:
        """All subscribers with the publishers of their functions.

        Raises ConfigurationError for a publisher on a function that subscribes to nothing.
        """
        declared, homeless = self.gather()
        for stray in homeless:
            refuse(*stray)
        return declared

    def gather(self) -> tuple[list[Declared], list[Homeless]]:
        """All subscribers with the publishers of their functions, and the publishers whose function has none here.

        Prefixes and middleware are applied. A publisher belongs to the subscribers of its function on the same router
        and on those included in it; one whose function has none there to those of the nearest router around it.
        """
        declared: list[Declared] = [(subscriber, ()) for subscriber in self._subscribers]
        publishers = list(self._publishers)
        for router in self._routers:
            below, homeless = router.gather()
            declared += below
            publishers += homeless
        known = {subscriber.function for subscriber, _ in declared}
        homeless = [(function, self._addressed(it)) for function, it in publishers if function not in known]
        return [
            (
                self._around(subscriber),
                tuple(self._addressed(it) for it in (*own, *publishers_of(subscriber, publishers))),
            )
            for subscriber, own in declared
        ], homeless

    def _around(self, subscriber: Subscriber) -> Subscriber:
        return msgspec.structs.replace(
            subscriber,
            topics=tuple(self.prefix + topic for topic in subscriber.topics),
            middleware=self.middleware + subscriber.middleware,
            dependencies=self.dependencies + subscriber.dependencies,
        )

    def _addressed(self, publisher: Publisher) -> Publisher:
        return msgspec.structs.replace(publisher, topic=self.prefix + publisher.topic)


def publishers_of(subscriber: Subscriber, publishers: Sequence[Homeless]) -> list[Publisher]:
    """Those on the function of this subscriber."""
    return [publisher for function, publisher in publishers if function is subscriber.function]


def refuse(function: Callable[..., Any], publisher: Publisher) -> NoReturn:
    """Raise ConfigurationError: this publisher is on a function that subscribes to nothing."""
    raise ConfigurationError(
        f"{getattr(function, '__qualname__', function)} publishes to {publisher.topic!r} but subscribes to "
        f"nothing here: add @subscriber(...), or include the router that has it"
    )


def _early_hints(function: Callable[..., Any], local: dict[str, Any]) -> dict[str, Any] | None:
    """The annotations while the names around the function can still be seen; None if some come later."""
    try:
        return resolve_hints(function, local)
    except NameError:
        return None
