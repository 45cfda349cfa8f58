"""The process of a server: started, awaited, hung, stopped and killed by its pid, and gone when the tests are."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

from headwater import Log, Service, ServiceError, Stop
from headwater.services.blocking import Blocking
from headwater.services.readiness import Callback, Probe

HOST = "127.0.0.1"
LOOK_AGAIN = 0.01  # seconds between two looks at a server that is starting
TAKEN = re.compile(r"address already in use|eaddrinuse", re.IGNORECASE)


class MissingServerError(Exception):
    """A server's program is not on this machine."""

    def __init__(self, program: str) -> None:
        super().__init__(f"{program} is not installed: run `make servers`")


class StartError(Exception):
    """A server did not start; the message ends with the last lines of its log."""


class PortTakenError(StartError):
    """Somebody took a port between our look at it and the server's start."""


def find(*programs: str) -> str:
    """The path of the first of these programs that is here: beside the interpreter, or on PATH and where root's are."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    for program in programs:
        if path := shutil.which(program, path=places):
            return path
    raise MissingServerError(programs[0])


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below those the kernel gives to outgoing connections.

    One of those could go to any client while a server restarts, and a client that keeps connecting to a closed one is
    in the end connected to itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            probe = held.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = random.randrange(10_000, lowest) if lowest > 12_000 else 0
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            ports.append(probe.getsockname()[1])
        return ports


def _new_folder(name: str) -> Path:
    """A temporary folder, which names our process: those of processes that are gone are removed."""
    for left in Path(tempfile.gettempdir()).glob("headwater-test-*-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"headwater-test-{os.getpid()}-{name.lower()}-"))


class Process:
    """One program as a service of ours, and what only tests do to one: let it hang, and kill it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        ready: Probe | Callback | None = None,
        ready_timeout: float = 30.0,
        grace: float = 30.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.service = Service(
            Path(command[0]).name,
            command,
            ready=ready,
            ready_timeout=ready_timeout,
            stop=Stop(grace=grace),
            env=environment,
            log_level="DEBUG",  # what a server says is nothing to a test that looks at its own logs
        )
        self._held: Blocking[Service] | None = None

    @property
    def pid(self) -> int:
        assert self.service.pid is not None, "it does not run"
        return self.service.pid

    @property
    def running(self) -> bool:
        return self.service.pid is not None

    def start(self) -> None:
        """Return when it is ready."""
        held = self.service.sync()
        with ThreadPoolExecutor(1) as thread:  # for a test may ask for a server, and block, inside its loop
            thread.submit(held.__enter__).result()
        self._held = held

    def stop(self) -> None:
        """End it with SIGTERM, and after the grace with SIGKILL and a TimeoutError."""
        was_running = self.running
        self._leave()
        if was_running and self.service.exit_code == -signal.SIGKILL:
            raise TimeoutError(f"{self.command[0]} did not stop in time:\n{self.said()}")

    def kill(self) -> None:
        self.service.signal("SIGKILL")
        self._leave()

    def pause(self) -> None:
        """Stop it, and return once it has: until then its threads, each in its own time, go on answering."""
        self.service.signal("SIGSTOP")
        threads = Path(f"/proc/{self.pid}/task")
        while any(b") T " not in (thread / "stat").read_bytes() for thread in threads.iterdir()):
            time.sleep(LOOK_AGAIN)

    def resume(self) -> None:
        self.service.signal("SIGCONT")

    def said(self) -> str:
        """The last lines of what it wrote since it was started."""
        return "\n".join(self.service.lines[-30:])

    def _leave(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with suppress(ServiceError):  # that it was killed
                held.__exit__(None, None, None)


class Server(ABC):
    """A real server. What waits comes twice: as coroutines, and as `up` and `down`, which block, for session fixtures.

    `url` and the ports are known before it is started, and change only if the first start finds one of them taken.
    Where an engine has credentials they are in the URL.
    """

    PORTS: ClassVar[int] = 1  # how many it listens on; the first is the one clients use
    START_TIMEOUT: ClassVar[float] = 60.0  # seconds; many times what it takes, for machines that are busy
    STOP_TIMEOUT: ClassVar[float] = 30.0

    def __init__(self, *, extra: Sequence[str] = ()) -> None:
        """`extra` are lines of the server's own configuration language."""
        self.extra = list(extra)
        self.folder = _new_folder(type(self).__name__)
        self.ports = free_ports(self.PORTS)
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._process: Process | None = None
        self._was_ready = False
        # A test that is cancelled leaves the thread of its `start` behind; what comes next waits for it.
        self._lock = threading.RLock()

    @property
    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def configure(self) -> Process:
        """Write what the server reads; the process to start. Called once for each choice of ports."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server greets as a ready one does; an OSError is no."""

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def process(self) -> Process:
        assert self._process is not None, "it was not started"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    async def start(self) -> None:
        """Start it and wait until it is ready; nothing if it runs."""
        await asyncio.to_thread(self.up)

    async def stop(self) -> None:
        """End it gracefully and wait until it is gone; the data stay."""
        await asyncio.to_thread(self.down)

    async def kill(self) -> None:
        """End it as a crash does and wait until it is gone; the data stay as they are at that moment."""
        await asyncio.to_thread(self.down, kill=True)

    async def restart(self, *, kill: bool = False) -> None:
        """End it and start it again, on the same ports and with the same data."""
        await asyncio.to_thread(self.down, kill=kill)
        await asyncio.to_thread(self.up)

    async def save(self) -> None:
        """Have it write what it has accepted to its disk: call this before a `kill` that must lose nothing.

        Most servers do so before they answer. Mosquitto keeps everything in memory, and RabbitMQ for some seconds the
        names of its queues.
        """
        await asyncio.to_thread(self.write_down)

    def pause(self) -> None:
        """Make it hang: connections stay, and the kernel accepts new ones, but nothing answers."""
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def up(self) -> None:
        with self._lock:
            for _ in range(5):
                try:
                    return self._up()
                except PortTakenError:
                    if self._was_ready:  # others were told these ports
                        raise
                    self.down(kill=True)
                    self.ports, self._process = free_ports(self.PORTS), None
            return self._up()

    def down(self, *, kill: bool = False) -> None:
        with self._lock:
            if self._process is None:
                return
            if kill:
                self._process.kill()
            else:
                self._process.stop()

    def write_down(self) -> None:
        """As `save`, and blocks."""
        return  # most servers have nothing to do

    def close(self) -> None:
        """End it and remove its data."""
        with self._lock:
            self.down(kill=True)
            self._remove()

    def _up(self) -> None:
        if self._process is None:
            self._process = self.configure()
        if self._process.running:
            self._process.resume()
            self._await_answer()
            return
        try:
            self._process.start()
        except ServiceError as error:
            kind = PortTakenError if TAKEN.search("\n".join(error.lines)) else StartError
            raise kind(str(error)) from None
        self._was_ready = True

    async def _is_ready(self, _: Service) -> bool:
        return await asyncio.to_thread(self.answers)

    def _await_answer(self) -> None:
        """Return when one that hung has come to itself."""
        end = time.monotonic() + self.START_TIMEOUT
        while time.monotonic() < end:
            with suppress(OSError):
                if self.answers():
                    return
            time.sleep(LOOK_AGAIN)
        raise StartError(f"{self.process.command[0]} does not answer:\n{self.process.said()}")

    def _run(self, command: Sequence[str], *, log: str | None = None, **options: Any) -> Process:
        """What `configure` gives: the program, ready when it has logged `log`, if that is given, and answers."""
        ready = self._is_ready if log is None else Log(log) & self._is_ready
        return Process(command, ready=ready, ready_timeout=self.START_TIMEOUT, grace=self.STOP_TIMEOUT, **options)

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._enter)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def _enter(self) -> None:
        try:
            self.up()
        except BaseException:
            self.close()
            raise


def ask(port: int, question: bytes = b"", *, tls: bool = False) -> bytes:
    """The first bytes a server on this port answers with; an OSError within a second if none come."""
    with socket.create_connection((HOST, port), timeout=1) as plain:
        if not tls:
            plain.sendall(question)
            return plain.recv(4096)
        with _trusting().wrap_socket(plain) as secure:
            secure.sendall(question)
            return secure.recv(4096)


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context
