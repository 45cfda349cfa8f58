"""What Prometheus is told: of an app, from what its workers know anyway, and what else the process has registered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from ..app import App

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

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


def _metrics_of(app: App) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    ready = GaugeMetricFamily("headwater_ready", "1 while the app is ready.", labels=["app"])
    ready.add_metric([app.name], app.is_ready)
    yield ready

    available = GaugeMetricFamily("headwater_broker_available", "1 while it can be reached.", labels=["app", "broker"])
    for broker in app.brokers:
        available.add_metric([app.name, str(broker)], broker.engine.available)
    yield available

    where = ["app", "subscription", "group"]
    received = CounterMetricFamily("headwater_messages_received", "Messages taken from the source.", labels=where)
    held = GaugeMetricFamily("headwater_messages_held", "Messages received and not over.", labels=where)
    parked = GaugeMetricFamily(
        "headwater_messages_parked", "Of these, those that wait to be tried again.", labels=where
    )
    failed = CounterMetricFamily(
        "headwater_attempts_failed", "Calls of a handler that failed.", labels=["app", "handler"]
    )
    gave_up = CounterMetricFamily(
        "headwater_messages_given_up", "Messages that got no further attempt.", labels=["app", "handler"]
    )
    for running in app.consuming:
        labels = [app.name, ", ".join(running.consumer.topics), running.consumer.group or ""]
        received.add_metric(labels, running.worker.received)
        held.add_metric(labels, running.worker.held)
        parked.add_metric(labels, running.worker.parked)
        for route in running.consumer.routes:
            failed.add_metric([app.name, route.handler.name], route.failed)
            gave_up.add_metric([app.name, route.handler.name], route.gave_up)
    yield from (received, held, parked, failed, gave_up)

    steps = GaugeMetricFamily("headwater_start_seconds", "What each step of the start took.", labels=["app", "step"])
    for step, seconds in app.timings.items():
        steps.add_metric([app.name, step], seconds)
    yield steps
