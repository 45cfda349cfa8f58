"""How a service is stopped, when it is started again, and how its health is asked for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..retry import Retry

if TYPE_CHECKING:
    from .readiness import Probe


@dataclass(frozen=True, slots=True)
class Stop:
    """End the service with this signal, and kill what is left of it after `grace` seconds."""

    signal: str = "SIGTERM"
    grace: float = 10.0

    def __post_init__(self) -> None:
        if self.signal not in signal.Signals.__members__:
            raise ValueError(f"Stop({self.signal!r}): give the name of a signal, such as 'SIGTERM' or 'SIGINT'")

    @property
    def number(self) -> int:
        return signal.Signals[self.signal]


class Restart(Protocol):
    """What follows the end of a service that nobody asked for."""

    def delay(self, exit_code: int | None, recent: Sequence[float]) -> float | None:
        """Seconds until it is started again; None gives it up.

        `exit_code` is None when it was stopped for its health; `recent` says how many seconds ago each of its earlier
        restarts was.
        """


@dataclass(frozen=True, slots=True)
class Never:
    """Any end that nobody asked for is a failure."""

    def delay(self, exit_code: int | None, recent: Sequence[float]) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class Always:
    """Start it again whenever it ends; given up when that was done `max` times `within` seconds.

    The wait doubles from `backoff[0]` seconds up to `backoff[1]`, and a random half of it is taken off, so that
    services that fail together do not come back in step.
    """

    max: int = 5
    within: float = 60.0
    backoff: tuple[float, float] = (0.5, 30.0)

    def delay(self, exit_code: int | None, recent: Sequence[float]) -> float | None:
        count = sum(age <= self.within for age in recent)
        return None if count >= self.max else Retry(backoff=self.backoff).delay(count + 1)


@dataclass(frozen=True, slots=True)
class OnFailure:
    """As `Always`, but an end with exit code 0 is not followed by a restart: like any other, it is a failure then."""

    max: int = 5
    within: float = 60.0
    backoff: tuple[float, float] = (0.5, 30.0)

    def delay(self, exit_code: int | None, recent: Sequence[float]) -> float | None:
        return None if exit_code == 0 else Always(self.max, self.within, self.backoff).delay(exit_code, recent)


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Ask `probe` every `interval` seconds while the service runs.

    When it failed `failures` times in a row, each of them within `timeout` seconds, the service is stopped, and its
    restart policy decides. A callable is given the service; False or an exception is a failure.
    """

    probe: Probe | Callable[..., Any]
    interval: float = 10.0
    failures: int = 3
    timeout: float = 5.0
