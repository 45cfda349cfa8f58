"""The shop in Litestar."""

import events
from litestar import Litestar, asgi, get, post
from litestar.params import FromPath, FromQuery


@post("/orders/{n:int}")
async def order(n: FromPath[int], topic: FromQuery[str] = "orders") -> str:
    return await events.order(n, topic)


@get("/prices/{n:int}")
async def ask(n: FromPath[int]) -> int:
    return await events.ask(n)


@get("/signals")
async def signals() -> bool:
    return await events.signals_are_the_servers()


operations = asgi("/ops", is_mount=True, copy_scope=True)(events.app.asgi())
api = Litestar([order, ask, signals, operations], lifespan=[events.app.lifespan_with(events.lifespan)])
