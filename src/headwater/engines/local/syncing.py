"""One thread that waits for the disk, for all who wait at that moment."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

from ...log.store import Store

T = TypeVar("T")


class _Waiter(NamedTuple):
    upto: int
    streams: Sequence[int]
    result: Any
    future: asyncio.Future[Any]


class Syncer:
    """Makes what was appended durable and visible; one fdatasync serves everybody who came before it began."""

    def __init__(self, store: Store, ring: Callable[[Iterable[int]], None]) -> None:
        """`ring` is told, in the loop, which streams readers now see more of."""
        self._store, self._ring = store, ring
        self._loop = asyncio.get_running_loop()
        self._waiters: SimpleQueue[_Waiter | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="headwater-fsync", daemon=True)
        self._thread.start()

    def durable(self, upto: int, streams: Sequence[int], result: T) -> asyncio.Future[T]:
        """Resolves with `result` when everything before the position `upto` is on disk."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiters.put(_Waiter(upto, streams, result, future))
        return future

    def _run(self) -> None:
        while (waiter := self._waiters.get()) is not None:
            waiters = [waiter]
            closing = False
            try:
                while (waiter := self._waiters.get_nowait()) is not None:
                    waiters.append(waiter)
                closing = True
            except Empty:
                pass
            error: Exception | None = None
            try:
                self._store.sync(max(waiter.upto for waiter in waiters))
            except Exception as refused:
                error = refused
            try:
                self._loop.call_soon_threadsafe(self._resolve, waiters, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            if closing:
                return

    def _resolve(self, waiters: list[_Waiter], error: Exception | None) -> None:
        if error is None:
            self._ring({stream for waiter in waiters for stream in waiter.streams})
        for waiter in waiters:
            if waiter.future.done():
                continue
            if error is None:
                waiter.future.set_result(waiter.result)
            else:
                waiter.future.set_exception(error)

    def close(self) -> None:
        """Let the thread finish what it was given, and wait for it. Blocks."""
        self._waiters.put(None)
        self._thread.join()
