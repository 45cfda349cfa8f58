"""Services of an app under `headwater run`: once, before all workers and after them, whatever becomes of these."""

from __future__ import annotations

import os
import signal
import time

import pytest

from .conftest import PATIENCE, Process, Shell
from .test_supervisor import gone, ready

APP = """
import os
import sys
from headwater import App
from headwater import Log, OnFailure, Service, Stop

CHILD = '''
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (print("child stops", flush=True), sys.exit(0)))
print(f"started as {os.getpid()}", flush=True)
while True:
    signal.pause()
'''
child = Service(
    "child",
    [sys.executable, "-c", CHILD],
    ready=Log(r"started as (?P<pid>\\d+)"),
    exports=lambda service: {"CHILD_PID": service.found["pid"]},
    stop=Stop("SIGTERM", 5),
)
app = App("shop", broker="local://./data?durability=process", services=[child])


@app.on_startup
def tell() -> None:
    print(f"worker {app.worker_id} sees {os.environ['CHILD_PID']}", flush=True)
"""


@pytest.fixture
def served(shell: Shell) -> Shell:
    shell.write("shop.py", APP)
    return shell


def started(running: Process) -> int:
    """The pid of the child, from its log."""
    return int(running.until(r"headwater\.service\.child: started as (\d+)")[1])


def test_in_one_process_they_are_started_first_and_stopped_last(served: Shell) -> None:
    running = served.start("run", "shop:app")
    child = started(running)
    running.until(f"worker None sees {child}")
    running.until("shop is ready: services [1-9]")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert gone(child)
    stopping, stopped = running.text.index("shop stops: SIGTERM"), running.text.index("child stops")
    assert stopping < stopped


def test_workers_share_those_that_their_supervisor_holds(served: Shell) -> None:
    running = served.start("run", "shop:app", "--workers", 2)
    child = started(running)
    workers = ready(running, 2)
    os.kill(workers[1], signal.SIGKILL)
    ready(running, 1)
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.text.count("started as") == 1
    assert running.text.count(f"sees {child}") == 3  # the one that came again, too
    assert running.text.rindex("shop is stopped") < running.text.index("child stops")


def test_a_change_of_the_code_starts_the_workers_again_and_not_the_services(served: Shell) -> None:
    running = served.start("run", "shop:app", "--reload")
    child = started(running)
    ready(running, 1)
    served.write("shop.py", APP.replace("sees", "looks at"))
    running.until(f"worker 0 looks at {child}")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.text.count("started as") == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_does_not_start_is_the_end_with_its_last_words(served: Shell, workers: int) -> None:
    served.write("shop.py", APP.replace('print(f"started', "sys.exit('no licence'); print(f\"started"))
    running = served.start("run", "shop:app", "--workers", workers)
    assert running.wait() == 1
    assert "error: service 'child' ended with exit code 1 before it was ready" in running.text
    assert running.seen[-1] == "  | no licence"
    assert "sees" not in running.text


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_ends_for_good_stops_the_app_which_exits_1(served: Shell, workers: int) -> None:
    running = served.start("run", "shop:app", "--workers", workers)
    child = started(running)
    for _ in range(workers):
        running.until("shop is ready")
    os.kill(child, signal.SIGKILL)
    assert running.wait() == 1
    assert running.text.count("shop is stopped") == workers
    assert "error: service 'child' was ended by SIGKILL" in running.text


def test_one_that_is_started_again_troubles_nobody(served: Shell) -> None:
    served.write("shop.py", APP.replace("    stop=", "    restart=OnFailure(backoff=(0.01, 0.1)),\n    stop="))
    running = served.start("run", "shop:app")
    child = started(running)
    running.until("shop is ready")
    os.kill(child, signal.SIGKILL)
    again = started(running)
    assert again != child
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert gone(again)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_headwater_leaves_none_behind(served: Shell, workers: int) -> None:
    running = served.start("run", "shop:app", "--workers", workers)
    child = started(running)
    for _ in range(workers):
        running.until("shop is ready")
    running.popen.kill()
    assert gone(child)
    running.wait()


def test_ctrl_c_while_they_start_ends_all_of_it(served: Shell) -> None:
    served.write("shop.py", APP.replace('ready=Log(r"started', 'ready=Log(r"never started'))
    begin = time.monotonic()
    running = served.start("run", "shop:app", "--workers", 2)
    child = started(running)
    running.signal(signal.SIGINT)
    assert running.wait() == 130
    assert gone(child)
    assert time.monotonic() - begin < PATIENCE
