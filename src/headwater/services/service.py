"""A child service: what it is declared to be, the state it is in, and what follows when it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import re
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

from ..errors import ConfigurationError, ServiceError
from .output import Level
from .policies import HealthCheck, Never, Restart, Stop
from .process import Command, environment
from .readiness import Callback, Log, Notify, Probe, as_probe, call
from .run import Run

if TYPE_CHECKING:
    from .blocking import Blocking
    from .group import Services

_log = logging.getLogger("headwater.service")

Exports = Mapping[str, str] | Callable[["Service"], Mapping[str, str]]


class State(StrEnum):
    """Where a service is in its life."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    """It has ended, and is about to be started again."""
    STOPPING = "stopping"
    FAILED = "failed"
    """It did not start, or has ended for good without being asked to."""


class Service:
    """A program that runs as long as we do: started, awaited until ready, supervised, stopped with all it started.

    `async with Service(...) as service:` holds one; several, and those of an ASGI app, are held by `Services`. It may
    be entered again after it was left. Raises ServiceError if it does not become ready. When it ends later and is not
    started again, the body is cancelled and ServiceError raised in its place, as `asyncio.timeout` does.

    Options:
        name: of its logger, `headwater.service.NAME`, and in errors.
        command: the program and its arguments. No shell is involved. It has to stay in the foreground.
        ready: a probe such as `Log("Started") & Tcp(8080)`, or a function that is given the service, async or not, and
            is called again while it returns False or raises. Without one it is ready as soon as it runs.
        ready_timeout: seconds it may take until then.
        env: variables in addition to ours.
        cwd: the folder it runs in.
        user: a name: it runs with the rights of that user and of its groups. Only root can do that.
        stop: the signal that ends it, and the seconds it may take before all of it is killed.
        restart: what follows an end that nobody asked for: `Never()`, `OnFailure(...)` or `Always(...)`. It does not
            apply to the first start.
        health: a probe or a function asked every 10 seconds while it runs, or a `HealthCheck`, which says how often.
        after: services that have to be ready before, and are stopped after it.
        exports: variables for our own process, or a function that is given the service and returns them; they are in
            `os.environ` from when it is ready until it is stopped. So a port found at start is told to who needs it.
        log_level: of all of its lines, or a function that tells that of each. Without, it is guessed from the line.
        on_ready: called with the service whenever it has become ready; what it raises fails the start.
        on_exit: called with the service whenever it has ended.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        ready: Probe | Callback | None = None,
        ready_timeout: float = 30.0,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | None = None,
        stop: Stop = Stop(),
        restart: Restart = Never(),
        health: Probe | Callback | HealthCheck | None = None,
        after: Sequence[Service] = (),
        exports: Exports | None = None,
        log_level: int | str | Callable[[str], int] | None = None,
        on_ready: Callback | None = None,
        on_exit: Callback | None = None,
    ) -> None:
        self.name = _checked_name(name)
        self.command = _checked_command(name, command)
        self.after = tuple(after)
        self._ready = None if ready is None else as_probe(ready)
        self._ready_timeout = ready_timeout
        self._env, self._cwd, self._user = dict(env or {}), cwd, user
        self._stop, self._restart = stop, restart
        self._health = _checked_health(name, health)
        self._exports = exports
        self._level: Level = logging.getLevelNamesMapping()[log_level] if isinstance(log_level, str) else log_level
        self._on_ready, self._on_exit = on_ready, on_exit
        self._run: Run | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._restarts: list[float] = []
        self.state = State.STOPPED
        self.found: dict[str, str] = {}
        """What the named groups of its `Log` patterns have matched."""
        self.exported: dict[str, str] = {}
        """The variables it has put into `os.environ`."""

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Of its program, which is the number of its process group too; None when it does not run."""
        return None if self._run is None or self._run.exit_code is not None else self._run.process.pid

    @property
    def exit_code(self) -> int | None:
        """Of its last run, a signal as a negative number; None while it runs."""
        return None if self._run is None else self._run.exit_code

    @property
    def lines(self) -> list[str]:
        """The last 200 lines that it has written in its last run."""
        return [] if self._run is None else self._run.output.lines

    def signal(self, name: str) -> None:
        """Send a signal, such as "SIGHUP", to its process group. Nothing if it does not run."""
        if self._run is not None:
            self._run.process.signal(signal.Signals[name])

    def __repr__(self) -> str:
        return f"<Service {self.name!r} {self.state}>"

    # --- start and stop -------------------------------------------------------------------------------

    async def start(
        self,
        *,
        on_change: Callable[[], object] | None = None,
        on_failure: Callable[[ServiceError], object] | None = None,
    ) -> None:
        """Return when it is ready; from then on it is supervised, until `stop`.

        `on_change` is called when it was started again and may export something else, `on_failure` when it has ended
        for good. Raises ServiceError, and nothing of it is left, if it does not become ready.
        """
        if self.state not in (State.STOPPED, State.FAILED):
            raise ConfigurationError(f"service {self.name!r} is {self.state} already: hold it in one place")
        self._restarts.clear()
        await self._begin()
        self._keeper = asyncio.create_task(self._keep(on_change, on_failure), name=f"service {self.name}")

    async def stop(self) -> None:
        """Stop it as `stop` says; returns when nothing of it is left. Idempotent."""
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.cancel()
            await asyncio.wait([keeper])
        if self.state is State.READY and self._run is not None:
            self.state = State.STOPPING
            await self._end(self._run)
            _log.info("%s is stopped: it %s", self.name, self._run.how_it_ended())
        self._take_back_exports()
        if self.state is not State.FAILED:
            self.state = State.STOPPED

    async def __aenter__(self) -> Self:
        from .group import Services

        self._alone: Services = Services(self)
        await self._alone.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        await self._alone.__aexit__(kind, error, trace)

    def sync(self) -> Blocking[Self]:
        """`with service.sync() as service:` holds it from code that is not async."""
        from .blocking import Blocking
        from .group import Services

        return Blocking(Services(self), self)

    # --- one run after another ------------------------------------------------------------------------

    async def _begin(self) -> None:
        begun = time.monotonic()
        self.state = State.STARTING
        self.found.clear()
        try:
            run = self._run = Run(self, self._make_command(), self._level)
            await run.begin(self._ready, self._ready_timeout)
            try:
                await self._become_ready()
            except BaseException:
                await self._end(run)
                raise
        except BaseException as error:
            self.state = State.FAILED if isinstance(error, Exception) else State.STOPPED
            raise
        self.state = State.READY
        _log.info("%s is ready after %.2f s (pid %d)", self.name, time.monotonic() - begun, run.process.pid)

    def _make_command(self) -> Command:
        user = None if self._user is None else _checked_user(self.name, self._user)
        env = environment(self._env, user)
        return Command(self.name, self.command, env, self._cwd, user, self._stop)

    async def _become_ready(self) -> None:
        if self._exports is not None:
            self._take_back_exports()
            self.exported = dict(self._exports(self) if callable(self._exports) else self._exports)
            os.environ.update(self.exported)
        if self._on_ready is not None:
            await call(self._on_ready, self)

    def _take_back_exports(self) -> None:
        for name in self.exported:
            os.environ.pop(name, None)
        self.exported = {}

    async def _end(self, run: Run) -> None:
        try:
            await run.end()
        finally:
            await self._tell_exit()

    async def _tell_exit(self) -> None:
        if self._on_exit is not None:
            try:
                await call(self._on_exit, self)
            except Exception:
                _log.exception("on_exit of %s failed", self.name)

    async def _keep(
        self, on_change: Callable[[], object] | None, on_failure: Callable[[ServiceError], object] | None
    ) -> None:
        """Outlive each run, and start the next one, until that is over."""
        while True:
            assert self._run is not None
            error = await self._run.outlive(self._health)
            self.state = State.RESTARTING
            await self._tell_exit()
            try:
                await self._start_again(error)
            except ServiceError as final:
                self.state = State.FAILED
                if on_failure is not None:
                    on_failure(final)
                return
            if on_change is not None:
                on_change()

    async def _start_again(self, error: ServiceError) -> None:
        """Return when it is ready again; raises the last error when it is given up."""
        while True:
            now = time.monotonic()
            delay = self._restart.delay(error.exit_code, [now - then for then in self._restarts])
            if delay is None:
                raise error
            self.state = State.RESTARTING
            _log.warning("%s %s: started again in %.2f s", self.name, error.reason, delay)
            await asyncio.sleep(delay)
            self._restarts.append(time.monotonic())
            try:
                return await self._begin()
            except ServiceError as another:
                error = another
            except Exception as cause:  # a callback's
                error = ServiceError(self.name, f"could not be started again: {cause!r}", lines=self.lines)


def _checked_name(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigurationError(f"a service cannot be named {name!r}: use letters, digits, '-', '_' and '.'")
    return name


def _checked_command(name: str, command: Sequence[str | os.PathLike[str]]) -> list[str]:
    if isinstance(command, str):
        raise ConfigurationError(
            f"service {name!r}: a command is a list, since no shell stands between: write {shlex.split(command)}"
        )
    if not command:
        raise ConfigurationError(f"service {name!r} has no command: give the program and its arguments in a list")
    return [os.fspath(word) for word in command]


def _checked_health(name: str, health: Probe | Callback | HealthCheck | None) -> HealthCheck | None:
    if health is None:
        return None
    check = health if isinstance(health, HealthCheck) else HealthCheck(health)
    if isinstance(check.probe, Log | Notify):
        raise ConfigurationError(
            f"service {name!r}: {check.probe} comes once and says nothing of health: give Tcp, Http, File or a function"
        )
    return check


def _checked_user(name: str, user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfigurationError(f"service {name!r}: there is no user {user!r} on this machine") from None
