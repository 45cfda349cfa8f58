"""The cord between a supervisor and a worker: the worker tells how it is, and lets go when the supervisor is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Final, Self

VARIABLE: Final = "HEADWATER_CORD"  # the worker's file descriptor, in its environment
PROBES: Final = "HEADWATER_PROBES"  # where a worker answers probes, in its environment: the path of a socket
MARGIN: Final = 10.0  # seconds a stop may take beyond the app's `graceful_timeout`: hooks, flushing, closing

LOADED, READY, HOPELESS, LISTEN, SERVICES = "loaded", "ready", "hopeless", "listen", "services"


class WorkerEnd:
    """What a worker holds.

    The supervisor's end closes with its process, however that died. A thread of its own notices, for the event loop
    may not run yet, or hang.
    """

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._patience = 0.0
        self._given: queue.SimpleQueue[socket.socket] = queue.SimpleQueue()

    @classmethod
    def from_environment(cls) -> Self | None:
        """The cord this process was started with; None for one that nobody supervises."""
        descriptor = os.environ.pop(VARIABLE, None)  # not for the processes that the app starts
        return None if descriptor is None else cls(socket.socket(fileno=int(descriptor)))

    def hold(self) -> None:
        """Stop this process, as SIGTERM does, when the supervisor is gone."""
        threading.Thread(target=self._watch, name="headwater cord", daemon=True).start()

    def tell_loaded(self, patience: float) -> None:
        """Say that there is an app, and that stopping it may take so many seconds; after that it is killed."""
        self._patience = patience
        self._say(f"{LOADED} {patience}")

    def tell_ready(self) -> None:
        self._say(READY)

    def tell_hopeless(self) -> None:
        """Say that another try must fail in the same way."""
        self._say(HOPELESS)

    def tell_services(self) -> None:
        """Say that the app has services, which the supervisor is to hold before it starts this worker again."""
        self._say(SERVICES)

    def ask_for_socket(self) -> socket.socket:
        """The socket that listens for all workers. A supervisor that has none stops this process instead."""
        self._say(LISTEN)
        return self._given.get()

    def _say(self, words: str) -> None:
        with contextlib.suppress(OSError):  # a supervisor that is gone shows in _watch
            self._line.sendall(words.encode() + b"\n")

    def _watch(self) -> None:
        with contextlib.suppress(OSError):
            while (received := socket.recv_fds(self._line, 64, 1))[0]:
                for descriptor in received[1]:
                    self._given.put(socket.socket(fileno=descriptor))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._patience)
        os.kill(os.getpid(), signal.SIGKILL)


class SupervisorEnd:
    """What a supervisor holds for one worker: calls back with each word the worker says, inside the running loop."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        self._line, theirs = socket.socketpair()
        self._line.setblocking(False)
        self.theirs = theirs
        """For the worker to inherit; closed here once it has."""
        self._hear = hear
        self._rest = b""

    def listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._line, self._receive)

    def give(self, listening: socket.socket) -> None:
        """Answer a worker that asked for the socket."""
        with contextlib.suppress(OSError):  # a worker that is gone is started again, and asks again
            socket.send_fds(self._line, [b"\n"], [listening.fileno()])

    def _receive(self) -> None:
        try:
            data = self._line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._line)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hear(line.decode())

    def finish(self) -> None:
        """Hear the last words of a worker that has ended, and close."""
        self._receive()
        asyncio.get_running_loop().remove_reader(self._line)
        self._line.close()
