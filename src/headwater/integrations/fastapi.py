"""FastAPI, and what else is made of Starlette: the broker of the app whose lifespan a web application has."""

from __future__ import annotations

from typing import Any

from ..app import APPS, App, Phase
from ..broker import Broker
from ..errors import ConfigurationError, MissingExtraError
from .asgi import STATE

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
except ImportError as error:
    raise MissingExtraError("fastapi", "fastapi") from error


def FromApp() -> Any:
    """The first broker of the app, for a route: `broker: Annotated[Broker, FromApp()]`.

    The app is that of `FastAPI(lifespan=app.lifespan)`; where no lifespan ran, as under httpx.ASGITransport, the only
    one that runs in this process. Raises ConfigurationError if there is none.
    """
    return Depends(_broker)


async def _broker(connection: HTTPConnection) -> Broker:
    app: App | None = connection.scope.get("state", {}).get(STATE)
    if app is None:
        running = [one for one in APPS if one.phase is not Phase.STOPPED]
        if len(running) != 1:
            raise ConfigurationError(
                f"{len(running)} Headwater apps run in this process, and this web application is that of none: "
                f"give FastAPI(lifespan=app.lifespan)"
            )
        (app,) = running
    return app.broker
