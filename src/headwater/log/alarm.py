"""A receive that sleeps until something may be new."""

from __future__ import annotations

import asyncio

from .bells import Bells

_LONGEST = 3600.0  # seconds; a receive that waits longer looks in between
_TURN = 0.005  # seconds after which a receive that always finds something lets others have the loop


class Alarm:
    """Wakes one receive: by a bell, by `ring`, or after a time. `woken` is set by `wake` until it is read."""

    def __init__(self, bells: Bells) -> None:
        self._bells = bells
        self._loop = asyncio.get_running_loop()
        self._sleeper: asyncio.Future[None] | None = None
        self._woken = False
        self._yielded = self._loop.time()

    def ring(self) -> None:
        """Something may be new."""
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    def wake(self) -> None:
        """The receive is to return, with nothing if need be."""
        self._woken = True
        self.ring()

    def was_woken(self) -> bool:
        """Whether `wake` was called since this was asked last."""
        woken, self._woken = self._woken, False
        return woken

    def arm(self) -> None:
        """From here on a ring is not missed: look for news once more, then `sleep`."""
        self._sleeper = self._loop.create_future()
        self._bells.arm()

    async def sleep(self, seconds: float) -> None:
        """Until the ring, or for this long."""
        sleeper = self._sleeper
        assert sleeper is not None
        timer = self._loop.call_later(min(seconds, _LONGEST), self.ring)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleeper = None
            self._yielded = self._loop.time()

    async def take_turns(self) -> None:
        """Let others have the loop, if this receive had it for a while."""
        if self._loop.time() - self._yielded > _TURN:
            await asyncio.sleep(0)
            self._yielded = self._loop.time()
