"""One program under its guard: started, told to stop, and known to be gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .. import forks
from .policies import Stop

GUARD: Final = str(Path(__file__).with_name("guard.py"))
MARKER: Final = "HEADWATER_SERVICE"  # in the environment of all that belongs to a service
MARGIN: Final = 5.0  # seconds the guard may take beyond the grace
NOT_FOR_SERVICES: Final = ("NOTIFY_SOCKET", "HEADWATER_SERVICES")  # they are about our process


@dataclass
class Command:
    """What is to be run, and how; readiness may add to `env` and `handed` before it is."""

    name: str
    words: Sequence[str]
    env: dict[str, str]
    cwd: str | os.PathLike[str] | None
    user: pwd.struct_passwd | None
    stop: Stop
    handed: list[int] = field(default_factory=list)
    """Descriptors that the program inherits, and whoever starts it closes."""


def environment(own: Mapping[str, str], user: pwd.struct_passwd | None) -> dict[str, str]:
    """Ours, without what is about our own process, and with what is the service's own."""
    inherited = {name: value for name, value in os.environ.items() if name not in NOT_FOR_SERVICES}
    if user is not None:
        inherited |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell}
    return inherited | dict(own)


class Process:
    """One run of a program, from `start` until nothing of it is left.

    `exited` has the exit code once the program has ended, the number of a signal negated; `gone` is done when
    everything that it started has ended as well, and the guard with it.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self._marker = f"{command.name}/{secrets.token_hex(8)}"
        self._guard: subprocess.Popen[bytes] | None = None
        loop = self._loop = asyncio.get_running_loop()
        self._running: asyncio.Future[int] = loop.create_future()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()

    @property
    def was_started(self) -> bool:
        return self._guard is not None

    @property
    def pid(self) -> int | None:
        """Of the program, once it runs."""
        running = self._running
        return running.result() if running.done() and running.exception() is None else None

    async def start(self) -> int:
        """Start it; the descriptor to read its output from. An OSError says why it cannot be executed."""
        output, theirs = os.pipe()
        try:
            if self._command.user is not None:  # or it could not open /dev/stdout
                os.fchown(theirs, self._command.user.pw_uid, -1)
            self._start_guard(theirs)
            os.set_blocking(output, False)
            await asyncio.shield(self._running)
        except BaseException:
            os.close(output)
            if self._guard is not None:
                await self.kill()
            raise
        finally:
            os.close(theirs)
        return output

    def _start_guard(self, output: int) -> None:
        """Takes about a millisecond, in which the interpreter is executed but has not started yet."""
        command = self._command
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        forks.watch(self)
        user = command.user
        who = "" if user is None else f"{user.pw_name}:{user.pw_uid}:{user.pw_gid}"
        line, stop, handed = theirs.fileno(), command.stop, ",".join(map(str, command.handed))
        about = [str(line), str(int(stop.number)), str(stop.grace), handed, who, command.name]
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", GUARD, *about, *command.words],
                env=command.env | {MARKER: self._marker},
                cwd=command.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(line, *command.handed),
                start_new_session=True,  # Ctrl-C in the terminal is ours, and no business of the service
            )
        except BaseException:
            self._line.close()
            raise
        finally:
            theirs.close()
        self._line.setblocking(False)
        self._loop.add_reader(self._line, self._hear)

    def _hear(self) -> None:
        try:
            words = self._line.recv(64)
        except BlockingIOError:
            return
        except OSError:
            words = b""
        kind, _, number = words.partition(b" ")
        if kind == b"running":
            self._running.set_result(int(number))
        elif kind == b"refused":
            self._running.set_exception(OSError(int(number), os.strerror(int(number)), self._command.words[0]))
        elif kind == b"exited":
            self.exited.set_result(int(number))
        else:
            self._end()

    def _end(self) -> None:
        """The guard let go of its line, with its last breath: waiting for it takes no time."""
        assert self._guard is not None
        self._loop.remove_reader(self._line)
        self._line.close()
        if self._guard.wait() != 0:
            _kill_marked(self._marker)
        if not self._running.done():
            self._running.set_exception(ProcessLookupError(f"the guard ended with code {self._guard.returncode}"))
        self._running.exception()  # who waited for it may have been cancelled
        if not self.exited.done():  # the guard was killed, and by that the program
            self.exited.set_result(-signal.SIGKILL)
        self.gone.set_result(None)

    async def stop(self) -> None:
        """Stop it and wait until nothing of it is left, which takes no longer than the grace and `MARGIN`.

        When it is cancelled, what is left is killed at once.
        """
        self._say(b"stop")
        try:
            await self._be_gone(self._command.stop.grace + MARGIN)
        except asyncio.CancelledError:
            await self.kill()
            raise

    async def kill(self) -> None:
        """The same without the grace."""
        self._say(b"kill")
        await self._be_gone(MARGIN)

    async def _be_gone(self, patience: float) -> None:
        assert self._guard is not None
        await asyncio.wait([self.gone], timeout=patience)
        if not self.gone.done():
            self._guard.kill()  # it hangs: the kernel, and `_end`, do what it did not
            await asyncio.shield(self.gone)

    def signal(self, number: int) -> None:
        """Send a signal to the process group of the program, if that still runs."""
        if self.pid is not None and not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def start_afresh(self) -> None:
        """In a forked child: let go of the line, which would stay open in its hands when our process is gone."""
        self._line.close()

    def _say(self, word: bytes) -> None:
        with contextlib.suppress(OSError):  # the guard is gone, or hangs, which shows in `_be_gone`
            self._line.send(word)


def _kill_marked(marker: str) -> None:
    """Kill whoever has the marker in its environment: what a guard that was killed could not see to."""
    wanted = f"{MARKER}={marker}".encode()
    for place in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            if wanted in place.read_bytes().split(b"\0"):
                os.kill(int(place.parent.name), signal.SIGKILL)
