"""Who may change the store: one thread of one process at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path
from types import TracebackType
from typing import Final

from ..errors import StoreBusyError

NAME: Final = "lock"

_YIELDS: Final = 50  # holders need microseconds: give way this often before sleeping
_NAPS: Final = (0.0001, 0.0002, 0.0005, 0.001)  # seconds; then the last one again and again


class Lock:
    """A lock between threads and processes, given back by the kernel when its holder dies.

    Raises StoreBusyError, naming the process that `owner` tells, when it is not free within `timeout`
    seconds. A holder that is merely slow makes others wait; one that is stopped makes them fail.
    """

    def __init__(self, path: Path, timeout: float, owner: Callable[[], int | None]) -> None:
        self._path, self._timeout, self._owner = path, timeout, owner
        self._threads = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def __enter__(self) -> None:
        if not self._threads.acquire(timeout=self._timeout):
            raise StoreBusyError(self._path.parent, os.getpid(), self._timeout)
        try:
            flock(self._fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            try:
                self._wait()
            except BaseException:
                self._threads.release()
                raise
        except BaseException:
            self._threads.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        flock(self._fd, LOCK_UN)
        self._threads.release()

    def _wait(self) -> None:
        deadline = time.monotonic() + self._timeout
        attempt = 0
        while True:
            if attempt < _YIELDS:
                os.sched_yield()
            elif time.monotonic() < deadline:
                time.sleep(_NAPS[min((attempt - _YIELDS) // 20, len(_NAPS) - 1)])
            else:
                raise StoreBusyError(self._path.parent, self._owner(), self._timeout)
            attempt += 1
            try:
                return flock(self._fd, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                pass

    def close(self) -> None:
        """Close the descriptor. In a forked child this does not take the lock from the parent. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
