"""A shell in a directory of its own: commands run as real processes, their output read line by line."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import headwater
from headwater import Broker, Outgoing
from headwater.cli import main

PATIENCE = 30.0  # seconds until a test gives up; nothing waits for them to pass
SHOP = """
from dataclasses import dataclass

from headwater import App

app = App("shop", broker="local://./data?durability=process")


@dataclass
class Order:
    id: int
    amount: float


@app.subscriber("orders")
@app.publisher("invoices")
async def invoice(order: Order) -> dict:
    return {"order": order.id, "due": order.amount * 2}
"""


class Process:
    """A command that runs: its lines, stdout and stderr together, and its end."""

    def __init__(self, arguments: list[str], cwd: Path, environment: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            arguments,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.seen: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def until(self, pattern: str) -> re.Match[str]:
        """The next line that holds this pattern."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"{pattern!r} did not come:\n" + "\n".join(self.seen))
            self.seen.append(line)
            if found := re.search(pattern, line):
                return found

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """The exit code, once every process that writes to our pipe has ended."""
        code = self.popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "some process outlived it"
        while (line := self._lines.get()) is not None:
            self.seen.append(line)
        return code

    @property
    def text(self) -> str:
        return "\n".join(self.seen)

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self._reader.join(PATIENCE)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


class Shell:
    """A directory with the shop's app, and the commands run there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"local://{path}/data?durability=process"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADWATER")}
        self.environment |= {"PYTHONPATH": str(Path(headwater.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
        self._started: list[Process] = []

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "headwater", *map(str, arguments)]

    def start(self, *arguments: object, **environment: str) -> Process:
        process = Process(self.command(*arguments), self.path, self.environment | environment)
        self._started.append(process)
        return process

    def __call__(self, *arguments: object, code: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which has this exit code."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.path,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code != 1 or "Traceback" not in done.stderr
        return done

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    def publish(self, *messages: Outgoing) -> None:
        """Put messages into the store from here."""

        async def publish() -> None:
            async with Broker(self.url) as broker:
                await broker.publish_many(messages)

        asyncio.run(publish())

    def end(self) -> None:
        for process in self._started:
            process.end()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    shell.write("shop.py", SHOP)
    yield shell
    shell.end()


@dataclass
class Answer:
    """What a command printed."""

    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a table, titles left out."""
        return [re.split(r"  +", line.strip()) for line in self.out.splitlines()[1:]]


Here = Callable[..., Answer]


@pytest.fixture
def here(shell: Shell, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """Run a command in this process, for the many that only look and change: it costs a tenth."""
    monkeypatch.chdir(shell.path)

    def run(*arguments: object, code: int = 0) -> Answer:
        monkeypatch.setattr("sys.argv", ["headwater", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        out, err = capfd.readouterr()
        assert exit.value.code == code, f"exit code {exit.value.code}\n{out}\n{err}"
        return Answer(out, err)

    return run
