"""Whether an app lives and is ready, in words that an operator reads and a program tells apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..app import App, Phase


@dataclass(frozen=True, slots=True)
class AppHealth:
    """What a probe is told. `reasons` say why an app is not ready, or does not live; empty if all is well.

    `ready`: it is started, its brokers can be reached, and it consumes, if it is to; not while it stops.
    `live`: it has not failed. Start again what is not live, wait for what is not ready.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...] = ()


def health_of(app: App) -> AppHealth:
    """The health of this process: other workers have their own."""
    return AppHealth(app.failure is None, app.is_ready, tuple(_reasons(app)))


def _reasons(app: App) -> Iterator[str]:
    if app.failure is not None:
        yield f"it failed: {app.failure}"
    if app.phase is not Phase.RUNNING:
        yield app.phase.value
        return
    for broker in app.brokers:
        if not broker.engine.available:
            yield f"{broker} cannot be reached"
    if app.consuming and not any(running.at_work for running in app.consuming):
        yield "every subscriber has ended itself"
