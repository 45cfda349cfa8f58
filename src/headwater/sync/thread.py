"""The event loop that all synchronous callers of a process share, in a thread of its own."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextvars
import functools
import sys
import threading
from _queue import SimpleQueue  # the original, which gevent leaves alone
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from .. import forks
from ..errors import ConfigurationError

P = ParamSpec("P")
T = TypeVar("T")

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
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(_Pool())
        self.mailbox = Mailbox(self.loop)
        _start_thread(self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


class _Pool(ThreadPoolExecutor):
    """Threads that take work until the process is gone.

    Those of the standard library take none once the main thread has ended, though the last messages leave after it
    (from threads that go on, and at exit), and in the end none can be started: so the first one is, at once.
    """

    def __init__(self) -> None:
        super().__init__(1)  # a thread it never starts: `submit` is ours
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._started = 1
        _start_thread(self._serve)

    def submit(self, call: Callable[P, T], /, *arguments: P.args, **keywords: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        self._work.put(functools.partial(_run_for, future, call, *arguments, **keywords))
        if self._started < THREADS:
            try:
                _start_thread(self._serve)
                self._started += 1
            except RuntimeError:
                pass  # Python is ending: those there are do it
        return future

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


def _start_thread(run: Callable[[], None]) -> None:
    """A thread of the operating system, also where gevent has put greenlets in the place of threads."""
    eventlet = sys.modules.get("eventlet.patcher")
    if eventlet is not None and any(eventlet.is_monkey_patched(name) for name in ("thread", "socket", "select")):
        raise ConfigurationError(
            "eventlet has replaced threads and sockets, and what it puts there cannot serve an event loop in another "
            "thread: use gevent, or plain threads"
        )
    start = _thread.start_new_thread
    gevent = sys.modules.get("gevent.monkey")
    if gevent is not None and gevent.is_module_patched("threading"):
        start = gevent.get_original("_thread", "start_new_thread")
    start(run, ())


# --- one for each process -----------------------------------------------------------------------------


class Shared:
    """The loop thread of this process, started by whoever asks first, and what is to be done before it ends."""

    def __init__(self) -> None:
        self._thread: LoopThread | None = None
        self._starting = threading.Lock()
        self._at_exit: dict[Callable[[], object], None] = {}
        forks.watch(self)

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

    def at_exit(self, call: Callable[[], object]) -> None:
        """Call this when the process ends, while the loop thread still runs: more than once, as it may go on."""
        self._at_exit[call] = None

    def not_at_exit(self, call: Callable[[], object]) -> None:
        """Do not call it after all."""
        self._at_exit.pop(call, None)

    def _arrange_to_leave(self) -> None:
        """When the main thread has ended, before thread pools refuse work, which an engine may need; and again when
        the other threads have.

        Children of multiprocessing and billiard leave without the latter: they have finalizers of their own.
        """
        atexit.register(self._leave)
        try:
            threading._register_atexit(self._leave)  # type: ignore[attr-defined]  # what thread pools do
        except RuntimeError:
            pass  # it has ended already
        for name in ("multiprocessing.util", "billiard.util"):
            if name in sys.modules:
                sys.modules[name].Finalize(None, self._leave, exitpriority=100)

    def _leave(self) -> None:
        for call in list(self._at_exit):
            call()

    def start_afresh(self) -> None:
        if self._thread is not None:
            forks.leave_alone(self._thread)
        self._thread, self._starting, self._at_exit = None, threading.Lock(), {}


SHARED = Shared()
