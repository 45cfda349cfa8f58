"""Servers: their real clients are answered, data survive a crash, and nothing of them outlives the tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from . import fixtures
from .clients import CLIENTS, Client
from .fixtures import ENGINES, require
from .nats import NatsServer
from .process import HOST, MissingServerError, Server, StartError
from .redis import RedisServer

pytestmark = pytest.mark.server

SHARED = {"kafka": "kafka_server", "mqtt": "mosquitto_server", "nats": "nats_server"}
SHARED |= {"rabbit": "rabbit_server", "redis": "redis_server"}
TESTS = Path(__file__).resolve().parent.parent
HERE = "tests/servers/test_servers.py"


def make(engine: str, **options: Any) -> tuple[Any, Client]:
    require(engine)
    server = ENGINES[engine](**options)
    return server, CLIENTS[engine](server)


@pytest.mark.parametrize("engine", SHARED)
async def test_a_shared_server_answers_its_client(engine: str, request: pytest.FixtureRequest) -> None:
    client = CLIENTS[engine](request.getfixturevalue(SHARED[engine]))
    await client.keep("a text")
    assert await client.kept() == "a text"


@pytest.mark.parametrize("engine", SHARED)
def test_a_paused_server_hangs_and_a_resumed_one_answers(engine: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(SHARED[engine])
    server.pause()
    with pytest.raises(TimeoutError):
        server.answers()
    server.resume()
    server.up()  # which returns once it answers


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_was_accepted_survives_a_crash_and_a_wrong_password_is_refused(engine: str) -> None:
    login = {"password": "right"} if engine == "redis" else {"user": "ada", "password": "right"}
    server, client = make(engine, **login)
    async with server:
        ports, pid = server.ports, server.process.pid
        with pytest.raises(Exception, match=r"(?i)auth|credential|password|refused|_TRANSPORT|username"):
            await client.keep("a text", password="wrong")
        await client.keep("a text")
        await server.save()
        await server.restart(kill=True)
        assert server.process.pid != pid
        assert server.ports == ports
        assert await client.kept() == "a text"


@pytest.mark.parametrize("engine", ["mqtt", "nats", "redis"])
async def test_a_server_with_tls_keeps_its_data_over_a_stop(engine: str) -> None:
    server, client = make(engine, tls=True)
    async with server:
        await client.keep("a text")
        await server.stop()
        assert not server.running
        await server.start()
        assert await client.kept() == "a text"


async def test_nats_takes_a_token() -> None:
    server, client = make("nats", token="right")
    async with server:
        await client.keep("a text")
        server.token = "wrong"
        with pytest.raises(Exception, match=r"(?i)authorization"):
            await client.kept()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_dies_with_the_test_process_that_is_killed(engine: str) -> None:
    require(engine)
    code = (
        f"import sys; from servers.fixtures import ENGINES; server = ENGINES[{engine!r}]()\n"
        "server.up(); print(server.folder, *server.ports, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        folder, *ports = tests.stdout.readline().split()
        assert any(listens(int(port)) for port in ports)
        tests.kill()
    end = time.monotonic() + 30
    while left := processes_in(folder) or [port for port in ports if listens(int(port))]:
        assert time.monotonic() < end, f"{left} is left of {engine}"
        time.sleep(0.01)
    require(engine)  # the next server of whoever removes its data
    assert not Path(folder).exists()


def listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def processes_in(folder: str) -> list[str]:
    """The processes that name this folder, in their arguments or their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            said = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue  # it ended, or is somebody else's
        if folder.encode() in said:
            found.append(place.name)
    return found


def test_a_first_start_takes_other_ports_when_one_is_taken() -> None:
    require("nats")
    server = NatsServer()
    with socket.create_server(server_address := (HOST, server.port)), server:
        assert server.port != server_address[1]
        assert server.answers()


def test_a_server_that_does_not_start_says_what_its_log_says() -> None:
    require("redis")
    with pytest.raises(StartError, match="no-such-setting"), RedisServer(extra=["no-such-setting 1"]):
        pass


def test_a_closed_server_leaves_no_folder() -> None:
    require("redis")
    with RedisServer() as server:
        assert server.folder.exists()
    assert not server.folder.exists()


def run_without_kafka(tmp_path: Path, required: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HEADWATER_CACHE": str(tmp_path), "HEADWATER_REQUIRE_ENGINES": required}
    test = f"{HERE}::test_a_shared_server_answers_its_client[kafka]"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=60)


def test_the_tests_of_a_missing_server_are_skipped_and_the_summary_says_so(tmp_path: Path) -> None:
    done = run_without_kafka(tmp_path, "nats,redis")
    assert done.returncode == 0, done.stdout
    assert "left out: the tests of kafka on a real server: Apache Kafka" in done.stdout
    assert "run `make servers`" in done.stdout


@pytest.mark.parametrize("required", ["all", "nats,kafka"])
def test_the_tests_of_a_missing_server_that_is_required_fail(tmp_path: Path, required: str) -> None:
    done = run_without_kafka(tmp_path, required)
    assert done.returncode == 1
    assert "HEADWATER_REQUIRE_ENGINES wants kafka, but Apache Kafka" in done.stdout


def test_a_shared_server_that_a_test_left_stopped_is_started_for_the_next(nats_server: NatsServer) -> None:
    nats_server.down(kill=True)
    fixtures.pytest_runtest_setup()
    assert nats_server.answers()
    nats_server.pause()
    fixtures.pytest_runtest_setup()
    assert nats_server.answers()


def test_a_program_that_is_not_here_is_a_missing_server() -> None:
    from .process import find

    with pytest.raises(MissingServerError, match="no-such-program is not installed: run `make servers`"):
        find("no-such-program")
