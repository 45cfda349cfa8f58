"""How a service shows that it is ready: a line, a port, an answer, a file, a notification, or what a function says."""

from __future__ import annotations

import asyncio
import http.client
import inspect
import io
import os
import re
import secrets
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import SplitResult, urlsplit

from .output import Output
from .process import Command

if TYPE_CHECKING:
    from .service import Service

INTERVAL: Final = 0.01, 0.25  # seconds between two looks where there is no event: at first, at most
LOOK: Final = 2.0  # seconds a look at a port may take
ANSWER: Final = 1 << 16  # bytes of an HTTP answer that are looked at
READY_FD: Final = "HEADWATER_READY_FD"

Callback = Callable[..., Any]
"""A function, async or not, that is given the service."""


class NotReadyError(Exception):
    """What a probe has found instead of a sign."""


@dataclass
class Start:
    """One start of a service, as probes see it while it is prepared."""

    service: Service
    command: Command
    output: Output
    resources: ExitStack = field(default_factory=ExitStack)
    """Closed when the process has ended."""


@dataclass(eq=False)
class Watch:
    """A probe at work on one start."""

    probe: Probe
    wait: Callable[[Watch], Awaitable[object]]
    parts: Sequence[Watch] = ()
    done: bool = False
    reason: str = ""
    """What was found last instead of the sign."""

    async def run(self) -> None:
        """Return once the sign is there."""
        await self.wait(self)
        self.done = True

    @property
    def missing(self) -> str:
        """What has not shown yet, and why."""
        if self.parts:
            return " and ".join(part.missing for part in self.parts if not part.done)
        return f"{self.probe}: {self.reason}" if self.reason else str(self.probe)


class Probe(ABC):
    """Tells that a service is ready. `a & b` waits for both, `a | b` for the first; one of them may be a function."""

    @abstractmethod
    async def begin(self, start: Start) -> Watch:
        """Prepare for a process that is not there yet. NotReadyError if something else gives the sign already."""

    async def check(self, service: Service) -> None:
        """Look once at a service that runs; any exception says that it is not well."""
        raise NotReadyError(f"{self} comes once, and says nothing of a service's health: give another probe")

    def __and__(self, other: Probe | Callback) -> Probe:
        return AllOf((self, as_probe(other)))

    def __rand__(self, other: Callback) -> Probe:
        return AllOf((as_probe(other), self))

    def __or__(self, other: Probe | Callback) -> Probe:
        return AnyOf((self, as_probe(other)))

    def __ror__(self, other: Callback) -> Probe:
        return AnyOf((as_probe(other), self))


def as_probe(value: Probe | Callback) -> Probe:
    """A function becomes the probe that asks it."""
    return value if isinstance(value, Probe) else Function(value)


async def call(function: Callback, service: Service) -> Any:
    """Call a function of the user's with the service, and await what is to be awaited."""
    result = function(service)
    return await result if inspect.isawaitable(result) else result


async def _look_until_well(watch: Watch, look: Callable[[], Awaitable[object]], patience: float | None = LOOK) -> None:
    """There is no event to wait for: look again and again, each time after a longer pause."""
    pause, longest = INTERVAL
    while True:
        try:
            async with asyncio.timeout(patience):
                await look()
                return
        except TimeoutError:
            watch.reason = f"no answer within {patience} s"
        except Exception as error:
            watch.reason = str(error) or type(error).__name__
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, longest)


# --- signs that come by themselves --------------------------------------------------------------------


@dataclass(frozen=True)
class Log(Probe):
    """A line of its output in which this regular expression is found.

    What named groups match is in `service.found`. A line without an end counts when it has not grown for a moment.
    """

    pattern: str

    def __post_init__(self) -> None:
        re.compile(self.pattern)  # a wrong one fails where it is written

    async def begin(self, start: Start) -> Watch:
        found = start.output.watch(re.compile(self.pattern))
        start.resources.callback(found.cancel)

        async def wait(watch: Watch) -> None:
            watch.reason = "no line matched"
            groups = (await found).groupdict()
            start.service.found.update({name: text for name, text in groups.items() if text is not None})

        return Watch(self, wait)

    def __str__(self) -> str:
        return f"Log({self.pattern!r})"


@dataclass(frozen=True)
class Notify(Probe):
    """The service says so itself: `READY=1` to the socket named in `NOTIFY_SOCKET`, as systemd's sd_notify does.

    With `fd` it writes a line to the descriptor whose number is in `HEADWATER_READY_FD`, as s6 has it.
    """

    fd: bool = False

    async def begin(self, start: Start) -> Watch:
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watch = Watch(self, lambda _: told)
        (self._listen_to_pipe if self.fd else self._listen_to_socket)(start, watch, told)
        return watch

    def _listen_to_pipe(self, start: Start, watch: Watch, told: asyncio.Future[None]) -> None:
        pipe, theirs = os.pipe()
        start.command.handed.append(theirs)
        start.command.env[READY_FD] = str(theirs)
        loop = asyncio.get_running_loop()

        def receive() -> None:
            said = os.read(pipe, 4096)
            if b"\n" in said and not told.done():
                told.set_result(None)
            if not said:
                loop.remove_reader(pipe)
                watch.reason = "it was closed without a line"

        loop.add_reader(pipe, receive)
        start.resources.callback(os.close, pipe)
        start.resources.callback(loop.remove_reader, pipe)

    def _listen_to_socket(self, start: Start, watch: Watch, told: asyncio.Future[None]) -> None:
        # An abstract name: nothing is left in the file system, and a service of another user may send. So that nobody
        # else does, the kernel tells who sends.
        name = f"headwater-{secrets.token_hex(16)}"
        line = start.resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        line.setblocking(False)
        line.bind(f"\0{name}")
        start.command.env["NOTIFY_SOCKET"] = f"@{name}"
        user = start.command.user
        trusted = {0, os.getuid() if user is None else user.pw_uid}
        loop = asyncio.get_running_loop()

        def receive() -> None:
            said, about, _, _ = line.recvmsg(4096, socket.CMSG_SPACE(12))
            if not about or struct.unpack("iII", about[0][2])[1] not in trusted:
                return
            for word in said.decode(errors="replace").splitlines():
                if word == "READY=1" and not told.done():
                    told.set_result(None)
                elif word.startswith("STATUS="):
                    watch.reason = word.removeprefix("STATUS=")

        loop.add_reader(line, receive)
        start.resources.callback(loop.remove_reader, line)

    def __str__(self) -> str:
        return "Notify(fd=True)" if self.fd else "Notify()"


# --- signs that have to be looked for -----------------------------------------------------------------


@dataclass(frozen=True)
class Tcp(Probe):
    """Its port accepts connections. A port that does before the start is somebody else's: the start fails."""

    port: int
    host: str = "127.0.0.1"

    async def begin(self, start: Start) -> Watch:
        await _refuse_if_there_already(self, start.service, f"port {self.port} of {self.host} is taken")
        return Watch(self, lambda watch: _look_until_well(watch, lambda: self.check(start.service)))

    async def check(self, service: Service) -> None:
        async with _connection(self.host, self.port):
            pass

    def __str__(self) -> str:
        return f"Tcp({self.port})" if self.host == "127.0.0.1" else f"Tcp({self.port}, {self.host!r})"


@dataclass(frozen=True)
class Http(Probe):
    """A GET of this URL is answered with this status, or one of a range, and a body in which `body` is found.

    The first 64 KiB of an answer are looked at. The certificate of an `https` URL is not checked: a probe asks for
    life, and says nothing that is secret.
    """

    url: str
    status: int | range = range(200, 300)
    body: str | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"Http({self.url!r}): give a URL such as http://127.0.0.1:8080/health")
        re.compile(self.body or "")

    async def begin(self, start: Start) -> Watch:
        await _refuse_if_there_already(self, start.service, "it is answered")
        return Watch(self, lambda watch: _look_until_well(watch, lambda: self.check(start.service)))

    async def check(self, service: Service) -> None:
        answer = await _get(urlsplit(self.url), whole=self.body is not None)
        wanted = self.status if isinstance(self.status, range) else (self.status,)
        if answer.status not in wanted:
            raise NotReadyError(f"status {answer.status}")
        if self.body is not None and not re.search(self.body, _body(answer)):
            raise NotReadyError(f"the body does not match {self.body!r}")

    def __str__(self) -> str:
        return f"Http({self.url!r})"


@dataclass(frozen=True)
class File(Probe):
    """This file is there. One that was there before the start counts when it is written again."""

    path: str | os.PathLike[str]

    async def begin(self, start: Start) -> Watch:
        before = self._stamp()

        async def look() -> None:
            if self._stamp() in (None, before):
                raise NotReadyError("it is not there" if before is None else "it was not written again")

        # Not by inotify, which wants a folder that is there, and tells nothing of what is changed over a network.
        return Watch(self, lambda watch: _look_until_well(watch, look))

    async def check(self, service: Service) -> None:
        if self._stamp() is None:
            raise NotReadyError("it is not there")

    def _stamp(self) -> tuple[int, int] | None:
        try:
            stat = Path(self.path).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def __str__(self) -> str:
        return f"File({os.fspath(self.path)!r})"


@dataclass(frozen=True)
class Function(Probe):
    """This function, async or not, returns anything but False. After that, or an exception, it is called again."""

    function: Callback

    async def begin(self, start: Start) -> Watch:
        return Watch(self, lambda watch: _look_until_well(watch, lambda: self.check(start.service), patience=None))

    async def check(self, service: Service) -> None:
        if await call(self.function, service) is False:
            raise NotReadyError("it returned False")

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", None) or repr(self.function)


# --- signs together -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class AllOf(Probe):
    parts: Sequence[Probe]

    async def begin(self, start: Start) -> Watch:
        watches = [await part.begin(start) for part in self.parts]

        async def wait(watch: Watch) -> None:
            async with asyncio.TaskGroup() as group:
                for part in watch.parts:
                    group.create_task(part.run())

        return Watch(self, wait, watches)

    async def check(self, service: Service) -> None:
        for part in self.parts:
            await part.check(service)

    def __str__(self) -> str:
        return " & ".join(map(str, self.parts))


@dataclass(frozen=True)
class AnyOf(Probe):
    parts: Sequence[Probe]

    async def begin(self, start: Start) -> Watch:
        watches = [await part.begin(start) for part in self.parts]

        async def wait(watch: Watch) -> None:
            tasks = [asyncio.ensure_future(part.run()) for part in watch.parts]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        return Watch(self, wait, watches)

    async def check(self, service: Service) -> None:
        results = await asyncio.gather(*(part.check(service) for part in self.parts), return_exceptions=True)
        failed = [result for result in results if result is not None]
        if len(failed) == len(results):
            raise failed[0]

    def __str__(self) -> str:
        return f"({' | '.join(map(str, self.parts))})"


# --- ports --------------------------------------------------------------------------------------------


async def _refuse_if_there_already(probe: Probe, service: Service, what: str) -> None:
    try:
        async with asyncio.timeout(LOOK):
            await probe.check(service)
    except Exception:
        return
    raise NotReadyError(f"{what} before the start, so by somebody else: stop that, or choose another")


@asynccontextmanager
async def _connection(
    host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port, ssl=tls)
    try:
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            raise NotReadyError("nobody listens")  # it is connected to itself, as loopback allows
        yield reader, writer
    finally:
        writer.transport.abort()  # no farewell: nothing is waited for


async def _get(url: SplitResult, *, whole: bool) -> http.client.HTTPResponse:
    """The parsed answer; its body, if it is wanted as well, is still to be read from it."""
    tls = None
    if url.scheme == "https":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    question = f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    async with _connection(url.hostname or "", url.port or (443 if tls else 80), tls) as (reader, writer):
        writer.write(question.encode())
        said = b""
        while len(said) < ANSWER and (whole or b"\r\n\r\n" not in said) and (more := await reader.read(ANSWER)):
            said += more
    answer = http.client.HTTPResponse(cast("socket.socket", _Said(said)))
    answer.begin()
    return answer


class _Said:
    """As much of a socket as the parser of the standard library wants."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _body(answer: http.client.HTTPResponse) -> str:
    try:
        return answer.read().decode(errors="replace")
    except http.client.IncompleteRead as error:  # longer than what was looked at
        return error.partial.decode(errors="replace")
