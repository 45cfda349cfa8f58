"""A shop: orders in, invoices out, on a log in the directory ./data."""

from dataclasses import dataclass

from headwater import App, Retry

app = App("shop", broker="local://./data")


@dataclass
class Order:
    id: int
    amount: float


@app.subscriber("orders", concurrency=8, order_by="key", retry=Retry(attempts=5))
@app.publisher("invoices")
async def invoice(order: Order) -> dict[str, float]:
    return {"order": order.id, "due": order.amount * 1.2}
