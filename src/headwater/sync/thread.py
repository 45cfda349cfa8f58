"""The event loop that all synchronous callers of a process share, in a thread of its own."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextvars
import functools
import os
import queue
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, Protocol, TypeVar
from weakref import WeakSet

from .. import forks
from ..errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

STAND: Final = 2.0  # seconds that a fork waits for the loop thread to stand still
THREADS: Final = 8  # that do for the loop what blocks: names of servers, files


class LoopGone(Exception):
    """A loop was closed before it could be called."""


class Mailbox:
    """Calls for a loop from other threads: however many are posted at once, the loop is woken once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False

    def post(self, call: Callable[[], object]) -> None:
        """Have the loop call this soon. Raises LoopGone once it is closed."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._open)
            except RuntimeError as error:
                self._woken = False
                raise LoopGone from error

    def _open(self) -> None:
        self._woken = False  # first: what is posted from now on may be missed below, and wakes us again
        try:
            for _ in range(len(self._calls)):
                self._calls.popleft()()
        finally:
            if self._calls and not self._woken:
                self.loop.call_soon(self._open)

    def submit(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run what this makes in the loop, in the context of who asks. Cancelling the future cancels it."""
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def start() -> None:
            if future.cancelled():
                return
            task = self.loop.create_task(work(), context=context)
            task.add_done_callback(lambda done: _copy_outcome(done, future))
            future.add_done_callback(lambda done: self._cancel(task) if done.cancelled() else None)

        self.post(start)
        return future

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(task.cancel)


def _copy_outcome(task: asyncio.Task[T], future: Future[T]) -> None:
    if not future.set_running_or_notify_cancel():
        if not task.cancelled():
            task.exception()  # nobody waits for it any more
    elif task.cancelled():
        future.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


# --- the thread ---------------------------------------------------------------------------------------


class LoopThread:
    """A daemon thread that runs one event loop. Never stopped: it ends with its process."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._pool = _Pool()
        self.loop.set_default_executor(self._pool)
        self.mailbox = Mailbox(self.loop)
        _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def hold_still(self) -> Callable[[], None]:
        """Have it stand where it holds no lock, until what this gives is called.

        A forked child inherits locks as they are, but not the threads that would release them. The worst are those of
        imports: a client library is imported while connecting, just when a server forks its first workers.
        """
        if _greenlets_run() or asyncio._get_running_loop() is self.loop:
            return lambda: None
        stands, over = threading.Event(), threading.Event()

        def stand() -> None:
            stands.set()
            over.wait(STAND)

        deadline = time.monotonic() + STAND
        self.mailbox.post(stand)
        stands.wait(STAND)
        while self._pool.busy and time.monotonic() < deadline:
            time.sleep(0.001)
        return over.set


class _Pool(ThreadPoolExecutor):
    """Threads that take work until the process is gone.

    Those of the standard library take none once the main thread has ended, though the last messages leave after it
    (from threads that go on, and at exit), and in the end none can be started: so the first one is, at once.
    """

    def __init__(self) -> None:
        super().__init__(1)  # a thread it never starts: `submit` is ours
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._started = 1
        self._taken = self._done = 0
        self._counting = threading.Lock()
        _thread.start_new_thread(self._serve, ())

    @property
    def busy(self) -> bool:
        """Whether it has work."""
        return self._done < self._taken

    def submit(self, call: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._taken += 1  # in the loop, which alone has work
        future.add_done_callback(self._count)
        self._work.put(functools.partial(_run_for, future, call, *arguments, **keywords))
        if self._started < THREADS:
            try:
                _thread.start_new_thread(self._serve, ())
                self._started += 1
            except RuntimeError:
                pass  # Python is ending: those there are do it
        return future

    def _count(self, _: Future[Any]) -> None:
        with self._counting:
            self._done += 1

    def _serve(self) -> None:
        while True:
            self._work.get()()


def _run_for(future: Future[T], call: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call(*arguments, **keywords)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


# --- greenlets ----------------------------------------------------------------------------------------


def _new_loop() -> asyncio.AbstractEventLoop:
    """A loop that may run in a greenlet of gevent: there all are greenlets of one thread, and so is our loop.

    A thread of the operating system would share locks and sockets with greenlets that belong to another one.
    """
    _refuse_eventlet()
    if not _greenlets_run():
        return asyncio.new_event_loop()
    if not sys.modules["gevent.monkey"].is_module_patched("select"):
        raise ConfigurationError("gevent has replaced threads but not select, where a loop waits: use patch_all()")
    selector = selectors.DefaultSelector()  # gevent's own: while it waits, other greenlets run
    wait = selector.select
    theirs: asyncio.AbstractEventLoop | None = None

    def select(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        nonlocal theirs
        asyncio._set_running_loop(theirs)  # what runs for them: not this loop
        try:
            return wait(timeout)
        finally:
            theirs = asyncio._get_running_loop()
            asyncio._set_running_loop(loop)

    selector.select = select  # type: ignore[method-assign]  # its class is gevent's, and made when it patches
    loop = asyncio.SelectorEventLoop(selector)
    return loop


def _greenlets_run() -> bool:
    """Whether gevent has put them in the place of threads."""
    gevent = sys.modules.get("gevent.monkey")
    return gevent is not None and bool(gevent.is_module_patched("threading"))


def _refuse_eventlet() -> None:
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and any(patcher.is_monkey_patched(name) for name in ("thread", "socket", "select")):
        raise ConfigurationError(
            "eventlet has replaced threads and sockets, and no event loop runs on what it puts there: use gevent, or "
            "plain threads"
        )


# --- one for each process -----------------------------------------------------------------------------


class Leaving(Protocol):
    """Who has something to do before the process ends."""

    def finish(self) -> None:
        """Do it, within a bound. Called more than once, as other threads may go on for a while."""
        ...


class Shared:
    """The loop thread of this process, started by whoever asks first, and what is to be done before it ends."""

    def __init__(self) -> None:
        self._thread: LoopThread | None = None
        self._starting = threading.Lock()
        self.leaving: WeakSet[Leaving] = WeakSet()
        """Who is to finish when the process ends, while the loop thread still runs."""
        self._forking = threading.local()  # by thread
        forks.watch(self)
        os.register_at_fork(before=self._hold_still, after_in_parent=self._go_on)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Its loop; None while nobody asked for it."""
        return None if self._thread is None else self._thread.loop

    @property
    def mailbox(self) -> Mailbox:
        """Of the loop thread. Raises ConfigurationError under eventlet."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = LoopThread()
                    self._arrange_to_leave()
        return self._thread.mailbox

    def _arrange_to_leave(self) -> None:
        """When the main thread has ended, before thread pools refuse work, which an engine may need; and again when
        the other threads have.

        Children of multiprocessing leave without the latter; so do those of billiard, which shares its finalizers.
        """
        atexit.register(self._leave)
        try:
            threading._register_atexit(self._leave)  # type: ignore[attr-defined]  # what thread pools do
        except RuntimeError:
            pass  # it has ended already
        if (multiprocessing := sys.modules.get("multiprocessing.util")) is not None:
            multiprocessing.Finalize(None, self._leave, exitpriority=100)

    def _leave(self) -> None:
        for one in list(self.leaving):
            one.finish()

    def _hold_still(self) -> None:
        self._forking.go_on = None if self._thread is None else self._thread.hold_still()

    def _go_on(self) -> None:
        if self._forking.go_on is not None:
            self._forking.go_on()

    def start_afresh(self) -> None:
        if self._thread is not None:
            forks.leave_alone(self._thread)
        self._thread, self._starting, self.leaving = None, threading.Lock(), WeakSet()


SHARED = Shared()
