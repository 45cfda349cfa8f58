"""A web server in a process of its own, and many requests to it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import headwater

SOURCES = Path(headwater.__file__).parent.parent
CLIENTS = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: list[str], folder: Path, port: int, **environment: str) -> Iterator[Path]:
    """The server, once it answers; its log. It is stopped with SIGTERM, and must end by itself."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": f"{SOURCES}{os.pathsep}{folder}", **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None, log.read_text()
            try:
                get(port, "/")
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
        yield log
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def get(port: int, path: str) -> str:
    """The body of an answer, which must be a good one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, f"{answer.status}: {text[-2000:]}"
        return text
    finally:
        connection.close()


def get_all(port: int, paths: list[str]) -> set[str]:
    """The different bodies of many answers, asked for by several clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return set(pool.map(lambda path: get(port, path), paths))
