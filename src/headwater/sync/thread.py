"""The event loop that all synchronous callers of a process share, in a thread of its own."""

from __future__ import annotations

import _thread
import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  # names are resolved in its pool, which cannot be made at exit any more
import contextvars
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from .. import forks
from ..errors import ConfigurationError

T = TypeVar("T")


class Mailbox:
    """Calls for a loop from other threads: however many are posted at once, the loop is woken once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], object]] = deque()
        self._woken = False

    def post(self, call: Callable[[], object]) -> None:
        """Have the loop call this soon. Raises RuntimeError once the loop is closed."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        self._woken = False  # first: what is posted from now on may be missed below, and wakes us again
        while self._calls:
            self._calls.popleft()()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop, in the context of who asks. Cancelling the future cancels it."""
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def start() -> None:
            task = self.loop.create_task(work, context=context)
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


class LoopThread:
    """A daemon thread that runs one event loop. Never stopped: it ends with its process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.mailbox = Mailbox(self.loop)
        _start_thread(self._run)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


def _start_thread(run: Callable[[], None]) -> None:
    """A thread of the operating system, also where gevent has put greenlets in the place of threads."""
    if "eventlet" in sys.modules and any(
        sys.modules["eventlet"].patcher.is_monkey_patched(m) for m in ("thread", "os")
    ):
        raise ConfigurationError(
            "eventlet has replaced threads, and its hub stops in a thread of its own: use gevent or plain threads"
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
        self._at_exit: list[Callable[[], object]] = []
        forks.watch(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Its loop; None while nobody asked for it."""
        return None if self._thread is None else self._thread.loop

    def mailbox(self) -> Mailbox:
        """Of the loop thread."""
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    self._thread = LoopThread()
                    self._arrange_to_leave()
        return self._thread.mailbox

    def at_exit(self, call: Callable[[], object]) -> None:
        """Call this when the process ends, while the loop thread still runs."""
        self._at_exit.append(call)

    def _arrange_to_leave(self) -> None:
        """Before the thread pools are gone, which an engine may need: earlier than `atexit`, where Python lets us.

        Children of multiprocessing and billiard leave without either: they have finalizers of their own.
        """
        getattr(threading, "_register_atexit", atexit.register)(self._leave)
        for name in ("multiprocessing.util", "billiard.util"):
            if name in sys.modules:
                sys.modules[name].Finalize(None, self._leave, exitpriority=100)

    def _leave(self) -> None:
        calls, self._at_exit = self._at_exit, []
        for call in calls:
            call()

    def start_afresh(self) -> None:
        if self._thread is not None:
            forks.leave_alone(self._thread)
        self._thread, self._starting, self._at_exit = None, threading.Lock(), []


SHARED = Shared()
