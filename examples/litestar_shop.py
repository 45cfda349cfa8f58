"""A shop in Litestar: a route that publishes, one that asks, and probes under /ops.

SHOP_BROKER=redis://localhost:6379 uvicorn litestar_shop:api
"""

import os
from dataclasses import dataclass

from litestar import Litestar, asgi, get, post
from litestar.params import FromPath, JSONBody
from litestar.testing import TestClient

from headwater import App, TestApp

app = App("shop", broker=os.environ.get("SHOP_BROKER", "memory://"))

PRICES = {"apple": 0.5, "pear": 0.75}
kept: list[int] = []


@dataclass
class Order:
    id: int


@app.subscriber("orders")
async def keep(order: Order) -> None:
    kept.append(order.id)


@app.subscriber("prices")
async def price(item: str) -> float:
    return PRICES[item]


@post("/orders", status_code=202)
async def order(data: JSONBody[Order]) -> dict[str, str]:
    receipt = await app.publish(data, "orders")
    return {"topic": receipt.topic}


@get("/prices/{item:str}")
async def ask(item: FromPath[str]) -> float:
    return float((await app.request(item, "prices", timeout=2)).value)


operations = asgi("/ops", is_mount=True, copy_scope=True)(app.asgi())
api = Litestar([order, ask, operations], lifespan=[app.lifespan])


if __name__ == "__main__":  # as in a test: without a server, and without a broker
    with TestApp(app) as t, TestClient(api) as client:
        print(client.post("/orders", json={"id": 1}).json())
        t.settle()
        print(kept, client.get("/prices/pear").json())
        print(client.get("/ops/health/ready").json())
