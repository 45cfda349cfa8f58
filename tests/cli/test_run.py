"""`headwater run` in one process: starting, stopping, failing."""

from __future__ import annotations

import json
import signal

import pytest

from headwater import Outgoing

from .conftest import Shell

SLOW = """
import asyncio
from headwater import App

app = App("slow", broker="local://./data?durability=process", graceful_timeout=20)


@app.subscriber("work", start="earliest")
async def work(number: int) -> None:
    print(f"begun {number}", flush=True)
    await asyncio.sleep(0.3)
    print(f"done {number}", flush=True)


@app.on_shutdown
async def say() -> None:
    print("on_shutdown", flush=True)
"""


def test_messages_flow_through_the_handlers(shell: Shell) -> None:
    running = shell.start("run", "shop:app")
    running.until("shop is ready")
    shell("publish", "shop:app", "orders", '{"id": 1, "amount": 10}', "--key", "k")
    tail = shell("tail", shell.url, "invoices", "--from", "earliest", "--limit", 1, "--format", "{key} {value[due]}")
    assert tail.stdout == "k 20.0\n"


def test_sigterm_finishes_what_is_in_work_and_exits_0(shell: Shell) -> None:
    shell.write("slow.py", SLOW)
    shell.publish(Outgoing(1, "work"))
    running = shell.start("run", "slow:app")
    running.until("begun 1")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.text.index("done 1") < running.text.index("on_shutdown")
    assert shell.json("groups", "lag", shell.url, "slow", "work")[0].keys() == {
        "topic", "partition", "committed", "latest", "lag",
    }  # fmt: skip
    assert sum(partition["lag"] for partition in shell.json("groups", "lag", shell.url, "slow")) == 0


def test_ctrl_c_stops_gracefully_and_exits_130(shell: Shell) -> None:
    running = shell.start("run", "shop:app")
    running.until("shop is ready")
    running.signal(signal.SIGINT)
    assert running.wait() == 130
    assert "shop is stopped" in running.text
    assert "Traceback" not in running.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_stops_at_once(shell: Shell, workers: int) -> None:
    shell.write("slow.py", SLOW.replace("asyncio.sleep(0.3)", "asyncio.sleep(60)"))
    shell.publish(Outgoing(1, "work"))
    running = shell.start("run", "slow:app", "--workers", workers)
    running.until("begun 1")
    running.signal(signal.SIGTERM)
    running.until("slow stops: SIGTERM")
    running.signal(signal.SIGINT)
    assert running.wait() == 0  # the first signal says how it ends
    assert "done 1" not in running.text
    assert "on_shutdown" in running.text


def test_a_thread_that_never_ends_does_not_hold_the_process(shell: Shell) -> None:
    shell.write(
        "stuck.py",
        """
import threading
from headwater import App

app = App("stuck", broker="local://./data?durability=process", graceful_timeout=0.2)

@app.subscriber("work", start="earliest")
def work(number: int) -> None:
    print("begun", flush=True)
    threading.Event().wait()
""",
    )
    shell.publish(Outgoing(1, "work"))
    running = shell.start("run", "stuck:app")
    running.until("begun")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert "threads were still at work" in running.text


def test_an_app_that_fails_exits_1_with_the_reason_in_one_line(shell: Shell) -> None:
    shell.write(
        "failing.py",
        """
from headwater import App
app = App("failing", broker="memory://")

@app.after_startup
async def fail() -> None:
    raise RuntimeError("the moon is full")
""",
    )
    assert shell("run", "failing:app", code=1).stderr == "error: RuntimeError: the moon is full\n"
    debugging = shell.start("run", "failing:app", "--log-level", "debug")
    debugging.until("Traceback")
    debugging.until("error: RuntimeError: the moon is full")
    assert debugging.wait() == 1


def test_without_a_broker_the_error_says_how_to_give_one(shell: Shell) -> None:
    shell.write("bare.py", 'from headwater import App\napp = App("bare")\n')
    error = shell("run", "bare:app", code=1).stderr
    assert error.startswith("error: the app 'bare' has no broker")
    assert "--broker URL" in error


@pytest.mark.parametrize("way", ["option", "environment"])
def test_a_broker_given_to_run_wins_over_the_apps_own(shell: Shell, way: str) -> None:
    url = "local://./other?durability=process"
    given, environment = (["--broker", url], {}) if way == "option" else ([], {"HEADWATER_BROKER": url})
    running = shell.start("run", "shop:app", *given, **environment)
    running.until("shop is ready")
    assert (shell.path / "other").exists()
    assert not (shell.path / "data").exists()


def test_logs_may_be_json(shell: Shell) -> None:
    running = shell.start("run", "shop:app", "--log-format", "json")
    line = running.until("shop is ready").string
    assert json.loads(line)["level"] == "info"
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert all(json.loads(line) for line in running.seen)


def test_a_failure_is_json_where_the_logs_are(shell: Shell) -> None:
    shell.write("bare.py", 'from headwater import App\napp = App("bare")\n')
    (line,) = shell("run", "bare:app", "--log-format", "json", code=1).stderr.splitlines()
    assert "has no broker" in json.loads(line)["message"]


def test_log_level_hides_what_is_below(shell: Shell) -> None:
    shell.write("quick.py", SLOW.replace("async def say", "async def never").replace("on_shutdown", "after_startup"))
    running = shell.start("run", "quick:app", "--log-level", "WARNING")
    running.until("after_startup")
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert running.seen == ["after_startup"]


def test_a_factory_is_called(shell: Shell) -> None:
    shell.write("made.py", "from headwater import App\ndef make_app():\n    return App('made', broker='memory://')\n")
    for options in ((), ("--factory",)):
        running = shell.start("run", "made:make_app", *options)
        running.until("made is ready")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
