"""An app that learns at startup what carries its messages: SHOP_BROKER says it, memory is the default."""

import asyncio
import os

from headwater import App

app = App("shop")


@app.subscriber("orders")
async def take(order: dict[str, int]) -> None:
    print(f"order {order['id']} on {app.broker}")
    app.stop()


@app.on_startup
async def choose_broker() -> None:
    """Inside the process that will do the work; this may ask a configuration server."""
    app.set_broker(os.environ.get("SHOP_BROKER", "memory://"))


@app.after_startup
async def publish_one() -> None:
    await app.publish({"id": 1}, "orders")


if __name__ == "__main__":
    asyncio.run(app.run())
