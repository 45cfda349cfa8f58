"""Services for code that is not async: they live in a loop on a thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from ..errors import ConfigurationError, ServiceError

if TYPE_CHECKING:
    from .group import Services

T = TypeVar("T")


class Blocking(Generic[T]):
    """`with service.sync() as service:` returns when it is ready, and leaves when nothing of it is left.

    The body cannot be interrupted: a ServiceError of one that has ended for good meanwhile is raised in the end. It may
    be entered again.
    """

    def __init__(self, services: Services, given: T) -> None:
        self._services, self._given = services, given
        self._failure: ServiceError | None = None

    def __enter__(self) -> T:
        if asyncio._get_running_loop() is not None:
            raise ConfigurationError("this would hold up the running loop: write `async with`, without sync()")
        self._failure = None
        ready: Future[None] = Future()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._task = self._loop.create_task(self._hold(ready))
        self._thread = threading.Thread(target=self._run, args=[ready], name="headwater services", daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:  # of the start, or of this thread, such as Ctrl-C
            self._end()
            raise
        return self._given

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        if error is None and self._failure is not None:
            raise self._failure

    def _run(self, ready: Future[None]) -> None:
        with self._runner:
            try:
                self._loop.run_until_complete(self._task)
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                ready.set_exception(error)

    async def _hold(self, ready: Future[None]) -> None:
        await self._services.start(on_failure=self._fail)
        try:
            ready.set_result(None)
            await self._loop.create_future()
        finally:
            await self._services.stop()

    def _fail(self, error: ServiceError) -> None:
        self._failure = error

    def _end(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended, and the loop is closed
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
