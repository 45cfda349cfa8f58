"""The shop in Starlette."""

import events
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route


async def order(request: Request) -> JSONResponse:
    return JSONResponse(await events.order(request.path_params["n"], **request.query_params))


async def ask(request: Request) -> JSONResponse:
    return JSONResponse(await events.ask(request.path_params["n"]))


async def signals(_: Request) -> JSONResponse:
    return JSONResponse(await events.signals_are_the_servers())


api = Starlette(
    lifespan=events.app.lifespan_with(events.lifespan),
    routes=[
        Mount("/ops", events.app.asgi()),
        Route("/prices/{n:int}", ask),
        Route("/signals", signals),
        Route("/orders/{n:int}", order, methods=["POST"]),
    ],
)
