"""A web server in a process of its own, and many requests to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import headwater

SOURCES = Path(headwater.__file__).parent.parent
CLIENTS = 8


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerEndedError(Exception):
    """Before anybody asked it to; with what it wrote."""


@dataclass
class Server:
    """A server that listens on a port of this machine, and what it wrote."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def read_text(self) -> str:
        return self.log.read_text()

    def stop(self, within: float = 20) -> int:
        """Ask it to stop, wait until it did, by itself, and give its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within)

    def outlive(self) -> NoReturn:
        """Wait until it ended by itself."""
        self.process.wait(20)
        raise ServerEndedError(self.read_text())


@contextmanager
def serving(command: list[str], folder: Path, port: int, **environment: str) -> Iterator[Server]:
    """The server, from when its port is open; its modules are in the folder. It is stopped if it still runs."""
    log = folder / "server.log"
    path = os.pathsep.join(filter(None, [str(SOURCES), str(folder), environment.pop("PYTHONPATH", "")]))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        _wait_for_port(server)
        yield server
        if process.poll() is None:
            server.stop()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_port(server: Server) -> None:
    deadline = time.monotonic() + 20
    while True:
        if server.process.poll() is not None:
            raise ServerEndedError(server.read_text())
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, server.read_text()
            time.sleep(0.02)


def ask(port: int, method: str, path: str, body: object = None) -> tuple[int, str]:
    """The status and the body of an answer; a body is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        if body is None:
            connection.request(method, path)
        else:
            connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def get(port: int, path: str, method: str = "GET") -> str:
    """The body of an answer, which must be a good one."""
    status, text = ask(port, method, path)
    assert status < 300, f"{status}: {text[-2000:]}"
    return text


def post(port: int, path: str) -> str:
    return get(port, path, "POST")


def get_all(port: int, paths: list[str], method: str = "GET") -> set[str]:
    """The different bodies of many answers, asked for by several clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return set(pool.map(lambda path: get(port, path, method), paths))
