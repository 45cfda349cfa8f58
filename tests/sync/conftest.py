"""Faces on engines with and without a server, and a look at what they leave behind."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from headwater import SyncBroker
from headwater.sync.thread import SHARED


async def _nothing() -> None:
    pass


KEPT = ("Dummy", "headwater-handler")  # the threads that a process keeps


def _open_things() -> Counter[str]:
    """Threads by name, and files by what they are."""
    threads = Counter(t.name for t in threading.enumerate() if not t.name.startswith(KEPT))
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            threads[os.readlink(f"/proc/self/fd/{number}").partition(":[")[0]] += 1
    return threads


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or a file open, besides the one loop thread that a process keeps."""
    for name in {"url", "server_url", "nats_server", "redis_server"} & set(request.fixturenames):
        request.getfixturevalue(name)  # a server that is first started by this test stays
    SHARED.mailbox.submit(_nothing).result(5)
    before = _open_things()
    yield
    deadline = time.monotonic() + 3
    while left := _open_things() - before:
        gc.collect()
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


@pytest.fixture(
    params=[
        "memory",
        "local",
        pytest.param("nats", marks=pytest.mark.server),
        pytest.param("redis", marks=pytest.mark.server),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each engine in turn; what is named with `topic` is this test's alone."""
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    if request.param == "local":
        return f"local://{tmp_path}/data?durability=process"
    server: str = request.getfixturevalue(f"{request.param}_server").url
    return server


@pytest.fixture(params=["fluvio", "kafka", "mosquitto", "nats", "rabbit", "redis"])
def server_url(request: pytest.FixtureRequest) -> str:
    """The URL of each real server in turn."""
    url: str = request.getfixturevalue(f"{request.param}_server").url
    return url


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def face(url: str) -> Iterator[SyncBroker]:
    with SyncBroker(url) as face:
        yield face


Read = Callable[..., list[object]]


@pytest.fixture
def read() -> Read:
    """All that is kept in a topic: `read(face, topic, count)` waits for so many, and looks whether more come."""

    def read(face: SyncBroker, topic: str, count: int) -> list[object]:
        with face.stream(topic, start="earliest", wait=5, limit=count) as stream:
            values = [message.value for message in stream]
        with face.stream(topic, start="earliest", wait=0.2) as stream:
            assert len(list(stream)) == len(values)
        return values

    return read
