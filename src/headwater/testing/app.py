"""TestApp: an app with all its brokers in memory, whose work a test waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from ..app import App
from ..broker import Broker
from ..depends import name_of
from ..engines.memory import MemoryEngine, received
from ..errors import ConfigurationError
from ..handler import Call, Handler
from ..message import SETTLED, Message, Receipt
from ..sync.thread import Mailbox
from ..topics import dead_topic
from .clock import VirtualClock

T = TypeVar("T")


class TestApp:
    """An app in a test: `async with TestApp(app) as t`, or `with TestApp(app) as t` in a synchronous one.

    Every broker, also one that is set late, is replaced by memory with the capabilities of its engine. Delays,
    backoff and batch waits run on a clock that only `advance` moves. `timeout` is how many real seconds `publish` and
    `advance` wait for the work they cause before they say what is pending.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    def __init__(self, app: App, *, timeout: float = 5.0) -> None:
        self.app = app
        self.timeout = timeout
        self.clock = VirtualClock()
        self._engines: dict[Broker, MemoryEngine] = {}
        self._undo: list[Callable[[], None]] = []
        self._calls: dict[Callable[..., Any], list[Any]] = {}
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()
        self._thread: _LoopThread | None = None  # of a synchronous test

    async def __aenter__(self) -> Self:
        self.app.watcher = self
        try:
            await self.app.start()
        except BaseException:
            self._restore()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.app.shutdown()
        finally:
            self._restore()

    def __enter__(self) -> SyncTestApp:
        self._thread = _LoopThread()
        try:
            self._thread.run(self.__aenter__)
        except BaseException:
            self._thread.stop()
            raise
        return SyncTestApp(self, self._thread)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        try:
            self._thread.run(lambda: self.__aexit__(kind, error, trace))
        finally:
            self._thread.stop()

    # --- acting ---------------------------------------------------------------------------------------

    async def publish(self, value: Any, topic: str, **options: Any) -> Receipt:
        """Publish, and return when all the work it caused that is due is done; options as for `Broker.publish`.

        Raises what a handler raised in the end, and TimeoutError naming what is pending after `timeout` seconds.
        """
        receipt = await self.app.broker.publish(value, topic, **options)
        await self.settle()
        return receipt

    async def request(self, value: Any, topic: str, **options: Any) -> Message:
        """Ask, and give the answer; options as for `Broker.request`."""
        return await self.app.broker.request(value, topic, **options)

    async def advance(self, seconds: float) -> None:
        """Let time pass: what becomes due on the way is done, in order. Raises as `publish` does."""
        end = self.clock.time() + seconds
        await self.settle()
        while self.clock.fire_next(end):
            await self.settle()
        self.clock.stand_at(end)

    async def settle(self) -> None:
        """Return when all work that is due is done. Raises as `publish` does."""
        try:
            async with asyncio.timeout(self.timeout):
                while await self._has_work():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"not done within {self.timeout:g} s: {', '.join(self._pending())}") from None
        if self._errors:
            errors, self._errors = self._errors, []
            raise errors[0]

    # --- looking --------------------------------------------------------------------------------------

    def calls(self, handler: Callable[..., Any]) -> list[Any]:
        """The values the handler was called with, each attempt by itself; for a batch handler lists of them."""
        if handler not in self._calls:
            raise LookupError(f"{name_of(handler)} handles nothing in {self.app!r}")
        return self._calls[handler]

    def published(self, topic: str) -> list[Message]:
        """What was published to a topic, by the app or the test, in that order."""
        return [message for engine in self._engines.values() for message in received(engine.store, topic)]

    def dead(self, topic: str) -> list[Message]:
        """The dead letters of a topic."""
        return [message for message in self.published(dead_topic(topic)) if SETTLED not in message.headers]

    @asynccontextmanager
    async def hosted(self) -> AsyncIterator[None]:
        """The app runs in this loop as long as this lasts: in the lifespan of a web application under test.

        An asynchronous test shares its loop with the web application, where the app runs already. That of a
        synchronous test moves here, into the loop of the TestClient, and back to its own in the end.
        """
        thread, here = self._thread, asyncio.get_running_loop()
        if thread is None and self.app.broker.loop is here:
            yield
            return
        if thread is None:
            raise ConfigurationError(
                "the TestApp runs in another event loop than this web application: use `with TestApp(app)` beside a "
                "TestClient, or httpx.AsyncClient in an asynchronous test"
            )
        await asyncio.wrap_future(thread.mailbox.submit(self.app.shutdown))
        self._changed, thread.guest = asyncio.Event(), Mailbox(here)
        try:
            async with self.app:
                yield
        finally:
            self._changed, thread.guest = asyncio.Event(), None
            await asyncio.wrap_future(thread.mailbox.submit(self.app.start))

    @contextmanager
    def override(self, dependency: Callable[..., Any], fake: Callable[..., Any]) -> Iterator[None]:
        """Have handlers depend on `fake` instead, while the context lasts."""
        previous = dict(self.app.overrides)
        self.app.overrides[dependency] = fake
        self.app.compile()
        try:
            yield
        finally:
            self.app.overrides.clear()
            self.app.overrides.update(previous)
            self.app.compile()

    # --- what the app tells its watcher ---------------------------------------------------------------

    def replace_engine(self, broker: Broker) -> None:
        """Put memory in place of the broker's engine, until the test is over."""
        if broker in self._engines:
            return
        original, url = (broker.engine, broker.url) if broker.bound else (None, None)
        capabilities = None if original is None else original.capabilities
        self._engines[broker] = engine = MemoryEngine(clock=self.clock, capabilities=capabilities)
        broker.replace_engine(engine)
        self._undo.append(lambda: broker.replace_engine(original, url))

    def watch_call(self, handler: Handler, call: Call) -> Call:
        """The call, noted."""
        calls = self._calls.setdefault(handler.function, [])

        def noted(work: Any) -> Any:
            if isinstance(work, tuple):
                calls.append([message.value for message in work])
            else:
                calls.append(work.value if handler.decode is None else handler.decode(work))
            return call(work)

        return noted

    def gave_up(self, _message: Message, error: BaseException) -> None:
        """A handler's last attempt failed."""
        self._errors.append(error)

    def quiet(self) -> None:
        """Some worker may have nothing to do any more."""
        self._changed.set()

    # --- waiting --------------------------------------------------------------------------------------

    async def _has_work(self) -> bool:
        for broker, engine in self._engines.items():
            await broker.flush()
            while engine.moving:
                await asyncio.wait(engine.moving)
        for running in self.app.consuming:
            if running.worker.stopping:  # a subscriber that ended is done when it left its group
                await asyncio.wait([running.task])
        return bool(self._pending())

    def _pending(self) -> list[str]:
        """What is due and not done, in words."""
        found = []
        for running in self.app.consuming:
            waiting = getattr(running.subscription, "backlog", 0)
            if running.worker.busy + waiting and not running.worker.stopping:
                found.append(f"{running.consumer.name} ({running.worker.busy} in work, {waiting} waiting)")
        return found

    def _restore(self) -> None:
        self.app.watcher = None
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()


class _LoopThread:
    """An event loop in a thread of its own: the app runs beside a synchronous test, and its `sync` works there."""

    def __init__(self) -> None:
        started: Future[Mailbox] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="headwater-test")
        self._thread.start()
        self.mailbox = started.result()
        self.guest: Mailbox | None = None
        """Of another loop, while the app runs there."""

    async def _serve(self, started: Future[Mailbox]) -> None:
        self._stopped = asyncio.Event()
        started.set_result(Mailbox(asyncio.get_running_loop()))
        await self._stopped.wait()

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        future = (self.guest or self.mailbox).submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        self.mailbox.post(self._stopped.set)
        self._thread.join()


class SyncTestApp:
    """The blocking face of a TestApp, for synchronous tests: the same methods, without await."""

    __test__ = False

    def __init__(self, test: TestApp, thread: _LoopThread) -> None:
        self._test = test
        self._run = thread.run
        self.app = test.app
        self.calls = test.calls
        self.published = test.published
        self.dead = test.dead

    def publish(self, value: Any, topic: str, **options: Any) -> Receipt:
        return self._run(lambda: self._test.publish(value, topic, **options))

    def request(self, value: Any, topic: str, **options: Any) -> Message:
        return self._run(lambda: self._test.request(value, topic, **options))

    def advance(self, seconds: float) -> None:
        self._run(lambda: self._test.advance(seconds))

    def settle(self) -> None:
        self._run(self._test.settle)

    def override(self, dependency: Callable[..., Any], fake: Callable[..., Any]) -> AbstractContextManager[None]:
        return self._test.override(dependency, fake)
