"""HTTP under `headwater run`, served by uvicorn: an ASGI application, or what probes and Prometheus ask of an app."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from ..errors import MissingExtraError
from .output import Failure

if TYPE_CHECKING:
    import uvicorn

GRACE: Final = 15.0  # seconds for requests in work to be answered, once the server is to stop
BACKLOG: Final = 2048  # connections that wait to be accepted


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises Failure where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Failure(f"cannot listen on {host}:{port}: {reason}; is something running there already?") from error


def address(given: str) -> tuple[str, int]:
    """PORT or HOST:PORT. Raises ValueError."""
    host, _, port = given.rpartition(":")
    return host.strip("[]") or "127.0.0.1", int(port)


def serve_asgi(asgi: Any, place: socket.socket, on_ready: Callable[[], object]) -> signal.Signals | None:
    """Serve until a signal, and give that; the requests in work have `GRACE` seconds.

    The application's lifespan is part of it. Raises Failure if the application does not start.
    """
    server = _server(asgi, on_ready, owns_process=True, timeout_graceful_shutdown=int(GRACE))
    stopped_by: list[signal.Signals] = []

    def note(number: int, _frame: object) -> None:
        """A signal before uvicorn heeds them, or what it raises again once it has stopped."""
        stopped_by.append(signal.Signals(number))
        server.should_exit = True

    with _handled_by(note):
        try:
            server.run(sockets=[place])
        except SystemExit:  # its lifespan failed, and uvicorn has logged why
            pass
    if not server.started:
        raise Failure("the application did not start: its lifespan failed")
    return stopped_by[0] if stopped_by else None


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGINT and SIGTERM are this handler's, where uvicorn does not take them."""
    before = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, previous in before.items():
            signal.signal(one, previous)


@asynccontextmanager
async def serving(asgi: Any, *, place: socket.socket | None = None, path: str | None = None) -> AsyncIterator[None]:
    """Serve beside what else this loop does: on a socket that listens, or on a path of the file system.

    Signals and lifespan are not its business.
    """
    options = {"lifespan": "off", "access_log": False, "uds": path, "timeout_graceful_shutdown": 1}
    server = _server(asgi, lambda: None, owns_process=False, log_level="warning", **options)
    task = asyncio.create_task(server.serve(None if place is None else [place]), name="headwater http")
    try:
        yield
    finally:
        server.should_exit = True
        await task


def _server(asgi: Any, on_ready: Callable[[], object], *, owns_process: bool, **options: Any) -> uvicorn.Server:
    """A server that tells when it is there; logging is configured already, and uvicorn's takes part in it."""
    uvicorn = _uvicorn()

    class Server(uvicorn.Server):  # type: ignore[name-defined, misc]  # imported late, so its type is not known
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_ready()

        def capture_signals(self) -> Any:
            return super().capture_signals() if owns_process else nullcontext()

    return Server(uvicorn.Config(asgi, log_config=None, **options))


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("uvicorn", "uvicorn") from error
    return uvicorn
