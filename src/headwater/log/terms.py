"""A group's lock that nobody can keep by being stopped: its term ends, and what it still writes is not read.

The state of a term is the file `state.N`; the highest N counts, and the lock is a byte of that number. Who
waited a whole lease for one and the same holder begins the next term with a copy of the state. The former
holder, if it ever goes on, replaces a file of an old term.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import StoreBusyError, StoreError
from .locks import ByteLocks

STATE: Final = "state."

_TERMS: Final = 1 << 40  # the byte of term 0
_END: Final = (1 << 40) - 1  # held while a term is being ended
_PATIENCE: Final = 4  # leases after which even a new term does not help


def current_term(folder: Path) -> int:
    """The term that counts; 0 in a folder without a state."""
    return max((_number(name) for name in os.listdir(folder) if name.startswith(STATE)), default=0)


def has_state(folder: Path) -> bool:
    """Whether there is a group in this folder."""
    return folder.is_dir() and any(_number(name) >= 0 for name in os.listdir(folder) if name.startswith(STATE))


def state_path(folder: Path, term: int) -> Path:
    """The state of a term."""
    return folder / f"{STATE}{term}"


def _number(name: str) -> int:
    number = name.removeprefix(STATE)
    return int(number) if number.isdecimal() else -1


class TermEndedError(StoreError):
    """This process was stopped while it held a group's lock, and others went on without it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "this process stood still while it changed the group; nothing was changed: try again")


class TermLock:
    """The lock of the folder's current term, over an opening's byte locks. One thread of an opening at a time."""

    def __init__(self, folder: Path, locks: ByteLocks, holder: memoryview[int], lease: float) -> None:
        """`holder` is two shared words: the process that holds it, and since when."""
        self._folder, self._locks, self._holder, self._lease = folder, locks, holder, lease

    @contextmanager
    def held(self) -> Iterator[int]:
        """Hold the lock; the term. Blocks. Raises StoreBusyError, naming a process, when nothing helps."""
        term = self._take()
        self._holder[0], self._holder[1] = os.getpid(), time.monotonic_ns()
        try:
            yield term
        finally:
            self._locks.give(_TERMS + term)

    def close(self) -> None:
        """Let go of the shared words. Idempotent."""
        self._holder.release()

    def _take(self) -> int:
        started = watched_since = time.monotonic()
        watched: tuple[int, int] | None = None
        pause = 0.0005
        while True:
            term = current_term(self._folder)
            if self._locks.take(_TERMS + term):
                if current_term(self._folder) == term:
                    return term
                self._locks.give(_TERMS + term)
                continue
            now, holder = time.monotonic(), (term, self._holder[1])
            if holder != watched:
                watched, watched_since = holder, now
            elif now - watched_since > self._lease:
                self._end(term)
            if now - started > _PATIENCE * self._lease:
                raise StoreBusyError(self._folder, self._holder[0] or None, round(now - started, 1))
            time.sleep(pause)
            pause = min(pause * 2, 0.02)

    def _end(self, term: int) -> None:
        """Begin the next term where this one stands."""
        if not self._locks.take(_END):
            return
        try:
            if current_term(self._folder) == term:
                path = state_path(self._folder, term)
                draft = self._folder / f"{os.urandom(8).hex()}.new"
                draft.write_bytes(path.read_bytes() if path.exists() else b"")
                os.replace(draft, state_path(self._folder, term + 1))
        finally:
            self._locks.give(_END)
