"""Deaths at chosen moments: a forked child that ends, without a word, before its n-th effect on the store."""

import os
from collections.abc import Callable
from typing import Any

from headwater.log.store import Store

EFFECTS = (
    "pwritev",
    "pwrite",
    "write",
    "rename",
    "unlink",
    "ftruncate",
    "posix_fallocate",
    "fdatasync",
    "fsync",
    "open",
)
DIED = 77


class _Words:
    """The words of a control file, each store into which may be the one that never happens."""

    def __init__(self, words: memoryview, step: Callable[[], None]) -> None:
        self._words, self._step = words, step

    def __getitem__(self, index: Any) -> Any:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._step()
        self._words[index] = value

    def release(self) -> None:
        self._words.release()


class Countdown:
    """Dies at the n-th step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        if self.left == 0:
            os._exit(DIED)
        self.left -= 1

    def arm(self, store: Store | None = None) -> None:
        """From now on every effect counts."""
        for name in EFFECTS:
            setattr(os, name, self._counted(getattr(os, name)))
        if store is not None:
            control = store._control
            control.words = _Words(control.words, self.step)  # type: ignore[assignment]

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.step()
            return function(*args, **kwargs)

        return counted


def die_at(steps: int, life: Callable[[Countdown], None]) -> bool:
    """Live in a child that dies before effect number `steps`; whether it got that far."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            life(Countdown(steps))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, DIED), f"the child failed with {status}"
    return status == DIED
