"""A clock that moves only when a test says so."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable


class _Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """Starts at the real time and stands still until it is advanced."""

    def __init__(self) -> None:
        self._now = time.time()
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _Timer]] = []

    def time(self) -> float:
        return self._now

    def call_later(self, delay: float, callback: Callable[[], object]) -> _Timer:
        timer = _Timer(callback)
        heapq.heappush(self._timers, (self._now + max(0.0, delay), next(self._order), timer))
        return timer

    def fire_next(self, until: float) -> bool:
        """Move to the next timer at or before `until` and fire it; False when there is none."""
        while self._timers and self._timers[0][0] <= until:
            moment, _, timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._now = max(self._now, moment)
                callback()
                return True
        return False

    def stand_at(self, until: float) -> None:
        """Stand at `until`, with nothing left to fire before it."""
        self._now = max(self._now, until)
