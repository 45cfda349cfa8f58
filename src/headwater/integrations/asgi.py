"""ASGI: the life of an app inside a web application's, and a small application for probes and metrics."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from ..app import App, Lifespan
from ..errors import ConfigurationError
from ..observe.metrics import CONTENT_TYPE, exposition

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LIVE, READY, METRICS = "/health/live", "/health/ready", "/metrics"
STATE: Final = "headwater"  # the app's name in the state of a lifespan, which requests see


# --- the life of an app -------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: App, asgi: object, other: Lifespan | None = None) -> AsyncIterator[dict[str, Any]]:
    """The app runs as long as this lasts. See `App.lifespan` and `App.lifespan_with`."""
    async with AsyncExitStack() as entered:
        if other is not None:
            app.context.update(_mapping(await entered.enter_async_context(other(asgi))))
        if app.watcher is not None:
            await entered.enter_async_context(app.watcher.hosted())
        else:
            await app.start(share_services=True)
            entered.push_async_callback(app.shutdown)
        watching = asyncio.create_task(_watch(app), name="headwater lifespan")
        entered.callback(watching.cancel)
        yield {**app.context, STATE: app}


def _mapping(state: object) -> Mapping[str, Any]:
    if state is not None and not isinstance(state, Mapping):
        raise ConfigurationError(f"a lifespan yields a mapping or nothing, not {type(state).__name__}")
    return state or {}


async def _watch(app: App) -> None:
    """Have the app receive nothing more once it is asked to stop, and have its server stop, too."""
    await app.asked_to_stop()
    if app.failure is not None:
        app.logger.critical("%s failed, and receives nothing more: %s", app.name, app.failure)
    await app.drain()
    if callable(signal.getsignal(signal.SIGTERM)):  # by default it would end a process that expects none
        app.logger.info("%s asks its server to stop", app.name)
        signal.raise_signal(signal.SIGTERM)


# --- probes and metrics -------------------------------------------------------------------------------


class Operations:
    """An ASGI application for operators; `App.asgi` makes it."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await serve_lifespan(lifespan(self._app, self), scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, send)

    async def _answer(self, scope: Scope, send: Send) -> None:
        path = path_asked(scope)
        if path is None:
            await refuse(send, scope)
        elif path == METRICS:
            await self._give_metrics(send)
        else:
            health = self._app.health()
            await respond(send, 200 if (health.live if path == LIVE else health.ready) else 503, health)

    async def _give_metrics(self, send: Send) -> None:
        text = exposition(self._app)
        if text is None:
            await respond(send, 404, {"error": "prometheus-client is not installed: pip install 'headwater[metrics]'"})
        else:
            await respond(send, 200, text, CONTENT_TYPE)


def path_asked(scope: Scope) -> str | None:
    """Which of the paths for operators is asked for; None for another, or another method than GET and HEAD."""
    path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")  # Litestar's mounts add one
    return path if path in (LIVE, READY, METRICS) and scope["method"] in ("GET", "HEAD") else None


async def refuse(send: Send, scope: Scope) -> None:
    """Say what could be asked for instead."""
    if scope["method"] in ("GET", "HEAD"):
        await respond(send, 404, {"error": f"there is no {scope['path']}: {LIVE}, {READY}, {METRICS}"})
    else:
        await respond(send, 405, {"error": "only GET and HEAD"})


async def respond(send: Send, status: int, body: object, content_type: str = "application/json") -> None:
    """Answer with these bytes, or with this as JSON."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(content)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def serve_lifespan(
    life: AbstractAsyncContextManager[Mapping[str, Any]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Live through the two messages of ASGI's lifespan protocol."""
    await receive()
    step = "startup"
    try:
        async with life as state:
            scope.get("state", {}).update(state)
            await send({"type": "lifespan.startup.complete"})
            step = "shutdown"
            await receive()
    except BaseException as error:
        await send({"type": f"lifespan.{step}.failed", "message": str(error)})
        raise
    await send({"type": "lifespan.shutdown.complete"})
