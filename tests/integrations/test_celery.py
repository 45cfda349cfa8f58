"""Celery: tasks that publish, in a real worker with each of its pools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from servers.redis import RedisServer

from .conftest import EachOnce
from .web import SOURCES

MODULE = """
import os
from celery import Celery
from headwater import SyncBroker

app = Celery("shop", broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.task_default_queue = os.environ["TOPIC"] + ".tasks"
app.conf.worker_hijack_root_logger = False
events, topic = SyncBroker(os.environ["URL"]), os.environ["TOPIC"]
events.publish(0, topic)  # in the parent, which then forks


@app.task
def publish(first):
    for n in range(first, first + 9):
        events.publish_soon(n, topic)
    events.publish(first + 9, topic)
"""

# It asks for the tasks by name, and waits for all of them.
CLIENT = """
import os
from celery import Celery, group
app = Celery(broker=os.environ["URL"], backend=os.environ["URL"])
app.conf.task_default_queue = os.environ["TOPIC"] + ".tasks"
group(app.signature("shop.publish", args=[n]) for n in range(1, 2001, 10)).apply_async().get(timeout=60)
"""


@pytest.mark.server
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_tasks_publish_in_each_pool(
    pool: str, redis_server: RedisServer, topic: str, tmp_path: Path, each_once: EachOnce
) -> None:
    (tmp_path / "shop.py").write_text(MODULE)
    environment = os.environ | {
        "URL": redis_server.url,
        "TOPIC": topic,
        "PYTHONPATH": f"{SOURCES}{os.pathsep}{tmp_path}",
        "PYTHONWARNINGS": "ignore",  # Celery's own
    }
    log = tmp_path / "worker.log"
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "--pool", pool, "--concurrency", "4"]
    command += ["--without-gossip", "--without-mingle", "--max-tasks-per-child", "20"]
    with log.open("wb") as output:
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)
    try:
        client = [sys.executable, "-c", CLIENT]
        asked = subprocess.run(client, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90)
        assert asked.returncode == 0, f"{asked.stderr}\n{log.read_text()}"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.wait()
    assert "not delivered" not in log.read_text()
    each_once(redis_server.url, topic, 2001)
