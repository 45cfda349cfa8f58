"""An app: its handlers, its brokers, and the order in which everything starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import itertools
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, Protocol, Self, TypeVar
from weakref import WeakSet

from .broker import Broker
from .consumer import Consumer, Running, check_apart, consumers_of
from .depends import Environment
from .engine import DeclareMode, Topic
from .errors import AuthenticationError, ConfigurationError, ConnectError, NoBrokerError
from .handler import Call, Handler, Middleware
from .message import Message
from .retry import Retry
from .router import Router
from .wiring import Wired, check, topics_of, wire

if TYPE_CHECKING:
    from .admin import Admin
    from .integrations.asgi import Operations
    from .observe.health import AppHealth
    from .services import Service, Services
    from .sync import SyncBroker

BrokerLike = str | Broker
BrokerFactory = Callable[[], BrokerLike | Awaitable[BrokerLike]]
BrokerArgument = BrokerLike | BrokerFactory | Sequence[BrokerLike | BrokerFactory] | None
Hook = Callable[..., Any]
Lifespan = Callable[..., AbstractAsyncContextManager[Any]]
H = TypeVar("H", bound=Hook)
P = ParamSpec("P")
R = TypeVar("R")

_RECONNECT = Retry(backoff=(0.2, 10.0))  # waits between tries to reach a broker at start


def _on_broker(method: Callable[Concatenate[Broker, P], R]) -> Callable[Concatenate[App, P], R]:
    """A method of App that does the same on its first broker, with the same signature."""

    @functools.wraps(method)
    def call(app: App, /, *arguments: P.args, **keywords: P.kwargs) -> R:
        return method(app.broker, *arguments, **keywords)

    return call


APPS: Final = WeakSet["App"]()  # all there are in this process, for who is not told which one is meant


class Phase(Enum):
    """Where an app is in its life; the value says it to those who ask why it is not ready."""

    STOPPED = "it is not started"
    STARTING = "it is starting"
    CONNECTING = "it is started, and not connected yet"
    RUNNING = "it runs"
    DRAINING = "it is stopping: nothing more is received"


class Watcher(Protocol):
    """What a test that stands around an app is asked and told."""

    def replace_engine(self, broker: Broker) -> None: ...
    def watch_call(self, handler: Handler, call: Call) -> Call: ...
    def gave_up(self, message: Message, error: BaseException) -> None: ...
    def quiet(self) -> None: ...
    def hosted(self) -> AbstractAsyncContextManager[None]: ...


class App:
    """A service: handlers on one or several brokers, with hooks around their life.

    `async with app:` starts and stops it, `await app.run()` runs it until a signal. It can be started again after a
    stop.

    Args:
        name: the default consumer group, the client id and the telemetry service name.
        broker: a URL, a Broker, a callable (also async) that gives either and is called after `on_startup`, a
            sequence of those, or None: then an `on_startup` hook calls `set_broker`.
        topics: what the app owns, declared at start.
        declare: "create" makes missing topics, "check" fails without them, "off" does neither.
        lifespan: `@asynccontextmanager` function of the app (or of nothing); what it yields, a mapping, is the context.
        on_startup: hooks before the broker is connected; each takes the app or nothing, async or not.
        after_startup: hooks once messages flow.
        on_shutdown: hooks after the last message was handled, while publishing still works.
        after_shutdown: hooks after the brokers are closed.
        services: child services, started before all else and stopped after it. One that ends for good stops the app.
        middleware: around every handler, the first outermost.
        dependencies: called before every handler.
        logger: takes what the app and its handlers log, and is given to handlers; by default "headwater.NAME".
        startup: "wait" tries to reach the brokers for `startup_timeout` seconds, "background" starts without them.
        startup_timeout: seconds.
        graceful_timeout: seconds that a stop gives to messages in work.
        consume: False makes a process that only publishes; HEADWATER_CONSUME=0 does too.
    """

    def __init__(
        self,
        name: str,
        broker: BrokerArgument = None,
        *,
        topics: Sequence[Topic | str] = (),
        declare: DeclareMode = "create",
        lifespan: Lifespan | None = None,
        on_startup: Sequence[Hook] = (),
        after_startup: Sequence[Hook] = (),
        on_shutdown: Sequence[Hook] = (),
        after_shutdown: Sequence[Hook] = (),
        services: Sequence[Service] = (),
        middleware: Sequence[Middleware] = (),
        dependencies: Sequence[Any] = (),
        logger: logging.Logger | None = None,
        startup: Literal["wait", "background"] = "wait",
        startup_timeout: float = 30.0,
        graceful_timeout: float = 15.0,
        consume: bool = True,
    ) -> None:
        if not name:
            raise ConfigurationError("App(name): the name is the default consumer group, so it cannot be empty")
        self.name = name
        self.topics = tuple(Topic(topic) if isinstance(topic, str) else topic for topic in topics)
        self.logger = logger or logging.getLogger(f"headwater.{name}")
        self.startup_timeout = startup_timeout
        self.graceful_timeout = graceful_timeout
        self.consume = consume
        self.context: dict[str, Any] = {}
        self.timings: dict[str, float] = {}
        """Seconds that each step of the last start took."""
        self.stopped_by: signal.Signals | None = None
        """The signal that ended the last `run`, if one did."""
        worker = os.environ.get("HEADWATER_WORKER_ID")
        self.worker_id = int(worker) if worker else None
        self.services = _held(services)
        self.overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        self.router = Router(middleware=middleware, dependencies=dependencies)
        self.subscriber = self.router.subscriber
        self.publisher = self.router.publisher
        self.include_router = self.router.include_router
        self._given = _listed(broker)
        self._declare: DeclareMode = declare
        self._lifespan = lifespan
        self._on_startup, self._after_startup = list(on_startup), list(after_startup)
        self._on_shutdown, self._after_shutdown = list(on_shutdown), list(after_shutdown)
        self._startup = startup
        self._brokers: list[Broker] = []
        self._running: AsyncExitStack | None = None
        self.phase = Phase.STOPPED
        self.consuming: list[Running] = []
        self._consumers: list[Wired] = []
        self._stopping: asyncio.Event | None = None
        self.failure: BaseException | None = None
        """What the app was stopped for, if it failed."""
        self._starting: asyncio.Task[None] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self.watcher: Watcher | None = None
        APPS.add(self)
        if not any(callable(one) for one in self._given):
            self.set_broker([one for one in self._given if not callable(one)])

    # --- declaring ------------------------------------------------------------------------------------

    def on_startup(self, hook: H) -> H:
        """Call this before the broker is connected: it may still choose it."""
        self._on_startup.append(hook)
        return hook

    def after_startup(self, hook: H) -> H:
        """Call this once the brokers are connected and handlers run: publish from here on."""
        self._after_startup.append(hook)
        return hook

    def on_shutdown(self, hook: H) -> H:
        """Call this after the last message was handled; publishing still works."""
        self._on_shutdown.append(hook)
        return hook

    def after_shutdown(self, hook: H) -> H:
        """Call this after the brokers are closed."""
        self._after_shutdown.append(hook)
        return hook

    def set_broker(self, broker: BrokerLike | Sequence[BrokerLike]) -> None:
        """Give the app its broker, at any time before it connects: for instance in an `on_startup` hook."""
        if self.consuming:
            raise ConfigurationError(f"the app {self.name!r} runs: its broker cannot change now")
        given = [broker] if isinstance(broker, str | Broker) else list(broker)
        self._brokers = [Broker(one) if isinstance(one, str) else one for one in given]

    @property
    def brokers(self) -> Sequence[Broker]:
        return self._brokers

    @property
    def broker(self) -> Broker:
        """The first broker. Raises NoBrokerError while there is none."""
        if not self._brokers:
            raise NoBrokerError(self.name)
        return self._brokers[0]

    @property
    def is_ready(self) -> bool:
        """Whether the app is started, not stopping, its brokers can be reached, and it consumes if it is to."""
        return (
            self.phase is Phase.RUNNING
            and self.failure is None
            and (not self.consuming or any(running.at_work for running in self.consuming))
            and all(broker.engine.available for broker in self._brokers)
        )

    def health(self) -> AppHealth:
        """Whether the app lives and is ready, and why not."""
        from .observe.health import health_of

        return health_of(self)

    # --- acting on the first broker -------------------------------------------------------------------

    publish = _on_broker(Broker.publish)
    publish_many = _on_broker(Broker.publish_many)
    request = _on_broker(Broker.request)
    stream = _on_broker(Broker.stream)
    get = _on_broker(Broker.get)

    @property
    def admin(self) -> Admin:
        """The administration of the first broker."""
        return self.broker.admin

    @property
    def sync(self) -> SyncBroker:
        """The first broker for synchronous code, such as `def` handlers."""
        return self.broker.sync

    # --- starting and stopping ------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def start(self, *, share_services: bool = False) -> None:
        """Start, step by step; a failure stops what had started, and only that, and is raised.

        With `share_services` one of the processes of a server that do this holds the services for all of them.
        """
        if self._running is not None:
            raise ConfigurationError(f"the app {self.name!r} is started already")
        self.timings.clear()
        self.failure, self.stopped_by = None, None
        self._stopping = asyncio.Event()
        self.phase = Phase.STARTING
        async with AsyncExitStack() as started:
            started.callback(self._reset)
            if self.services is not None and self.watcher is None:  # a test runs no server
                await self._timed("services", self.services.start(elect=share_services, on_failure=self.stop))
                started.push_async_callback(self.services.stop)
            await self._timed("lifespan", self._enter_lifespan(started))
            await self._timed("on_startup", self._call_hooks(self._on_startup))
            started.push_async_callback(self._call_all, self._after_shutdown)
            await self._timed("broker", self._choose_brokers())
            self._consumers = wire(self.name, self.router, self._brokers, self.logger)
            self.compile()
            started.push_async_callback(self._close_brokers)
            if self._startup == "background":
                self._connecting = asyncio.create_task(self._connect_in_background())
            else:
                await self._bring_up()
            started.push_async_callback(self._call_all, self._on_shutdown)
            started.push_async_callback(self.drain)
            if self._connecting is None:
                await self._timed("after_startup", self._call_hooks(self._after_startup))
            self._running = started.pop_all()
        self.phase = Phase.RUNNING if self._connecting is None else Phase.CONNECTING
        steps = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in self.timings.items())
        how = "ready" if self.phase is Phase.RUNNING else "started, not connected yet"
        self.logger.info("%s is %s: %s", self.name, how, steps)

    @asynccontextmanager
    async def connected_broker(self) -> AsyncIterator[Broker]:
        """The first broker, connected, to look at and to manage: nothing is declared and no handler runs.

        Only what finding it takes is done: where it comes late, that is the lifespan and the `on_startup` hooks,
        undone in the end. Raises NoBrokerError, ConnectError.
        """
        url = os.environ.get("HEADWATER_BROKER")
        if url and not self._brokers:
            self.set_broker(url)
        async with AsyncExitStack() as started:
            started.callback(self._reset)
            if not url and not (self._brokers and self.broker.bound):
                await self._enter_lifespan(started)
                await self._call_hooks(self._on_startup)
                started.push_async_callback(self._call_hooks, self._after_shutdown)
            await self._choose_brokers()
            yield await started.enter_async_context(self.broker)

    async def shutdown(self) -> None:
        """Stop: receive nothing more, finish what is in work, then undo the start in reverse. Idempotent."""
        running, self._running = self._running, None
        if running is not None:
            self.phase = Phase.DRAINING
            await running.aclose()
            self.logger.info("%s is stopped", self.name)

    def stop(self, reason: BaseException | None = None) -> None:
        """Ask who runs the app to stop it gracefully; with a reason `run` raises it in the end."""
        self.failure = self.failure or reason
        if self._stopping is not None:
            self._stopping.set()

    def lifespan(self, asgi: object = None) -> AbstractAsyncContextManager[dict[str, Any]]:
        """The life of the app inside that of an ASGI application: `FastAPI(lifespan=app.lifespan)`.

        Its startup is complete once messages flow; it is stopped when the server ends its lifespan. The state it
        yields is the app's context. No signal is handled. If the app fails, or stops itself, it is drained, and a
        server that handles SIGTERM is sent one; an app that failed is not alive any more (`health`).
        """
        from .integrations.asgi import lifespan

        return lifespan(self, asgi)

    def lifespan_with(self, other: Lifespan) -> Callable[[object], AbstractAsyncContextManager[dict[str, Any]]]:
        """The same around a lifespan of your own, which is entered first and left last.

        What both yield is merged, into the state of the server and into the app's context.
        """
        from .integrations.asgi import lifespan

        return lambda asgi: lifespan(self, asgi, other)

    def asgi(self) -> Operations:
        """An ASGI application: /health/live, /health/ready, and /metrics where prometheus-client is installed.

        Served by itself it starts and stops the app; mounted in another application it does not.
        """
        from .integrations.asgi import Operations

        return Operations(self)

    async def run(self) -> None:
        """Start, run until SIGINT, SIGTERM or `stop`, and stop gracefully. A second signal stops at once.

        Raises what made the app fail.
        """
        with _signals(self._on_signal):
            self._starting = asyncio.create_task(self.start())
            try:
                await self._starting
            except asyncio.CancelledError:
                if self.failure is None and self.stopped_by is None:
                    raise
                return
            finally:
                self._starting = None
            try:
                await self.asked_to_stop()
            finally:
                await self.shutdown()
        if self.failure is not None:
            raise self.failure

    async def asked_to_stop(self) -> None:
        """Wait until somebody calls `stop`, as what fails for good does."""
        if self._stopping is None:
            raise ConfigurationError(f"the app {self.name!r} is not started: there is nothing to stop")
        await self._stopping.wait()

    def _on_signal(self, number: signal.Signals) -> None:
        self.stopped_by = self.stopped_by or number
        self.logger.info("%s stops: %s", self.name, number.name)
        if self._starting is not None:
            self._starting.cancel()
        if self._stopping is not None and self._stopping.is_set():
            for running in self.consuming:
                running.task.cancel()
        self.stop()

    async def drain(self) -> None:
        """Receive nothing more and finish what is in work, within `graceful_timeout` seconds; stay connected.

        From now on the app is not ready. Under a web server, call it before the server is told to stop.
        """
        if self.phase is not Phase.STARTING:  # or a failing start, which stays one
            self.phase = Phase.DRAINING
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
            self._connecting = None
        await self._stop_consuming()

    async def _stop_consuming(self) -> None:
        for running in self.consuming:
            running.worker.stop_soon()
        await asyncio.gather(*(running.finish(self.graceful_timeout, self.logger) for running in self.consuming))
        self.consuming.clear()

    def _reset(self) -> None:
        self.context.clear()
        self._stopping = None
        self.phase = Phase.STOPPED
        if any(callable(one) for one in self._given):
            self._brokers = []

    async def _timed(self, step: str, work: Awaitable[None]) -> None:
        begin = time.perf_counter()
        await work
        self.timings[step] = time.perf_counter() - begin

    async def _enter_lifespan(self, started: AsyncExitStack) -> None:
        if self._lifespan is not None:
            lifespan = self._lifespan(*self._wanted(self._lifespan))
            context = await started.enter_async_context(lifespan)
            if context is not None:
                if not isinstance(context, Mapping):
                    raise ConfigurationError(f"the lifespan yields a mapping or nothing, not {type(context).__name__}")
                self.context.update(context)

    async def _call_hooks(self, hooks: Sequence[Hook]) -> None:
        for hook in hooks:
            result = hook(*self._wanted(hook))
            if inspect.isawaitable(result):
                await result

    async def _call_all(self, hooks: Sequence[Hook]) -> None:
        """Call each of them although one fails; that failure is raised in the end."""
        async with AsyncExitStack() as calls:
            for hook in reversed(hooks):
                calls.push_async_callback(self._call_hooks, [hook])

    def _wanted(self, function: Hook) -> tuple[App, ...]:
        """The app, for a hook that takes it."""
        return (self,) if inspect.signature(function).parameters else ()

    async def _choose_brokers(self) -> None:
        """What was given late, then what wins over it; and the check that there is one."""
        if any(callable(one) for one in self._given) and not self._brokers:
            self.set_broker([await _made(one) for one in self._given])
        url = os.environ.get("HEADWATER_BROKER")  # what `--broker` sets too, for workers to inherit
        if url and self._brokers:
            self._brokers[0].bind(url)
        elif url:
            self.set_broker(url)
        elif self.watcher is not None and not self._brokers:
            self.set_broker(Broker())
        if not self._brokers:
            raise NoBrokerError(self.name)
        if self.watcher is not None:
            for broker in self._brokers:
                self.watcher.replace_engine(broker)

    # --- consuming ------------------------------------------------------------------------------------

    @property
    def consumes(self) -> bool:
        """Whether handlers run in this process."""
        return self.consume and os.environ.get("HEADWATER_CONSUME", "1") != "0"

    def compile(self) -> None:
        """Resolve the handlers' signatures; again after a dependency was overridden."""
        watch = None if self.watcher is None else self.watcher.watch_call
        for broker, consumer in self._consumers:
            consumer.compile(self._environment(broker), broker.send, watch)

    def _environment(self, broker: Broker) -> Environment:
        from .observe.logs import are_configured  # not before an app starts

        injectables = {App: self, Broker: broker, logging.Logger: self.logger}
        return Environment(self.logger, injectables, self.context, self.overrides, are_configured())

    async def _bring_up(self) -> None:
        try:
            await self._timed("connect", self._connect())
            await self._timed("declare", self._declare_topics())
            await self._timed("consume", self._consume())
        except BaseException:
            await self._stop_consuming()
            raise

    async def _connect(self) -> None:
        """Reach every broker; try again while `startup_timeout` lasts. Raises ConnectError."""
        deadline = time.monotonic() + self.startup_timeout
        for broker in self._brokers:
            for tries in itertools.count(1):
                try:
                    await broker.reach()
                    break
                except ConnectError as error:
                    delay = _RECONNECT.delay(tries)
                    hopeless = isinstance(error, AuthenticationError) or time.monotonic() + delay > deadline
                    if self._connecting is None and hopeless:
                        raise
                    self.logger.warning("%s waits for its broker: %s; again in %.1f s", self.name, error, delay)
                    await asyncio.sleep(delay)

    async def _connect_in_background(self) -> None:
        try:
            await self._bring_up()
            await self._timed("after_startup", self._call_hooks(self._after_startup))
        except Exception as error:
            self.logger.exception("%s cannot start", self.name)
            self.stop(error)
        else:
            self.phase, self._connecting = Phase.RUNNING, None
            self.logger.info("%s is connected", self.name)

    async def _declare_topics(self) -> None:
        for index, broker in enumerate(self._brokers):
            topics = {topic.name: topic for topic in self.topics} if index == 0 else {}
            for topic in topics_of(broker, self._consumers):
                topics.setdefault(topic.name, topic)
            await broker.declare(list(topics.values()), self._declare)

    async def _consume(self) -> None:
        if self.consumes:
            for broker, consumer in self._consumers:
                self.consuming.append(await self._start_consumer(broker, consumer))

    async def _start_consumer(self, broker: Broker, consumer: Consumer) -> Running:
        send = broker.send
        settings = {"send": send, "prepare": broker.prepare, "logger": self.logger, "stop_app": self.stop}
        if self.watcher is not None:
            settings["gave_up"] = self.watcher.gave_up
        worker = consumer.worker(broker.engine, settings)
        worker.on_quiet = None if self.watcher is None else self.watcher.quiet
        running = Running(worker, consumer, broker.engine)
        await running.start(self._on_worker_end)
        return running

    def _on_worker_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.error("a subscription of %s failed: %s", self.name, error, exc_info=error)
            self.stop(error)

    @asynccontextmanager
    async def subscribe(
        self, topics: str | Sequence[str], handler: Callable[..., Any], **options: Any
    ) -> AsyncIterator[None]:
        """Handle the messages of some topics while the context lasts; options as for `subscriber`.

        Raises ConfigurationError if another handler of this app has messages of them in the same group.
        """
        topics = (topics,) if isinstance(topics, str) else tuple(topics)
        router = Router(middleware=self.router.middleware, dependencies=self.router.dependencies)
        router.subscriber(*topics, **options)(handler)
        (consumer,) = consumers_of(self.name, router.declared())
        check_apart(
            [consumer, *(running.consumer for running in self.consuming if running.engine is self.broker.engine)]
        )
        check(consumer, self.broker, self._brokers)
        watch = None if self.watcher is None else self.watcher.watch_call
        consumer.compile(self._environment(self.broker), self.broker.send, watch)
        for broker in self._brokers:
            if named := topics_of(broker, [(self.broker, consumer)]):
                await broker.declare(named, self._declare)
        running = await self._start_consumer(self.broker, consumer)
        self.consuming.append(running)
        try:
            yield
        finally:
            if running in self.consuming:
                self.consuming.remove(running)
                running.worker.stop_soon()
                await running.finish(self.graceful_timeout, self.logger)

    async def _close_brokers(self) -> None:
        async with AsyncExitStack() as closing:  # the others too, although one fails
            for broker in self._brokers:
                closing.push_async_callback(broker.close)

    def __repr__(self) -> str:
        return f"App({self.name!r})"


def _held(services: Sequence[Service]) -> Services | None:
    if not services:
        return None
    from .services import Services  # an app without any need not wait for its import

    return Services(*services)


def _listed(broker: BrokerArgument) -> list[BrokerLike | BrokerFactory]:
    if broker is None:
        return []
    if isinstance(broker, str | Broker) or callable(broker):
        return [broker]
    return list(broker)


async def _made(given: BrokerLike | BrokerFactory) -> BrokerLike:
    if isinstance(given, str | Broker):
        return given
    made = given()
    return await made if isinstance(made, Awaitable) else made


@contextlib.contextmanager
def _signals(callback: Callable[[signal.Signals], None]) -> Any:
    """Call back on SIGINT and SIGTERM, where this thread may say so."""
    loop = asyncio.get_running_loop()
    taken = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, callback, number)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
