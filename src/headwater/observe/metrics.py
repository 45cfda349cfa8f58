"""What Prometheus is told: of an app, from what its workers know anyway, and what else the process has registered."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from ..app import App

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from ..consumer import Running

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(app: App) -> bytes | None:
    """The metrics of this process as Prometheus' text; None where prometheus-client is not installed."""
    try:
        from prometheus_client import generate_latest
    except ImportError:
        return None
    return generate_latest(_Everything(app))


class _Everything:
    """A registry: what the user's code registered, then what the app tells."""

    def __init__(self, app: App) -> None:
        self._app = app

    def collect(self) -> Iterator[Metric]:
        yield from _registered().collect()
        yield from _metrics_of(self._app)


def _registered() -> Any:
    """The process' own registry; where it shares files with other processes, what is in those."""
    from prometheus_client import REGISTRY, CollectorRegistry, multiprocess

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    shared = CollectorRegistry()
    multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # its authors left it untyped
    return shared


Samples = Iterable[tuple[Sequence[str], float]]  # the values of the labels, and of the metric


def _metrics_of(app: App) -> Iterator[Metric]:
    name, consuming = app.name, app.consuming
    workers = [(_where(app, running), running.worker) for running in consuming]
    routes = [((name, route.handler.name), route) for running in consuming for route in running.consumer.routes]
    where, handler = ("app", "subscription", "group"), ("app", "handler")

    yield _gauge("ready", "1 while the app is ready.", ("app",), [((name,), app.is_ready)])
    available = [((name, str(broker)), broker.engine.available) for broker in app.brokers]
    yield _gauge("broker_available", "1 while it can be reached.", ("app", "broker"), available)
    received = [(labels, worker.received) for labels, worker in workers]
    yield _counter("messages_received", "Messages taken from the source.", where, received)
    held = [(labels, worker.held) for labels, worker in workers]
    yield _gauge("messages_held", "Messages received and not over.", where, held)
    parked = [(labels, worker.parked) for labels, worker in workers]
    yield _gauge("messages_parked", "Of these, those that wait to be tried again.", where, parked)
    failed = [(labels, route.failed) for labels, route in routes]
    yield _counter("attempts_failed", "Calls of a handler that failed.", handler, failed)
    gave_up = [(labels, route.gave_up) for labels, route in routes]
    yield _counter("messages_given_up", "Messages that got no further attempt.", handler, gave_up)
    steps = [((name, step), seconds) for step, seconds in app.timings.items()]
    yield _gauge("start_seconds", "What each step of the start took.", ("app", "step"), steps)


def _where(app: App, running: Running) -> tuple[str, str, str]:
    return app.name, ", ".join(running.consumer.topics), running.consumer.group or ""


def _gauge(name: str, told: str, labels: Sequence[str], samples: Samples) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    return _filled(GaugeMetricFamily(f"headwater_{name}", told, labels=labels), samples)


def _counter(name: str, told: str, labels: Sequence[str], samples: Samples) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    return _filled(CounterMetricFamily(f"headwater_{name}", told, labels=labels), samples)


def _filled(family: Any, samples: Samples) -> Metric:
    """One sample for each set of labels, which several may share: Prometheus takes no two of the same."""
    totals = defaultdict[tuple[str, ...], float](float)
    for labels, value in samples:
        totals[tuple(labels)] += value
    for labels, value in totals.items():
        family.add_metric(labels, value)
    filled: Metric = family
    return filled
