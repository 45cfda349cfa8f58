"""A shop in Starlette: a route that publishes, one that asks, and probes under /ops.

SHOP_BROKER=nats://localhost:4222 uvicorn starlette_shop:api
"""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from headwater import App, TestApp

app = App("shop", broker=os.environ.get("SHOP_BROKER", "memory://"))

PRICES = {"apple": 0.5, "pear": 0.75}
kept: list[int] = []


@app.subscriber("orders")
async def keep(order: dict[str, int]) -> None:
    kept.append(order["id"])


@app.subscriber("prices")
async def price(item: str) -> float:
    return PRICES[item]


async def order(request: Request) -> JSONResponse:
    receipt = await app.publish(await request.json(), "orders")
    return JSONResponse({"topic": receipt.topic}, status_code=202)


async def ask(request: Request) -> JSONResponse:
    answer = await app.request(request.path_params["item"], "prices", timeout=2)
    return JSONResponse(answer.value)


api = Starlette(
    lifespan=app.lifespan,
    routes=[
        Route("/orders", order, methods=["POST"]),
        Route("/prices/{item}", ask),
        Mount("/ops", app.asgi()),
    ],
)


if __name__ == "__main__":  # as in a test: without a server, and without a broker
    with TestApp(app) as t, TestClient(api) as client:
        print(client.post("/orders", json={"id": 1}).json())
        t.settle()
        print(kept, client.get("/prices/pear").json())
        print(client.get("/ops/health/ready").json())
