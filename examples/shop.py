"""A shop on whichever engine SHOP_BROKER names: orders are priced, invoiced, retried, given up; nothing else changes.

SHOP_BROKER=kafka://localhost:9092 python shop.py
"""

import asyncio
import os
from dataclasses import dataclass

from headwater import App, Message, Reject, Retry

app = App("shop", broker=os.environ.get("SHOP_BROKER", "memory://"))

PRICES = {"apple": 0.5, "pear": 0.75}
ORDERS = 20


@dataclass
class Order:
    id: int
    item: str
    count: int


@dataclass
class Invoice:
    order: int
    due: float


@app.subscriber("prices")
async def price(item: str) -> float:
    """Answers requests: whoever asks gets what this returns."""
    return PRICES[item]


@app.subscriber("orders", concurrency=4, retry=Retry(attempts=3, backoff=(0.05, 1)))
@app.publisher("invoices")
async def invoice(order: Order, message: Message) -> Invoice:
    if order.count < 1:
        raise Reject(f"an order of {order.count}")
    if order.id % 5 == 0 and message.attempt == 1:
        raise ConnectionError("the first try of every fifth order fails")
    answer = await app.request(order.item, "prices", timeout=10)
    return Invoice(order.id, order.count * float(answer.value))


booked: dict[int, float] = {}
refused: set[int] = set()


@app.subscriber("invoices")
async def book(invoice: Invoice) -> None:
    booked[invoice.order] = invoice.due  # at least once: the same invoice may come twice
    stop_when_done()


@app.subscriber("orders.dead", group="clerk")
async def look_at(order: Order, message: Message) -> None:
    print(f"order {order.id} was refused: {message.headers['hw-reason']}")
    refused.add(order.id)
    stop_when_done()


@app.after_startup
async def publish_orders() -> None:
    items = list(PRICES)
    for number in range(ORDERS):
        order = Order(number, items[number % 2], 0 if number == 13 else 2)
        await app.publish(order, "orders", key=order.item, headers={"clerk": "anne"})


def stop_when_done() -> None:
    if len(booked) + len(refused) == ORDERS:
        print(f"{len(booked)} invoices, {sum(booked.values()):.2f} due")
        app.stop()


if __name__ == "__main__":
    asyncio.run(app.run())
