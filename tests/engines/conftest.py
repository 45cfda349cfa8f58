"""An engine on a directory of its own, and what tests do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from headwater.engine import Change, Source, Subscription
from headwater.engines.local import LocalEngine
from headwater.message import Message, Outgoing, Receipt


class Shop:
    """An engine in this process, with the short forms the tests want."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.engine = LocalEngine(path, **{"durability": "process", **options})

    @property
    def admin(self) -> Any:
        return self.engine.admin

    async def send(self, *messages: Outgoing) -> list[Receipt]:
        sent = self.engine.send(messages)
        return list(await sent if isinstance(sent, Awaitable) else sent)

    async def put(self, *bodies: object, topic: str = "orders", **fields: Any) -> list[Receipt]:
        return await self.send(*(Outgoing(None, topic, body=str(body).encode(), **fields) for body in bodies))

    @asynccontextmanager
    async def member(
        self, *topics: str, group: str = "shop", changes: list[Change] | None = None, **fields: Any
    ) -> AsyncIterator[Subscription]:
        async def on_change(change: Change) -> None:
            if changes is not None:
                changes.append(change)

        source = Source(topics=topics or ("orders",), group=group, **{"start": "earliest", **fields})
        async with self.engine.subscribe(source, on_change) as subscription:
            yield subscription

    @asynccontextmanager
    async def reader(self, *topics: str, **fields: Any) -> AsyncIterator[Subscription]:
        async def on_change(change: Change) -> None:
            pass

        source = Source(topics=topics or ("orders",), **{"start": "earliest", **fields})
        async with self.engine.subscribe(source, on_change) as subscription:
            yield subscription


async def take(subscription: Subscription, count: int, *, ack: bool = False, limit: int = 1000) -> list[Message]:
    """Exactly this many messages, within some seconds."""
    found: list[Message] = []
    quiet = 0
    while len(found) < count and quiet < 200:
        messages = await subscription.receive(min(limit, count - len(found)), 0.05)
        found += messages
        quiet = 0 if messages else quiet + 1
        if ack and messages:
            await subscription.ack(messages)
    assert len(found) == count, f"{len(found)} of {count} messages came"
    return found


def bodies(messages: list[Message]) -> list[str]:
    return [message.body.decode() for message in messages]


OpenShop = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def open_shop(tmp_path: Path) -> AsyncIterator[OpenShop]:
    """Opens engines on one directory, and closes them."""
    opened: list[Shop] = []

    async def open_one(**options: Any) -> Shop:
        shop = Shop(tmp_path / "store", **options)
        await shop.engine.connect()
        await shop.engine.declare([], "create")
        opened.append(shop)
        return shop

    yield open_one
    for shop in opened:
        await shop.engine.close()


@pytest.fixture
async def shop(open_shop: OpenShop) -> Shop:
    return await open_shop()
