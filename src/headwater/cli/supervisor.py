"""What a supervisor does: keep worker processes running, start dead ones again within bounds, stop all together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import MissingExtraError
from . import cord
from .cord import SupervisorEnd
from .output import Failure, tell_failure
from .web import listen, serving

if TYPE_CHECKING:
    from ..services import Services
    from .probes import AllWorkers

Address = tuple[str, int]  # host and port

SETTLED: Final = 10.0  # seconds of readiness after which a worker counts as sound
QUICK_DEATHS: Final = 5  # in a row, of one worker, after which the supervisor gives up
BACKOFF: Final = (0.25, 30.0)  # seconds before a dead worker is started again: at first, at most
UNKNOWN_PATIENCE: Final = 15.0 + cord.MARGIN  # seconds, for a worker that has not said yet how long its stop may take

_log = logging.getLogger("headwater.supervisor")


class Worker:
    """One worker process, and what it said of itself."""

    def __init__(self, number: int, loaded: asyncio.Event, listen: Callable[[], socket.socket | None]) -> None:
        self.number = number
        self._loaded = loaded
        self._listen = listen
        self.hopeless = False
        self.wants_services = False
        self.dismissed = False
        self.killed = False
        self._patience = UNKNOWN_PATIENCE
        self._ready_at: float | None = None
        self._process: asyncio.subprocess.Process
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start a fresh interpreter, in a session of its own.

        So Ctrl-C in the terminal reaches the supervisor alone, which passes it on once.
        """
        self._cord = SupervisorEnd(self._hear)
        theirs = self._cord.theirs.fileno()
        environment = os.environ | variables | {"HEADWATER_WORKER_ID": str(self.number), cord.VARIABLE: str(theirs)}
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        except BaseException:
            self._cord.finish()
            raise
        finally:
            self._cord.theirs.close()
        self._cord.listen()

    def _hear(self, words: str) -> None:
        word, _, rest = words.partition(" ")
        if word == cord.LOADED:
            self._patience = float(rest)
            self._loaded.set()
        elif word == cord.READY:
            self._ready_at = time.monotonic()
            _log.info("%s is ready", self)
        elif word == cord.HOPELESS:
            self.hopeless = True
        elif word == cord.SERVICES:
            self.wants_services = True
        elif word == cord.LISTEN and (listening := self._listen()) is not None:
            self._cord.give(listening)

    async def wait(self) -> int:
        """Its exit code once it has ended; negative is the signal that ended it."""
        code = await self._process.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._cord.finish()
        return code

    @property
    def was_sound(self) -> bool:
        """Whether it was ready for a good while."""
        return self._ready_at is not None and time.monotonic() - self._ready_at >= SETTLED

    def dismiss(self, number: signal.Signals) -> None:
        """Have it stop gracefully; a straggler is killed."""
        self.dismissed = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._patience, self._kill)

    def _kill(self) -> None:
        self.killed = True
        _log.error("%s did not stop within %g s: killed; what it had in work comes again", self, self._patience)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self._process.pid})"


class Supervisor:
    """Keeps `count` workers running until a signal, until the app stops itself, or until they keep dying.

    With `watch` all are started again when a Python file below that directory changes, and a dead one waits for
    that instead of being tried again. `web` is where workers that serve HTTP listen, `http` where all are probed.
    `services` gives those of the app; it is called if a worker finds that there are some.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        services: Callable[[], Services],
        *,
        watch: Path | None = None,
        web: Address | None = None,
        http: Address | None = None,
    ) -> None:
        self._command = command
        self._count = count
        self._find_services = services
        self._services: Services | None = None
        self._variables: dict[str, str] = {}  # for workers
        self._watch = watch
        self._web = web
        self._http = http
        self._listening: socket.socket | None = None  # for all workers, from when the first one asks
        self._probes: AllWorkers | None = None  # where `http` is given
        self._workers: dict[int, Worker] = {}
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()  # another one after each change
        self._loaded = asyncio.Event()  # some worker could load the app
        self._code = 0

    async def run(self) -> int:
        """The exit code: 0, 130 after Ctrl-C, or that of the worker it gave up on."""
        loop = asyncio.get_running_loop()
        for wanted in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(wanted, self._on_signal, wanted)
        watching = None if self._watch is None else await self._start_watching(self._watch)
        async with AsyncExitStack() as open_things:
            if self._http is not None:
                await self._answer_probes(open_things, self._http)
            open_things.push_async_callback(self._stop_services)
            async with asyncio.TaskGroup() as group:
                for number in range(self._count):
                    group.create_task(self._keep(number))
        if watching is not None:
            await watching
        return self._code

    async def _answer_probes(self, open_things: AsyncExitStack, place: Address) -> None:
        from .probes import AllWorkers  # most have no need of it

        self._probes = AllWorkers(self._count)
        open_things.callback(self._probes.close)
        await open_things.enter_async_context(serving(self._probes, place=listen(*place)))

    def _listen(self) -> socket.socket | None:
        """The socket of the workers; None, and the end of all, where there can be none."""
        if self._listening is None and self._web is not None:
            try:
                self._listening = listen(*self._web)
            except Failure as failure:
                tell_failure(failure.reason)
                self._stop(failure.code)
        return self._listening

    async def _start_services(self) -> None:
        """Hold the services of the app from now on, for all workers; without them all ends."""
        from ..services import HELD_BY_PARENT  # most apps have none, and need not wait for its import

        try:
            services = await asyncio.to_thread(self._find_services)
            starting = asyncio.create_task(services.start(on_failure=self._service_failed))
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if starting.done():
                starting.result()
                self._services = services
                self._variables |= HELD_BY_PARENT
            else:
                starting.cancel()
                await asyncio.wait([starting])
        except Exception as error:  # also what the callbacks of a service raise
            self._service_failed(error)

    def _service_failed(self, error: Exception) -> None:
        tell_failure(str(error) or type(error).__name__)
        self._stop(1)

    async def _stop_services(self) -> None:
        if self._services is not None:
            await self._services.stop()

    def _on_signal(self, number: signal.Signals) -> None:
        self._stop(130 if number == signal.SIGINT else 0, number)

    def _stop(self, code: int, number: signal.Signals = signal.SIGTERM) -> None:
        """Stop all workers. Asked again it passes the signal on again: a second one stops an app at once."""
        if not self._stopping.is_set():
            self._code = code
            self._stopping.set()
        for worker in self._workers.values():
            worker.dismiss(number)

    # --- one worker -----------------------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        deaths = 0
        if number > 0:  # the first one tells whether there is an app to run, and what is wrong once, not N times
            await _first_of(self._stopping, self._loaded)
        while not self._stopping.is_set():
            changed = self._changed
            worker = Worker(number, self._loaded, self._listen)
            try:
                code = await self._outlive(worker, changed)
            except OSError as error:  # no process to be had
                _log.error("worker %d cannot be started: %s", number, error)
                code = 1
            if worker.wants_services:
                await self._start_services()
                continue
            if worker.killed:
                self._code = self._code or 1
            if worker.dismissed:
                continue
            if self._watch is None:
                deaths = 1 if worker.was_sound else deaths + 1
                await self._after_death(worker, code, deaths)
            else:
                await self._after_death_while_watching(worker, code, changed)

    async def _outlive(self, worker: Worker, changed: asyncio.Event) -> int:
        probed = {} if self._probes is None else {cord.PROBES: self._probes.path_of(worker.number)}
        await worker.start(self._command, self._variables | probed)
        self._workers[worker.number] = worker
        _log.info("%s is started", worker)
        if self._stopping.is_set() or changed.is_set():  # while it was being started
            worker.dismiss(signal.SIGTERM)
        code = await worker.wait()
        del self._workers[worker.number]
        return code

    async def _after_death(self, worker: Worker, code: int, deaths: int) -> None:
        """Decide what follows the death of a worker nobody had dismissed: another try, or the end of all."""
        if code == 0:
            _log.info("worker %d has stopped the app", worker.number)
            self._stop(0)
        elif worker.hopeless or code == 2:
            self._stop(code)
        elif deaths >= QUICK_DEATHS:
            _log.error("worker %d %s, %d times in a row: giving up", worker.number, _ended(code), deaths)
            self._stop(1)
        else:
            first, most = BACKOFF
            delay = min(first * 2.0 ** (deaths - 1), most)
            _log.warning("worker %d %s: started again in %g s", worker.number, _ended(code), delay)
            await _first_of(self._stopping, timeout=delay)

    async def _after_death_while_watching(self, worker: Worker, code: int, changed: asyncio.Event) -> None:
        if code == 0:
            self._stop(0)
        else:
            _log.error("worker %d %s: waiting for a change", worker.number, _ended(code))
            await _first_of(self._stopping, changed)

    # --- watching files -------------------------------------------------------------------------------

    async def _start_watching(self, root: Path) -> asyncio.Task[None]:
        """Returns once no later change can be missed."""
        task = asyncio.create_task(self._watch_files(root))
        await asyncio.sleep(0)  # its first step sets the watch up
        return task

    async def _watch_files(self, root: Path) -> None:
        from watchfiles import PythonFilter, awatch

        _log.info("watching Python files below %s", root)
        try:
            async for changes in awatch(root, watch_filter=PythonFilter(), stop_event=self._stopping):
                files = sorted({os.path.relpath(path, root) for _, path in changes})
                _log.info("%s changed: starting again", ", ".join(files))
                self._start_again()
        except Exception as error:  # the kernel's limit of watches, above all
            _log.error("cannot watch the files below %s: %s", root, error)
            self._stop(1)

    def _start_again(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        for worker in self._workers.values():
            worker.dismiss(signal.SIGTERM)
        changed.set()


async def _first_of(*events: asyncio.Event, timeout: float | None = None) -> None:
    """Wait until one of these is set, at most `timeout` seconds."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def supervise(
    command: Sequence[str],
    count: int,
    services: Callable[[], Services],
    *,
    watch: Path | None = None,
    **where: Address | None,
) -> int:
    """Run workers until they are stopped; the exit code. Raises MissingExtraError if watching needs a package."""
    if watch is not None:
        try:
            import watchfiles  # noqa: F401  # asked for now, before anything runs
        except ImportError as error:
            raise MissingExtraError("watchfiles", "reload") from error

    async def run() -> int:
        return await Supervisor(command, count, services, watch=watch, **where).run()

    return asyncio.run(run())
