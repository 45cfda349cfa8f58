"""Subscribers that share one subscription, resolved for an engine: who takes which message, and how."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import msgspec

from .depends import Environment, scoped
from .engine import Ack, Capabilities, Engine, Source, Subscription, Topic
from .errors import ConfigurationError, NotSupportedError
from .handler import Call, Handler, compose, named
from .message import TYPE, Message, Outgoing
from .order import line_up
from .results import Publisher, publishing, transacting
from .router import Filter, Subscriber
from .settle import Route, Settings
from .topics import is_pattern, match, retry_topic
from .worker import Worker

if TYPE_CHECKING:
    from .broker import Broker

Declared = Sequence[tuple[Subscriber, tuple[Publisher, ...]]]
Sends = Callable[[Sequence[Outgoing]], Awaitable[Any]]
Watch = Callable[[Handler, Call], Call]

_SHARED = ("start", "concurrency", "order_by", "exclusive", "batch", "ack", "exactly_once", "options")


class Consumer:
    """One subscription of an app: its source, and the handlers that share it.

    A Consumer is made when its app starts; `compile` may be called again while it runs, for a test that
    replaces a dependency.
    """

    def __init__(self, app: str, declared: Declared) -> None:
        first = declared[0][0]
        self.declared = declared
        self.subscriber = first
        self.group = None if first.broadcast else first.group or app
        self.client = app
        self.topics = first.topics
        self.name = ", ".join(dict.fromkeys(_name(subscriber) for subscriber, _ in declared))
        self.routes: list[Route] = []
        self.handlers: list[Handler] = []
        self._worker: Worker
        for subscriber, _publishers in declared:
            for option in _SHARED:
                if getattr(subscriber, option) != getattr(first, option):
                    raise ConfigurationError(
                        f"{_name(subscriber)} and {_name(first)} share one subscription ({self.where}), so they must "
                        f"agree on {option}: {getattr(subscriber, option)!r} and {getattr(first, option)!r}"
                    )
        if first.batch is not None and (len(declared) > 1 or first.filter is not None):
            raise ConfigurationError(f"{self.name}: a batch has one handler without a filter ({self.where})")
        if first.exactly_once and first.order_by not in (None, "partition"):
            raise ConfigurationError(
                f"{self.name}: exactly_once commits each partition in order: leave out order_by={first.order_by!r}"
            )

    @property
    def where(self) -> str:
        return f"group {self.group!r}, topics {', '.join(self.topics)}" if self.group else ", ".join(self.topics)

    def source(self, capabilities: Capabilities | None = None) -> Source:
        """What is asked of the engine; with its capabilities known, with the retry topics."""
        first = self.subscriber
        retry = () if capabilities is None or not self._retries_through_topic(capabilities) else self.retry_topics()
        return Source(
            topics=self.topics + retry,
            group=self.group,
            start=first.start,
            exclusive=first.exclusive,
            exactly_once=first.exactly_once,
            prefetch=self.prefetch,
            client=self.client,
            options=first.options,
        )

    @property
    def prefetch(self) -> int:
        first = self.subscriber
        return max(1000, 2 * first.concurrency * (first.batch.size if first.batch else 1))

    def retry_topics(self) -> tuple[str, ...]:
        return tuple(retry_topic(topic, self.group or "") for topic in self.topics)

    def _ordered(self, capabilities: Capabilities) -> bool:
        first = self.subscriber
        return first.order_by is not None or first.exactly_once or (first.concurrency == 1 and capabilities.partitions)

    def _retries_through_topic(self, capabilities: Capabilities) -> bool:
        return bool(self.group) and capabilities.delayed_send and not self._ordered(capabilities)

    def check(self, engine: Engine) -> Capabilities:
        """Raise NotSupportedError for what the engine cannot do. Pure: before anything is connected."""
        first, name = self.subscriber, engine.name
        capabilities = engine.capabilities(self.source())
        demands = {
            "groups": (self.group is not None, "give the subscriber broadcast=True"),
            "patterns": (any(is_pattern(topic) for topic in self.topics), "name each topic"),
            "exclusive": (first.exclusive, "leave out exclusive=True"),
            "atomic_commit": (first.exactly_once, "exactly_once=True needs memory, local or Kafka"),
            "replay": (first.start != "latest", "it keeps nothing to start from: leave out start"),
        }
        if first.order_by is not None and self.group and not (capabilities.keys or capabilities.exclusive):
            raise NotSupportedError(name, f"order_by ({self.name})", "it has neither keys nor a single active consumer")
        for capability, (wanted, hint) in demands.items():
            if wanted and not getattr(capabilities, capability):
                raise NotSupportedError(name, f"{capability} ({self.name})", hint)
        for topic in self.topics:
            if not is_pattern(topic):
                engine.check_topic(topic)
        for broker, destination in self.destinations():
            if not is_pattern(destination.name):
                (engine if broker is None else broker.engine).check_topic(destination.name)
        self._check_dead_letters(engine)
        self._check_acknowledgements(name, capabilities)
        return capabilities

    def destinations(self) -> Iterator[tuple[Broker | None, Topic]]:
        """The topics that results and dead letters are published to, as far as they are named.

        Each with its broker, if that is another than the one this consumer reads from.
        """
        for subscriber, publishers in self.declared:
            yield from ((one.broker, Topic(one.topic, options=one.options)) for one in publishers)
            if isinstance(subscriber.dead_letter, str):
                yield None, Topic(subscriber.dead_letter)
            elif isinstance(subscriber.dead_letter, tuple):
                broker, name = subscriber.dead_letter
                yield broker, Topic(name)

    def _check_dead_letters(self, engine: Engine) -> None:
        """An engine that stores nothing would lose them: one that not even a group can acknowledge to."""
        source = msgspec.structs.replace(self.source(), group=self.group or self.client)
        stores = engine.capabilities(source).ack is not Ack.NONE
        for subscriber, _ in self.declared:
            if subscriber.dead_letter and not isinstance(subscriber.dead_letter, tuple) and not stores:
                hint = "it stores nothing: give dead_letter=False, or (broker, topic) with a broker that does"
                raise NotSupportedError(engine.name, f"dead letters ({_name(subscriber)})", hint)

    def _check_acknowledgements(self, engine: str, capabilities: Capabilities) -> None:
        """A transaction binds what one engine does; what is acknowledged up to an offset is begun in its order."""
        first = self.subscriber
        for subscriber, publishers in self.declared:
            elsewhere = isinstance(subscriber.dead_letter, tuple) or any(publisher.broker for publisher in publishers)
            if first.exactly_once and elsewhere:
                raise ConfigurationError(f"{_name(subscriber)}: exactly_once=True cannot span a second broker")
        if first.ack == "on_receive" and capabilities.ack is Ack.UP_TO and first.order_by not in (None, "partition"):
            hint = "it acknowledges up to an offset, and another order begins what stands behind it: leave out order_by"
            raise NotSupportedError(engine, f"order_by with ack='on_receive' ({self.name})", hint)

    def compile(self, environment: Environment, send: Sends, watch: Watch | None = None) -> None:
        """Resolve the signatures and compose what happens for a message. Raises ConfigurationError.

        With `watch` each handler's call is replaced by what it gives for it.
        """
        if not self.handlers:
            self.handlers = [_handler(subscriber) for subscriber, _ in self.declared]
            self.routes = [
                Route(handler, handler.call, subscriber.retry, subscriber.dead_letter)
                for handler, (subscriber, _) in zip(self.handlers, self.declared, strict=True)
            ]
        shares_value = len(self.declared) > 1 or bool(self.subscriber.filter)
        for route, handler, (subscriber, publishers) in zip(self.routes, self.handlers, self.declared, strict=True):
            handler.compile(environment, shares_value=shares_value or bool(subscriber.middleware))
            if watch is not None:
                handler.call = watch(handler, handler.call)
            call = self._compose(handler, subscriber, publishers, send)
            route.call = named(call) if environment.named_in_logs else call
        self._tell_apart()

    def _compose(
        self,
        handler: Handler,
        subscriber: Subscriber,
        publishers: tuple[Publisher, ...],
        send: Sends,
    ) -> Call:
        for publisher in publishers:
            publisher.check(handler.name, subscriber.topics, batch=subscriber.batch is not None)
        call = compose(subscriber.middleware, handler.call)
        if subscriber.exactly_once:
            call = transacting(call, publishers, subscriber.topics, self._commit)
        elif publishers or handler.is_generator:
            call = publishing(call, publishers, subscriber.topics, send)
        if handler.has_exits:
            call = scoped(call)
        if handler.decode is not None and handler.shares_value and subscriber.batch is None:
            call = _decoding(call, handler.decode)
        return call

    def _tell_apart(self) -> None:
        """Say of each route which messages it takes: by its filter, else by its type where there are several."""
        for route, (subscriber, _) in zip(self.routes, self.declared, strict=True):
            route.accepts = subscriber.filter
        unfiltered = [route for route in self.routes if route.accepts is None]
        if len(unfiltered) > 1:
            for route, accepts in zip(unfiltered, self._by_type(unfiltered), strict=True):
                route.accepts = accepts
        self.routes.sort(key=lambda route: route in unfiltered)  # filters first: the others take what is left

    def _by_type(self, routes: Sequence[Route]) -> list[Filter]:
        kinds = [route.handler.body for route in routes]
        tags = [_tag(kind) for kind in kinds]
        if all(tags) and len({tag[0] for tag in tags if tag}) == 1 and len(set(tags)) == len(tags):
            return [_has_tag(*tag) for tag in tags if tag]
        names = [getattr(kind, "__name__", None) for kind in kinds]
        if all(_is_model(kind) for kind in kinds) and len(set(names)) == len(names):
            return [_has_type(str(name)) for name in names]
        raise ConfigurationError(
            f"{self.name} share one subscription ({self.where}), and nothing tells their messages apart: give each a "
            f"filter=, a message type of its own, or another group="
        )

    def worker(self, engine: Engine, settings: dict[str, Any]) -> Worker:
        """A worker for one run."""
        first = self.subscriber
        capabilities = engine.capabilities(self.source())
        order_by = "partition" if first.exactly_once else first.order_by
        lineup = line_up(order_by, one_lane=first.concurrency == 1, partitioned=capabilities.partitions)
        self._worker = Worker(
            Settings(
                name=self.name,
                topics=self.topics,
                routes=self.routes,
                clock=engine.clock,
                capabilities=capabilities,
                group=self.group,
                concurrency=first.concurrency,
                prefetch=self.prefetch,
                ordered=self._ordered(capabilities),
                batch=first.batch,
                ack=first.ack,
                exactly_once=first.exactly_once,
                retry_through_topic=self._retries_through_topic(capabilities),
                **settings,
            ),
            lineup,
        )
        return self._worker

    async def _commit(
        self, messages: tuple[Message, ...], result: Any, sends: list[Outgoing], failed: Mapping[int, BaseException]
    ) -> None:
        await self._worker.settler.commit(messages, result, sends, failed)


class Running:
    """A consumer at work: its worker, with a place in a subscription."""

    def __init__(self, worker: Worker, consumer: Consumer, engine: Engine) -> None:
        self.worker, self.consumer, self.engine = worker, consumer, engine
        self.task: asyncio.Task[None]
        self.subscription: Subscription

    @property
    def at_work(self) -> bool:
        """Whether it still receives: neither failed nor ended by StopConsuming."""
        return not self.task.done()

    async def start(self, on_end: Callable[[asyncio.Task[None]], None]) -> None:
        """Returns once the place in the subscription is taken, so that no message from now on is missed."""
        capabilities = self.worker.settings.capabilities
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._work(self.consumer.source(capabilities), taken), name=self.consumer.name)
        await asyncio.wait([taken, self.task], return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        self.task.add_done_callback(on_end)

    async def _work(self, source: Source, taken: asyncio.Future[None]) -> None:
        async with self.engine.subscribe(source, self.worker.on_change) as subscription:
            self.subscription = subscription
            taken.set_result(None)
            await self.worker.run(subscription)

    async def finish(self, timeout: float, logger: logging.Logger) -> None:
        """Wait for what is in work; after `timeout` seconds cancel it, unacknowledged. Never waits twice as long."""
        _, late = await asyncio.wait([self.task], timeout=timeout)
        if late:
            logger.warning("%s did not finish within %.3g s: cancelled, unacknowledged", self.consumer.name, timeout)
            self.task.cancel()
            _, stuck = await asyncio.wait([self.task], timeout=timeout)
            if stuck:
                logger.error("%s goes on although it was cancelled: it is left behind", self.consumer.name)


def consumers_of(app: str, declared: Declared) -> list[Consumer]:
    """One consumer for each group and set of topics. Raises ConfigurationError where two overlap."""
    shared: dict[Any, list[tuple[Subscriber, tuple[Publisher, ...]]]] = {}
    for index, (subscriber, publishers) in enumerate(declared):
        place = index if subscriber.broadcast else (subscriber.group or app, frozenset(subscriber.topics))
        shared.setdefault(place, []).append((subscriber, publishers))
    consumers = [Consumer(app, together) for together in shared.values()]
    check_apart(consumers)
    return consumers


def check_apart(consumers: Sequence[Consumer]) -> None:
    """Raise ConfigurationError where two of one group want messages of one topic."""
    for index, one in enumerate(consumers):
        for other in consumers[index + 1 :]:
            if one.group is not None and one.group == other.group and _overlap(one.topics, other.topics):
                raise ConfigurationError(
                    f"{one.name} ({', '.join(one.topics)}) and {other.name} ({', '.join(other.topics)}) overlap in the "
                    f"group {one.group!r}, so each would miss messages: give one another group="
                )


def _overlap(one: Iterable[str], other: Iterable[str]) -> bool:
    return any(
        left == right or match(left, right) is not None or match(right, left) is not None
        for left in one
        for right in other
    )


def _handler(subscriber: Subscriber) -> Handler:
    return Handler(
        subscriber.function,
        subscriber.topics,
        codec=subscriber.codec,
        dependencies=subscriber.dependencies,
        hints=subscriber.hints,
        batch=subscriber.batch is not None,
    )


def _name(subscriber: Subscriber) -> str:
    return getattr(subscriber.function, "__qualname__", repr(subscriber.function))


def _decoding(call: Call, decode: Callable[[Message], Any]) -> Call:
    """The call, after the message was told how its handler decodes. A filter may have read it untyped before."""

    def call_decoding(message: Message) -> Awaitable[Any]:
        message._decode = decode
        message._value = msgspec.UNSET
        return call(message)

    return call_decoding


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and (
        hasattr(kind, "__struct_fields__")
        or hasattr(kind, "__dataclass_fields__")
        or hasattr(kind, "__pydantic_validator__")
    )


def _tag(kind: Any) -> tuple[str, Any] | None:
    """The field and value by which messages of this type name themselves, or None."""
    config = getattr(kind, "__struct_config__", None)
    if config is not None:
        return None if config.tag is None else (config.tag_field, config.tag)
    for name, field in (getattr(kind, "model_fields", None) or {}).items():
        if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1:
            return name, get_args(field.annotation)[0]
    return None


def _has_tag(field: str, value: Any) -> Filter:
    peek = msgspec.json.Decoder(msgspec.defstruct("Tag", [("value", Any, None)], rename={"value": field}))

    def accepts(message: Message) -> bool:
        try:
            return bool(peek.decode(message.body).value == value)  # type: ignore[attr-defined]  # defined above
        except msgspec.DecodeError:
            return False

    return accepts


def _has_type(name: str) -> Filter:
    return lambda message: message.headers.get(TYPE) == name
