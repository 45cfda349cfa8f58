"""Engines that the processes of a web server share, and what is in a topic of theirs."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater import SyncBroker

EachOnce = Callable[[str, str, int], None]


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """The URL of an engine by its name."""

    def url_of(engine: str) -> str:
        if engine == "local":
            return f"local://{tmp_path}/data?durability=process"
        return str(request.getfixturevalue(f"{engine}_server").url)

    return url_of


@pytest.fixture
def each_once() -> EachOnce:
    """Checks that a topic has the numbers below `count`, each once."""

    def check(url: str, topic: str, count: int) -> None:
        with SyncBroker(url) as face:
            with face.stream(topic, start="earliest", wait=5, limit=count) as stream:
                found = [message.value for message in stream]
            with face.stream(topic, start="earliest", wait=0.5) as stream:
                assert sum(1 for _ in stream) == len(found)
        assert sorted(found) == list(range(count))

    return check
