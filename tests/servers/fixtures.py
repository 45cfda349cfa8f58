"""The servers a session of tests shares, and what becomes of the tests of an engine whose server is not here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import pytest

from .kafka import KafkaServer
from .mosquitto import MosquittoServer
from .nats import NatsServer
from .process import MissingServerError, Server
from .rabbit import RabbitServer
from .redis import RedisServer

ENGINES: dict[str, Callable[[], Server]] = {
    "kafka": KafkaServer,
    "mqtt": MosquittoServer,
    "nats": NatsServer,
    "rabbit": RabbitServer,
    "redis": RedisServer,
}
REQUIRED = os.environ.get("HEADWATER_REQUIRE_ENGINES", "")  # "all", or names of engines with commas


class FluvioCluster(NamedTuple):
    """Somebody's cluster, which tests neither start nor stop."""

    url: str


_shared: dict[str, Server] = {}
_left_out: dict[str, str] = {}


def require(engine: str) -> None:
    """Skip the test if the engine's server is not here; fail it if HEADWATER_REQUIRE_ENGINES wants it to be."""
    try:
        ENGINES[engine]().close()
    except MissingServerError as error:
        _leave_out(engine, str(error))


def _share(engine: str) -> Iterator[Any]:
    try:
        server = ENGINES[engine]()
    except MissingServerError as error:
        _leave_out(engine, str(error))
    with server:
        _shared[engine] = server
        yield server
        del _shared[engine]


def _leave_out(engine: str, reason: str) -> NoReturn:
    if (REQUIRED == "all" and engine in ENGINES) or engine in REQUIRED.split(","):
        pytest.fail(f"HEADWATER_REQUIRE_ENGINES wants {engine}, but {reason}", pytrace=False)
    _left_out[engine] = reason
    pytest.skip(reason)


@pytest.fixture(scope="session")
def fluvio_endpoint() -> str:
    """`host:port` of a Fluvio cluster's controller: no package registry has its server, so it is somebody's own."""
    endpoint = os.environ.get("FLUVIO_ENDPOINT")
    if not endpoint:
        _leave_out("fluvio", "there is no Fluvio cluster: name its controller with FLUVIO_ENDPOINT=host:port")
    return endpoint


@pytest.fixture(scope="session")
def fluvio_server(fluvio_endpoint: str) -> FluvioCluster:
    """The same, as the servers of other engines are given."""
    return FluvioCluster(f"fluvio://{fluvio_endpoint}")


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    yield from _share("kafka")


@pytest.fixture(scope="session")
def mosquitto_server() -> Iterator[MosquittoServer]:
    yield from _share("mqtt")


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    yield from _share("nats")


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    yield from _share("rabbit")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    yield from _share("redis")


FIXTURES = {
    f.__name__ for f in (fluvio_endpoint, kafka_server, mosquitto_server, nats_server, rabbit_server, redis_server)
}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who uses a server that is shared is marked `server`."""
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("server")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test that failed after it stopped or paused a shared server must not take the others with it."""
    for server in _shared.values():
        server.up()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for engine, reason in sorted(_left_out.items()):
        terminalreporter.write_line(f"left out: the tests of {engine} on a real server: {reason}", yellow=True)
