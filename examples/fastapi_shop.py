"""A shop in FastAPI: routes publish and ask, handlers work, and both depend on the same database.

SHOP_BROKER=kafka://localhost:9092 uvicorn fastapi_shop:api
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from headwater import App, Broker, TestApp
from headwater.integrations.fastapi import FromApp

app = App("shop", broker=os.environ.get("SHOP_BROKER", "memory://"))

PRICES = {"apple": 0.5, "pear": 0.75}


@dataclass
class Order:
    id: int
    item: str


def database() -> Iterator[sqlite3.Connection]:
    """A connection for each request, and for each message."""
    with closing(sqlite3.connect("shop.db", check_same_thread=False)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, item TEXT)")
        yield connection


Database = Annotated[sqlite3.Connection, Depends(database)]


# --- what happens behind the web ----------------------------------------------------------------------


@app.subscriber("orders")
def keep(order: Order, database: Database) -> None:
    database.execute("INSERT OR IGNORE INTO orders VALUES (?, ?)", (order.id, order.item))


@app.subscriber("prices")
async def price(item: str) -> float:
    """Answers requests: whoever asks gets what this returns."""
    return PRICES[item]


# --- the web ------------------------------------------------------------------------------------------

api = FastAPI(lifespan=app.lifespan)
api.mount("/ops", app.asgi())


@api.post("/orders", status_code=202)
async def order(order: Order, broker: Annotated[Broker, FromApp()]) -> dict[str, str]:
    receipt = await broker.publish(order, "orders", key=str(order.id))
    return {"topic": receipt.topic}


@api.get("/orders")
def orders(database: Database) -> dict[int, str]:
    return dict(database.execute("SELECT id, item FROM orders"))


@api.get("/prices/{item}")
async def ask(item: str) -> float:
    return float((await app.request(item, "prices", timeout=2)).value)


if __name__ == "__main__":  # as in a test: without a server, and without a broker
    with TestApp(app) as t, TestClient(api) as client:
        print(client.post("/orders", json={"id": 1, "item": "pear"}).json())
        t.settle()
        print(client.get("/orders").json(), client.get("/prices/pear").json())
        print(client.get("/ops/health/ready").json())
