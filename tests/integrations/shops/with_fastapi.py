"""The shop in FastAPI."""

import events
from fastapi import FastAPI

api = FastAPI(lifespan=events.app.lifespan_with(events.lifespan))
api.mount("/ops", events.app.asgi())
api.get("/prices/{n}")(events.ask)
api.get("/signals")(events.signals_are_the_servers)
api.post("/orders/{n}")(events.order)
api.post("/drain")(events.drain)
api.post("/fail")(events.fail)
