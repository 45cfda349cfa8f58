"""The blocking face has every method of the broker, and each takes what the original takes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from headwater import App, Broker, Stream, SyncBroker
from headwater.admin import Admin, Cluster, Groups, Partitions, Topics
from headwater.dead import DeadLetters
from headwater.sync import SyncStream
from headwater.sync.admin import SyncAdmin, SyncCluster, SyncDeadLetters, SyncGroups, SyncPartitions, SyncTopics

# Of a Broker, what is the framework's own, and not for users.
INTERNAL = {"send", "prepare", "deliver", "reach"}
PARTS = [
    (Topics, SyncTopics),
    (Partitions, SyncPartitions),
    (Groups, SyncGroups),
    (Cluster, SyncCluster),
    (DeadLetters, SyncDeadLetters),
]


def asynchronous(kind: type) -> set[str]:
    """The public methods that are awaited."""
    return {
        name
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.iscoroutinefunction(value) or inspect.isasyncgenfunction(value))
    }


def asked(function: Any, leave_out: str = "") -> list[inspect.Parameter]:
    """Its parameters, with their names, kinds, defaults and types."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return [parameter for parameter in parameters if parameter.name != leave_out]


@pytest.mark.parametrize("name", sorted(asynchronous(Broker) - INTERNAL))
def test_a_method_of_the_broker_has_a_blocking_twin_of_the_same_signature(name: str) -> None:
    ours, theirs = getattr(SyncBroker, name), getattr(Broker, name)
    assert not inspect.iscoroutinefunction(inspect.unwrap(ours)) or ours is not theirs
    assert asked(ours) == asked(theirs)
    assert inspect.signature(ours).return_annotation == inspect.signature(theirs).return_annotation


def test_a_stream_is_asked_for_as_one_of_the_broker() -> None:
    assert asked(SyncBroker.stream) == asked(Broker.stream)


def test_publish_soon_takes_what_publish_takes_except_that_it_never_waits() -> None:
    assert asked(SyncBroker.publish_soon) == asked(Broker.publish, leave_out="confirm")


@pytest.mark.parametrize(("part", "face"), PARTS, ids=lambda kind: kind.__name__)
def test_a_part_of_the_administration_has_the_same_methods(part: type, face: type) -> None:
    own = {name for name in vars(face) if not name.startswith("_")}
    assert own == asynchronous(part)
    for name in own:
        assert inspect.signature(getattr(face, name)) == inspect.signature(getattr(part, name))
        assert getattr(face, name).__doc__ == getattr(part, name).__doc__


def test_the_administration_has_the_same_parts() -> None:
    broker = Broker("memory://")
    parts = set(vars(Admin("memory", broker.engine.admin, broker)))  # type: ignore[arg-type]  # memory has one
    assert {name for name in vars(SyncAdmin(broker.sync)) if not name.startswith("_")} == {
        name for name in parts if not name.startswith("_")
    }


@pytest.mark.parametrize("name", ["ensure", "watch_lag", "watch_cluster"])
def test_the_administration_itself_has_the_same_methods(name: str) -> None:
    assert asked(getattr(SyncAdmin, name)) == asked(getattr(Admin, name))


@pytest.mark.parametrize("name", sorted((asynchronous(Stream) | {"batches"}) - {"some"}))
def test_a_stream_has_the_same_methods(name: str) -> None:
    assert asked(getattr(SyncStream, name)) == asked(getattr(Stream, name))


def test_an_app_has_the_face_of_its_first_broker() -> None:
    first, second = Broker("memory://"), Broker("memory://")
    app = App("shop", broker=[first, second])
    assert app.sync is first.sync
    assert first.sync is first.sync
    assert first.sync is not second.sync
