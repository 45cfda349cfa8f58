"""Several services held together: started in the order of their dependencies, stopped in the mirror of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Self

from ..errors import ConfigurationError, ServiceError
from .election import Election, place_for
from .service import Service

if TYPE_CHECKING:
    from .blocking import Blocking

_log = logging.getLogger("headwater.service")

VARIABLE: Final = "HEADWATER_SERVICES"
HELD_BY_PARENT: Final = {VARIABLE: "parent"}
"""The environment for processes whose parent holds the services: there `Services` start nothing."""


def held_by_parent() -> bool:
    """Whether our parent process holds the services: then what they export is in `os.environ` already."""
    return os.environ.get(VARIABLE) == HELD_BY_PARENT[VARIABLE]


class Services:
    """Services that are started and stopped together, and those that they come `after` with them.

    Independent ones start at the same time. If one fails to start, those that had started are stopped, and its
    ServiceError is raised.

    `async with Services(a, b):` holds them. When one ends for good the body is cancelled, and ServiceError raised in
    its place. `with Services(a, b).sync():` is the same for code that is not async.

    `FastAPI(lifespan=Services(a, b))` holds them for an ASGI app. Where a server runs several workers, one of these
    owns the services; the others wait until they are ready and take over what they export. When the owner ends, its
    services are stopped, and another worker starts them again. When one ends for good, that is logged, and this process
    is sent SIGTERM, so that its server stops it.

    Options:
        lock: a path, the same for all processes that share the services. Without, in a lifespan, these are the
            processes of the same parent and working directory, and it is only used there.
    """

    def __init__(self, *services: Service, lock: str | os.PathLike[str] | None = None) -> None:
        self.services = _in_order(services)
        self._lock = lock
        self._election: Election | None = None
        self._on_failure: Callable[[ServiceError], object] | None = None
        self._failure: ServiceError | None = None
        self._body: _Body | None = None

    # --- start and stop -------------------------------------------------------------------------------

    async def start(self, *, elect: bool = False, on_failure: Callable[[ServiceError], object] | None = None) -> None:
        """Return when all are ready, here or in the process that owns them.

        With `elect` one of the processes that do this owns them. `on_failure` is called once if one of them ends for
        good later. Raises ServiceError, and stops what had started, if one does not become ready. Does nothing where
        `held_by_parent`.
        """
        self._on_failure, self._failure = on_failure, None
        if held_by_parent():
            return
        if not elect and self._lock is None:
            await self._start_all()
            return
        place = place_for([service.name for service in self.services], self._lock)
        self._election = Election(place, self._start_all, self._stop_all, self._exported, self._fail)
        await self._election.enter()

    async def stop(self) -> None:
        """Stop all that were started; returns when nothing of them is left. Idempotent."""
        self._on_failure = None  # what ends now was asked to
        election, self._election = self._election, None
        if election is not None:
            await election.leave()
        else:
            await self._stop_all()

    async def _start_all(self) -> None:
        ready = {service: asyncio.Event() for service in self.services}

        async def start(service: Service) -> None:
            for other in service.after:
                await ready[other].wait()
            await service.start(on_change=self._tell_change, on_failure=self._fail)
            ready[service].set()

        try:
            async with asyncio.TaskGroup() as group:
                for service in self.services:
                    group.create_task(start(service))
        except BaseExceptionGroup as errors:
            await self._stop_all()
            raise errors.exceptions[0] from None  # the others are of services that were cancelled for it
        except BaseException:
            await self._stop_all()
            raise

    async def _stop_all(self) -> None:
        stopped = {service: asyncio.Event() for service in self.services}

        async def stop(service: Service) -> None:
            for other in self.services:
                if service in other.after:
                    await stopped[other].wait()
            await service.stop()
            stopped[service].set()

        async with asyncio.TaskGroup() as group:
            for service in self.services:
                group.create_task(stop(service))

    def _exported(self) -> dict[str, str]:
        return {name: value for service in self.services for name, value in service.exported.items()}

    def _tell_change(self) -> None:
        if self._election is not None:
            self._election.tell_exports()

    def _fail(self, error: ServiceError) -> None:
        if self._failure is None:
            self._failure = error
            if self._on_failure is not None:
                self._on_failure(error)

    # --- hold them ------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._body = _Body()
        await self.start(on_failure=self._body.interrupt)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        assert self._body is not None
        await self._body.leave(error)
        try:
            await self.stop()
        finally:
            self._body.settle(error)

    def __call__(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """The lifespan of an ASGI app."""
        return self._lifespan()

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        await self.start(elect=True, on_failure=_stop_server)
        try:
            yield
        finally:
            await self.stop()
        if self._failure is not None:
            raise self._failure

    def sync(self) -> Blocking[Self]:
        """`with services.sync():` holds them from code that is not async."""
        from .blocking import Blocking

        return Blocking(self, self)


class _Body:
    """The body of an `async with`, in the task that entered it."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._error: ServiceError | None = None

    def interrupt(self, error: ServiceError) -> None:
        """Cancel the body; `settle` says why."""
        self._error = error
        self._task.cancel()

    async def leave(self, raised: BaseException | None) -> None:
        """Take the cancellation of a body that ended before it could arrive: it is not meant for what comes next."""
        if self._error is not None and not isinstance(raised, asyncio.CancelledError):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def settle(self, raised: BaseException | None) -> None:
        """Raise what the body was interrupted for, unless it failed of its own."""
        if self._error is None:
            return
        interrupted_alone = self._task.uncancel() <= self._cancelling
        if raised is None or (isinstance(raised, asyncio.CancelledError) and interrupted_alone):
            raise self._error from raised


def _stop_server(error: ServiceError) -> None:
    """Have the server that runs us stop this process as it is used to.

    Where nobody handles SIGTERM there is no server, as under a test client: the lifespan raises the error in its end.
    """
    _log.critical("%s", error)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        os.kill(os.getpid(), signal.SIGTERM)


def _in_order(services: Iterable[Service]) -> Sequence[Service]:
    """All of them and what they come after, each behind those; ConfigurationError for a cycle or a name given twice."""
    ordered: list[Service] = []
    path: list[Service] = []

    def add(service: Service) -> None:
        if service in ordered:
            return
        if service in path:
            cycle = [*path[path.index(service) :], service]
            names = " after ".join(repr(one.name) for one in cycle)
            raise ConfigurationError(f"services that wait for one another can never start: {names}")
        path.append(service)
        for other in service.after:
            add(other)
        path.pop()
        ordered.append(service)

    for service in services:
        add(service)
    names = [service.name for service in ordered]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigurationError(f"two services are named {', '.join(sorted(twice))}: give each a name of its own")
    return ordered
