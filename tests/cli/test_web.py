"""`headwater run` on web applications, and the probes it serves for apps without one."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from typing import Any

import pytest
import uvicorn

from headwater import App, Outgoing
from headwater.cli.web import serve_asgi
from headwater.errors import MissingExtraError

from .conftest import PATIENCE, Process, Shell

API = """
import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import FastAPI
from headwater import App

app = App("shop", broker="local://./data?durability=process")


@app.subscriber("orders")
async def handle(n: int) -> None:
    print(f"handled {n}", flush=True)


api = FastAPI(lifespan=app.lifespan)


@api.post("/{n}")
async def order(n: int) -> int:
    await app.publish(n, "orders")
    return os.getpid()


@api.get("/slow")
async def slow() -> str:
    print("begun", flush=True)
    await asyncio.sleep(0.3)
    return "done"


def make_api() -> FastAPI:
    return api


@asynccontextmanager
async def failing(_):
    raise OSError("no database")
    yield


broken = FastAPI(lifespan=failing)


class Old:
    def __call__(self, environ, start_response):
        return [b""]


old = Old()
"""


@pytest.fixture
def web(shell: Shell) -> Shell:
    shell.write("main.py", API)
    return shell


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int, path: str, method: str = "GET") -> tuple[int, Any]:
    """Status and body, of JSON where it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read().decode()
        return answer.status, json.loads(body) if "json" in (answer.headers["content-type"] or "") else body
    finally:
        connection.close()


def until(port: int, path: str, status: int) -> Any:
    """The body, once the answer has this status."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            found, body = ask(port, path)
        except OSError:
            found, body = 0, "nobody listens"
        if found == status:
            return body
        assert time.monotonic() < deadline, (found, body)
        time.sleep(0.02)


# --- web applications ---------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["main:api", "main:make_api"])
def test_a_web_application_is_served_and_its_logs_are_ours(web: Shell, target: str) -> None:
    port = free_port()
    running = web.start("run", target, "--port", port, "--log-format", "json")
    running.until('"logger": "uvicorn.error", "message": "Application startup complete."')
    assert ask(port, "/7", "POST")[0] == 200
    running.until("handled 7")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    logged = [json.loads(line) for line in running.seen if line.startswith("{")]
    assert {line["logger"] for line in logged} == {"headwater.shop", "uvicorn.error", "uvicorn.access"}
    assert "shop is stopped" in running.text
    assert "Traceback" not in running.text


def test_requests_in_work_are_answered_before_it_stops_and_ctrl_c_exits_130(web: Shell) -> None:
    port = free_port()
    running = web.start("run", "main:api", "--port", port)
    running.until("Application startup complete")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request("GET", "/slow")
    running.until("begun")
    running.signal(signal.SIGINT)
    assert connection.getresponse().read() == b'"done"'
    connection.close()
    assert running.wait() == 130
    assert "Traceback" not in running.text


def test_workers_share_the_port_and_a_killed_one_is_replaced(web: Shell) -> None:
    port = free_port()
    running = web.start("run", "main:api", "--port", port, "--workers", 2)
    running.until(r"worker \d .*is ready")
    running.until(r"worker \d .*is ready")
    killed = ask(port, "/1", "POST")[1]
    running.until("handled 1")
    os.kill(killed, signal.SIGKILL)
    running.until(r"worker \d .*is ready")
    assert ask(port, "/2", "POST")[1] != killed
    running.until("handled 2")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_it_reloads_and_keeps_its_port(web: Shell) -> None:
    port = free_port()
    running = web.start("run", "main:api", "--port", port, "--reload")
    running.until("is ready")
    web.write("main.py", API.replace("os.getpid()", "-1"))
    running.until("main.py changed: starting again")
    running.until("is ready")
    assert ask(port, "/1", "POST")[1] == -1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_that_is_taken_is_named(web: Shell, workers: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = web("run", "main:api", "--port", port, "--workers", workers, code=1).stderr
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in error


def test_an_application_that_does_not_start_is_a_failure_with_its_reason(web: Shell) -> None:
    running = web.start("run", "main:broken", "--port", free_port())
    assert running.wait() == 1
    assert "OSError: no database" in running.text
    assert running.seen[-1] == "error: the application did not start: its lifespan failed"


def test_an_app_that_fails_inside_it_is_the_end_with_exit_code_1(web: Shell) -> None:
    web.write(
        "main.py",
        API.replace("    await app.publish", '    app.stop(OSError("the disk is gone"))\n    await app.publish'),
    )
    port = free_port()
    running = web.start("run", "main:api", "--port", port)
    running.until("Application startup complete")
    ask(port, "/1", "POST")
    assert running.wait() == 1
    assert running.seen[-1] == "error: OSError: the disk is gone"
    assert "shop is stopped" in running.text


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("main:ap", "did you mean main:app (or main:api, main:broken)? headwater run main:app"),
        ("main:old", "is an Old (from main), which speaks WSGI: a server such as gunicorn runs it (gunicorn main:old)"),
        ("main:FastAPI", "is the class FastAPI, not a Headwater App, an ASGI application, or a function without"),
    ],
)
def test_what_is_neither_is_told_what_was_found_and_what_is_accepted(web: Shell, target: str, said: str) -> None:
    assert said in web("run", target, code=2).stderr


def test_a_signal_before_the_server_heeds_any_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    run = uvicorn.Server.run

    def late(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        signal.raise_signal(signal.SIGTERM)
        run(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", late)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with socket.create_server(("127.0.0.1", 0)) as place:
        assert serve_asgi(App("shop", broker="memory://").asgi(), place, lambda: None) == signal.SIGTERM
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_without_uvicorn_its_extra_is_named(web: Shell) -> None:
    web.write("main.py", "import sys\nsys.modules['uvicorn'] = None\n" + API)
    assert str(MissingExtraError("uvicorn", "uvicorn")) in web("run", "main:api", "--port", 0, code=1).stderr


# --- probes -------------------------------------------------------------------------------------------

DRAINING = """
import asyncio
from headwater import App

app = App("slow", broker="local://./data?durability=process")
release = asyncio.Event()


@app.subscriber("work", start="earliest")
async def work(n: int) -> None:
    print("begun", flush=True)
    await asyncio.sleep(1)
"""


def test_an_app_without_a_web_server_is_probed_from_its_start_to_its_end(shell: Shell) -> None:
    port = free_port()
    shell.write("slow.py", DRAINING)
    running = shell.start("run", "slow:app", "--http", port)
    running.until("slow is ready")
    assert ask(port, "/health/ready") == (200, {"live": True, "ready": True, "reasons": []})
    shell("publish", shell.url, "work", "1")
    running.until("begun")
    running.signal(signal.SIGTERM)
    running.until("slow stops")
    status, health = ask(port, "/health/ready")
    assert (status, health["reasons"]) == (503, ["it is stopping: nothing more is received"])
    assert ask(port, "/health/live")[0] == 200
    assert running.wait() == 0


def probed(shell: Shell, *options: object) -> tuple[Process, int]:
    port = free_port()
    running = shell.start("run", "shop:app", "--http", f"127.0.0.1:{port}", "--workers", 2, *options)
    until(port, "/health/ready", 200)
    return running, port


def test_workers_are_probed_in_one_place(shell: Shell) -> None:
    running, port = probed(shell)
    _, health = ask(port, "/health/ready")
    assert health["workers"].keys() == {"0", "1"}
    pids = dict(running.until(r"worker (\d) \(pid (\d+)\) is ready").groups() for _ in range(2))
    os.kill(int(pids["1"]), signal.SIGSTOP)
    assert until(port, "/health/live", 503)["reasons"] == ["worker 1: it does not answer"]
    os.kill(int(pids["1"]), signal.SIGCONT)
    until(port, "/health/live", 200)
    os.kill(int(pids["1"]), signal.SIGKILL)
    until(port, "/health/ready", 503)
    until(port, "/health/ready", 200)
    assert ask(port, "/nowhere")[0] == ask(port, "/health/other")[0] == 404
    assert ask(port, "/health/live", "POST")[0] == 405
    running.signal(signal.SIGTERM)
    assert running.wait() == 0


def test_prometheus_gets_the_metrics_of_all_workers_from_one_place(shell: Shell) -> None:
    _running, port = probed(shell)
    shell.publish(*(Outgoing({"id": n, "amount": 1.0}, "orders") for n in range(10)))
    found = re.compile(r'headwater_messages_received_total{app="shop",.*worker="(\d)"} (\S+)')
    deadline = time.monotonic() + PATIENCE
    while True:
        received = dict(found.findall(ask(port, "/metrics")[1]))
        assert received.keys() == {"0", "1"}
        if sum(map(float, received.values())) == 10:
            return
        assert time.monotonic() < deadline, received
        time.sleep(0.05)


def test_where_probes_are_served_is_checked(web: Shell) -> None:
    assert "give a port, or HOST:PORT" in web("run", "shop:app", "--http", "here", code=2).stderr
    assert "serves itself: give --host and --port" in web("run", "main:api", "--http", 8080, code=2).stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        error = web("run", "shop:app", "--http", taken.getsockname()[1], code=1).stderr
    assert "cannot listen on 127.0.0.1" in error
