"""`headwater run`: an app in this process, or in workers under a supervisor."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..app import APPS, App
from ..errors import ConfigurationError, HeadwaterError
from ..observe.logs import JsonFormatter, configure_logging
from . import cord
from .cord import WorkerEnd
from .output import Failure, tell_failure, unfolded
from .supervisor import BACKOFF, QUICK_DEATHS, SETTLED, supervise
from .target import USAGE, is_url, load_app
from .web import GRACE, address, listen, serve_asgi, serving

if TYPE_CHECKING:
    from ..services import Services

_log = logging.getLogger("headwater")
EXIT_PATIENCE: Final = 3.0  # seconds for the interpreter to end once the app has stopped


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"
    critical = "critical"


class LogFormat(StrEnum):
    text = "text"
    json = "json"


HELP = f"""Run an app, or serve an ASGI application, until a signal stops it.

SIGTERM and Ctrl-C stop it gracefully: messages in work are finished within the app's graceful_timeout. A second
signal stops at once. Exits 0 after SIGTERM, 130 after Ctrl-C, 1 if the app failed, 2 if TARGET is no app.

An ASGI application, such as FastAPI's, is served by uvicorn on --host and --port, with the same logs, workers and
reload. --http serves probes and metrics of an app that has no web server, of all its workers: /health/live,
/health/ready, /metrics.

Services of the app run once: with --workers or --reload in the supervisor, which then imports the app, too.

With --workers N a supervisor starts N fresh interpreters. A worker that dies is started again after
{BACKOFF[0]:g} s, then twice as long each time, at most {BACKOFF[1]:g} s; one that was ready for {SETTLED:g} s starts
over with the count. After {QUICK_DEATHS} quick deaths in a row of one worker the supervisor gives up and exits 1.
Workers that do not stop within graceful_timeout + {cord.MARGIN:g} s are killed. When the supervisor itself is killed,
its workers stop gracefully."""


def run(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="module:app, or module:make_app, a function that gives an app.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes; they share the messages.")] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a Python file below here changes.")
    ] = False,
    host: Annotated[str, typer.Option(help="Where an ASGI application listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where an ASGI application listens.")] = 8000,
    http: Annotated[
        str | None, typer.Option(help="Serve probes and metrics of an app here.", metavar="[HOST:]PORT")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="HEADWATER_BROKER", help="Instead of the app's first broker.", metavar="URL")
    ] = None,
    factory: Annotated[bool, typer.Option("--factory", help="TARGET must be a function that gives an app.")] = False,
    log_level: Annotated[LogLevel, typer.Option(case_sensitive=False, help="Of everything.")] = LogLevel.info,
    log_format: Annotated[LogFormat, typer.Option(help="Of the logs, on stderr.")] = LogFormat.text,
) -> None:
    configure_logging(log_level.value, log_format.value)
    if broker:
        os.environ["HEADWATER_BROKER"] = broker  # where every app looks for it
    probed = None if http is None else _address(http)
    end = WorkerEnd.from_environment()
    if end is None and (workers > 1 or reload):
        watch = Path.cwd() if reload else None
        raise typer.Exit(_supervise(target, factory, workers, watch=watch, web=(host, port), http=probed))
    if end is not None:
        end.hold()
    found = load_app(target, factory=factory)
    if end is not None and isinstance(found, App) and _wants_services(found):
        end.tell_services()
    elif isinstance(found, App):
        serve(found, end, probed)
    elif probed is not None:
        raise Failure(f"{target} is a web application, and serves itself: give --host and --port", USAGE)
    else:
        serve_web(found, end, host, port)


run.__doc__ = unfolded(HELP)


def _supervise(target: str, factory: bool, workers: int, **options: Any) -> int:
    """Run workers, each of them this same command, on a cord; the exit code."""
    if is_url(target):
        raise Failure(f"{target} is a URL, and this wants an app: give module:app, and the URL with --broker", USAGE)

    def services() -> Services:
        app: App = load_app(target, factory=factory)
        assert app.services is not None, "a worker has seen some"
        return app.services

    return supervise([sys.executable, *sys.orig_argv[1:]], workers, services, **options)


def _wants_services(app: App) -> bool:
    """Whether the supervisor is to start services first."""
    if app.services is None:
        return False
    from ..services import held_by_parent

    return not held_by_parent()


def _address(given: str) -> tuple[str, int]:
    try:
        return address(given)
    except ValueError:
        raise Failure(f"--http {given}: give a port, or HOST:PORT", USAGE) from None


def serve(app: App, end: WorkerEnd | None, http: tuple[str, int] | None = None) -> None:
    """Run the app in this process, and exit as the signal or the failure that stopped it wants."""
    if end is not None:
        end.tell_loaded(app.graceful_timeout + cord.MARGIN)
        app.after_startup(end.tell_ready)
    code = 0
    try:
        asyncio.run(_run(app, http))
    except Failure:
        raise
    except Exception as error:
        if end is not None and isinstance(error, ConfigurationError):
            end.tell_hopeless()
        _tell(error)
        code = 1
    else:
        code = _exit_code(app.stopped_by, supervised=end is not None)
    _leave(code)


async def _run(app: App, http: tuple[str, int] | None) -> None:
    """Run the app, and answer probes from before it starts until it is stopped: here, or the supervisor."""
    path = os.environ.pop(cord.PROBES, None)
    async with AsyncExitStack() as answering:
        if path is not None:
            await answering.enter_async_context(serving(app.asgi(), path=path))
        elif http is not None:
            await answering.enter_async_context(serving(app.asgi(), place=listen(*http)))
        await app.run()


def serve_web(asgi: Any, end: WorkerEnd | None, host: str, port: int) -> None:
    """Serve a web application in this process, and exit as the signal that stopped it wants."""
    if end is None:
        stopped_by = serve_asgi(asgi, listen(host, port), lambda: None)
    else:
        end.tell_loaded(2 * GRACE + cord.MARGIN)
        stopped_by = serve_asgi(asgi, end.ask_for_socket(), end.tell_ready)
    failures = [app.failure for app in APPS if app.failure is not None]  # of apps that live in its lifespan
    if failures:
        _tell(failures[0])
    _leave(1 if failures else _exit_code(stopped_by, supervised=end is not None))


def _exit_code(stopped_by: signal.Signals | None, *, supervised: bool) -> int:
    """130 for Ctrl-C, 0 for SIGTERM.

    A supervisor hears of both, so that it can tell a worker somebody stopped, which it replaces, from an app that
    stopped itself.
    """
    if stopped_by is None or (stopped_by == signal.SIGTERM and not supervised):
        return 0
    return 128 + stopped_by


def _tell(error: BaseException) -> None:
    """Say in one line why the app failed; with the traceback when debugging."""
    root = logging.getLogger()
    reason = str(error) if isinstance(error, HeadwaterError) else f"{type(error).__qualname__}: {error}"
    debugging = root.isEnabledFor(logging.DEBUG)
    if any(isinstance(handler.formatter, JsonFormatter) for handler in root.handlers):
        _log.critical(reason, exc_info=error if debugging else None)  # whoever reads JSON reads nothing else
        return
    if debugging:
        traceback.print_exception(error)
    tell_failure(reason)


def _leave(code: int) -> None:
    """Exit, within bounds: a thread still busy in a handler that outlived `graceful_timeout` would hold us for ever."""

    def force() -> None:
        time.sleep(EXIT_PATIENCE)
        tell_failure(f"threads were still at work {EXIT_PATIENCE:g} s after the app had stopped: left without them")
        os._exit(code)

    threading.Thread(target=force, name="headwater exit", daemon=True).start()
    raise typer.Exit(code)
