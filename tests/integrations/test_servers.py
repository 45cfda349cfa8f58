"""One shop under the servers of ASGI, in processes as they run it: how it starts, works, fails and stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from headwater import Message, SyncBroker

from .web import SOURCES, Server, ServerEndedError, ask, free_port, get, get_all, post, serving

pytestmark = pytest.mark.server

SHOPS = Path(__file__).parent / "shops"
READY = {"live": True, "ready": True, "reasons": []}


@dataclass(frozen=True)
class Kind:
    """A server as somebody starts it."""

    command: str
    workers: int = 1
    exit_code: int = 0
    finishes: bool = True  # what is in work when it is stopped
    says_started: str | None = None  # of each worker, where it may be stopped only then


UVICORN = Kind("uvicorn {api} --port {port}", exit_code=-signal.SIGTERM)  # it raises the signal again in the end
GUNICORN = Kind("gunicorn {api} -k uvicorn_worker.UvicornWorker -w 2 -b 127.0.0.1:{port} --no-control-socket", 2)
KINDS = {
    "uvicorn": UVICORN,
    "uvicorn-3": Kind(UVICORN.command + " --workers 3", 3),
    "gunicorn-2": GUNICORN,
    "gunicorn-2-preload": Kind(GUNICORN.command + " --preload", 2),
    "hypercorn": Kind("hypercorn {api} -w 0 -b 127.0.0.1:{port}"),
    # Once the first worker has ended it kills the others, in the middle of their work.
    "hypercorn-2": Kind("hypercorn {api} -w 2 -b 127.0.0.1:{port}", 2, finishes=False),
    "headwater-run-2": Kind("headwater run {api} --workers 2 --port {port}", 2),
    # A signal that comes while a worker starts is lost, and it would go on for ever.
    "granian-2": Kind("granian {api} --interface asgi --workers 2 --port {port}", 2, says_started="Started worker-"),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
# Those that stop in a way of their own: the others are stopped by the same code.
each_way_to_stop = pytest.mark.parametrize(
    "kind", ["uvicorn", "uvicorn-3", "gunicorn-2-preload", "hypercorn", "hypercorn-2", "granian-2"]
)


class Shop:
    """A shop whose messages are in a log on disk, under one server after another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"local://{folder}/data?durability=process"

    def under(self, kind: Kind, api: str = "with_fastapi:api", **environment: str) -> AbstractContextManager[Server]:
        port = free_port()
        command = ["-m", *kind.command.format(api=api, port=port).split()]
        return serving(command, self.folder, port, URL=self.url, PYTHONPATH=str(SHOPS), **environment)

    def read(self, topic: str, limit: int | None = None) -> list[Message]:
        """What is in a topic; with a limit once it has so many."""
        wait = 0.2 if limit is None else 20
        with SyncBroker(self.url) as broker, broker.stream(topic, start="earliest", wait=wait, limit=limit) as stream:
            return list(stream)

    def numbers(self, topic: str) -> list[int]:
        return sorted(message.value for message in self.read(topic))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def health(server: Server, probe: str) -> tuple[int, list[str]]:
    status, text = ask(server.port, "GET", f"/ops/health/{probe}")
    return status, json.loads(text)["reasons"]


def wait_for_workers(server: Server, kind: Kind, number: int) -> None:
    if kind.says_started is not None:
        wait_for_log(server, kind.says_started, number)


def wait_for_log(server: Server, text: str, times: int) -> None:
    deadline = time.monotonic() + 15
    while server.read_text().count(text) < times:
        assert time.monotonic() < deadline, server.read_text()
        time.sleep(0.02)


# --- starting and working -----------------------------------------------------------------------------


def works(server: Server, shop: Shop, kind: Kind) -> None:
    """Everything that a shop does, from the first request on that its server takes."""
    assert get(server.port, "/prices/21") == "42"
    assert health(server, "ready") == (200, [])
    assert get(server.port, "/signals") == "true"
    count, deadline = 0, time.monotonic() + 20
    while count < 300 or len(processes(shop)) < kind.workers:  # a worker that starts later gets its share then
        assert time.monotonic() < deadline, f"only {len(processes(shop))} workers handle anything"
        get_all(server.port, [f"/orders/{n}" for n in range(count, count + 100)], "POST")
        count += 100
        shop.read("handled", count)
    assert server.stop(within=10) == kind.exit_code
    assert shop.numbers("handled") == list(range(count))
    assert "Traceback" not in server.read_text()


def processes(shop: Shop) -> set[str]:
    return {message.headers["process"] for message in shop.read("handled")}


@every_kind
def test_messages_flow_from_the_first_request_on_and_each_is_handled_once_by_some_worker(
    kind: Kind, shop: Shop
) -> None:
    with shop.under(kind) as server:
        works(server, shop, kind)


@pytest.mark.parametrize("api", ["with_starlette:api", "with_litestar:api"])
def test_so_it_is_in_other_frameworks(api: str, shop: Shop) -> None:
    with shop.under(UVICORN, api) as server:
        works(server, shop, UVICORN)


# --- stopping -----------------------------------------------------------------------------------------


@each_way_to_stop
def test_a_stop_finishes_what_is_in_work_and_the_next_start_takes_up_the_rest(kind: str, shop: Shop) -> None:
    finishes_and_goes_on(KINDS[kind], shop)


def finishes_and_goes_on(kind: Kind, shop: Shop) -> None:
    count = 6 * kind.workers
    with shop.under(kind) as server:
        for n in range(count):
            post(server.port, f"/orders/{n}?topic=slow-orders")
        shop.read("begun", 1)
        wait_for_workers(server, kind, kind.workers)
        assert server.stop(within=10) == kind.exit_code
    begun, handled = shop.numbers("begun"), shop.numbers("handled")
    with shop.under(kind) as server:
        shop.read("handled", count)
        wait_for_workers(server, kind, 2 * kind.workers)
    if kind.finishes:
        assert begun == handled
        assert shop.numbers("begun") == list(range(count))
    assert sorted(set(shop.numbers("handled"))) == list(range(count))
    assert "Traceback" not in server.read_text()


def test_a_drained_app_is_not_ready_but_its_server_answers_and_publishing_works(shop: Shop) -> None:
    with shop.under(UVICORN) as server:
        post(server.port, "/orders/1?topic=slow-orders")
        shop.read("begun", 1)
        assert post(server.port, "/drain") == '"drained"'
        assert shop.numbers("handled") == [1]
        assert health(server, "ready") == (503, ["it is stopping: nothing more is received"])
        assert health(server, "live")[0] == 200
        assert post(server.port, "/orders/2") == '"orders"'
        assert server.stop() == UVICORN.exit_code
        assert shop.numbers("handled") == [1]
    with shop.under(UVICORN) as server:
        shop.read("handled", 2)
    assert shop.numbers("handled") == [1, 2]


# --- failing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn-2-preload", "hypercorn-2", "granian-2"])
def test_a_start_that_fails_ends_the_server_with_the_reason(kind: str, shop: Shop) -> None:
    shop.url = "local:///proc/nothing"
    with pytest.raises(ServerEndedError, match="cannot create the directory"), shop.under(KINDS[kind]) as server:
        server.outlive()  # its port may be open before its workers start


def test_a_server_stops_when_its_app_fails_and_probes_say_so_before(shop: Shop) -> None:
    with shop.under(UVICORN, WORK="1.5") as server:
        post(server.port, "/orders/1?topic=slow-orders")
        shop.read("begun", 1)
        post(server.port, "/fail")
        reasons = ["it failed: the disk is gone", "it is stopping: nothing more is received"]
        assert health(server, "live") == health(server, "ready") == (503, reasons)
        assert server.process.wait(10) == UVICORN.exit_code
    assert shop.numbers("handled") == [1]
    assert "shop failed, and receives nothing more: the disk is gone" in server.read_text()


def test_a_worker_whose_app_fails_is_replaced_where_there_are_several(shop: Shop) -> None:
    with shop.under(GUNICORN) as server:
        get(server.port, "/prices/21")
        before = server.read_text().count("Booting worker")
        post(server.port, "/fail")
        wait_for_log(server, "Application startup complete", before + 1)
        assert get_all(server.port, ["/ops/health/ready"] * 20) == {json.dumps(READY, separators=(",", ":"))}


# --- publishing only ----------------------------------------------------------------------------------


@contextmanager
def headwater_run(shop: Shop) -> Iterator[str]:
    """`headwater run` beside a web server, from when it handles; its process, as the shop's handlers tell it."""
    command = [sys.executable, "-m", "headwater", "run", "events:app"]
    environment = os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{SHOPS}", "URL": shop.url}
    with subprocess.Popen(command, cwd=shop.folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("is ready" in line for line in process.stderr)
            yield str(process.pid)
        finally:
            process.terminate()
            process.communicate(timeout=20)


def test_web_workers_publish_only_while_headwater_run_handles(shop: Shop) -> None:
    with headwater_run(shop) as handler, shop.under(KINDS["uvicorn-3"], HEADWATER_CONSUME="0") as server:
        assert get(server.port, "/prices/21") == "42"
        get_all(server.port, [f"/orders/{n}" for n in range(100)], "POST")
        shop.read("handled", 100)
        assert processes(shop) == {handler}
        assert health(server, "ready") == (200, [])
        assert server.stop() == 0
    assert shop.numbers("handled") == list(range(100))
