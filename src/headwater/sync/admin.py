"""The administration of a broker for synchronous code: the same names and signatures, blocking."""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ..admin import Admin, Cluster, Groups, Health, LagSample, Partitions, TopicChange, Topics
from ..dead import DeadLetters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..engine import Topic
    from .broker import SyncBroker

P = ParamSpec("P")
T = TypeVar("T")
Part = TypeVar("Part")


class _Face:
    """One part of the administration, made anew for each call: it belongs to the broker's connection."""

    def __init__(self, broker: SyncBroker, part: Callable[[Admin], Any]) -> None:
        self._broker = broker
        self._part = part


def _blocking(
    method: Callable[Concatenate[Part, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Face, P], T]:
    """The method of a part of Admin, with the same signature, that blocks."""

    @functools.wraps(method)
    def call(face: _Face, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        def ask() -> Coroutine[Any, Any, T]:
            return method(face._part(face._broker.broker.admin), *arguments, **keywords)

        return face._broker.run(f"admin.{method.__qualname__.lower()}", ask)

    return call


class SyncTopics(_Face):
    list = _blocking(Topics.list)
    describe = _blocking(Topics.describe)
    create = _blocking(Topics.create)
    alter = _blocking(Topics.alter)
    delete = _blocking(Topics.delete)
    purge = _blocking(Topics.purge)


class SyncPartitions(_Face):
    list = _blocking(Partitions.list)
    add = _blocking(Partitions.add)


class SyncGroups(_Face):
    list = _blocking(Groups.list)
    describe = _blocking(Groups.describe)
    lag = _blocking(Groups.lag)
    reset = _blocking(Groups.reset)
    delete = _blocking(Groups.delete)


class SyncCluster(_Face):
    describe = _blocking(Cluster.describe)
    health = _blocking(Cluster.health)


class SyncDeadLetters(_Face):
    topics = _blocking(DeadLetters.topics)
    list = _blocking(DeadLetters.list)
    replay = _blocking(DeadLetters.replay)
    purge = _blocking(DeadLetters.purge)


class SyncAdmin:
    """As `Admin`, blocking."""

    def __init__(self, broker: SyncBroker) -> None:
        self._broker = broker
        self.topics = SyncTopics(broker, lambda admin: admin.topics)
        self.partitions = SyncPartitions(broker, lambda admin: admin.partitions)
        self.groups = SyncGroups(broker, lambda admin: admin.groups)
        self.cluster = SyncCluster(broker, lambda admin: admin.cluster)
        self.dead = SyncDeadLetters(broker, lambda admin: admin.dead)

    @property
    def capabilities(self) -> Mapping[str, bool]:
        """Which operations this engine has."""

        async def ask() -> Mapping[str, bool]:
            return self._broker.broker.admin.capabilities

        return self._broker.run("admin.capabilities", ask)

    def ensure(self, topics: Sequence[Topic], *, delete: bool = False, dry_run: bool = False) -> Sequence[TopicChange]:
        """As `Admin.ensure`."""

        def ask() -> Coroutine[Any, Any, Sequence[TopicChange]]:
            return self._broker.broker.admin.ensure(topics, delete=delete, dry_run=dry_run)

        return self._broker.run("admin.ensure", ask)

    def watch_lag(self, group: str, topic: str | None = None, *, every: float = 2.0) -> Iterator[LagSample]:
        """As `Admin.watch_lag`: a plain iterator."""
        patience = every + self._broker.call_timeout
        return self._each("admin.watch_lag", lambda admin: admin.watch_lag(group, topic, every=every), patience)

    def watch_cluster(self, *, every: float = 5.0) -> Iterator[Health]:
        """As `Admin.watch_cluster`: a plain iterator."""
        return self._each("admin.watch_cluster", lambda admin: admin.watch_cluster(every=every), math.inf)

    def _each(self, method: str, watch: Callable[[Admin], AsyncIterator[T]], patience: float) -> Iterator[T]:
        """What is seen first comes within `call_timeout` seconds, and what follows within `patience`."""
        watching: AsyncIterator[T] | None = None

        async def look() -> T:
            nonlocal watching
            watching = watching or watch(self._broker.broker.admin)
            return await anext(watching)

        yield self._broker.run(method, look)
        while True:
            yield self._broker.run(method, look, timeout=patience)
