"""The local engine keeps the contract, with either durability, over new connections to one directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headwater import App, Batch, LocalBroker, Outgoing
from headwater.testing.contract import EngineContract, MakeBroker


class TestLocal(EngineContract):
    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> MakeBroker:
        return lambda: LocalBroker(tmp_path / "store", durability="process")


class TestLocalWithFsync(EngineContract):
    @pytest.fixture
    def make_broker(self, tmp_path: Path) -> MakeBroker:
        return lambda: LocalBroker(tmp_path / "store")


async def test_undecodable_members_of_a_transaction_are_settled_within_it(tmp_path: Path) -> None:
    app, done = App("shop", f"local://{tmp_path}?durability=process"), asyncio.Event()

    @app.subscriber("orders", start="earliest", batch=Batch(4, 0.05), exactly_once=True)
    @app.publisher("sums")
    async def add(bodies: list[int]) -> int:
        return sum(bodies)

    @app.subscriber("sums", group="sums", start="earliest")
    async def see(total: int) -> None:
        if total == 10:
            done.set()

    async with app:
        orders = [1, "not a number", 2, "nor this", 3, 7]
        await app.publish_many([Outgoing(body, "orders", partition=0) for body in orders])
        await asyncio.wait_for(done.wait(), 10)
        sums = [m.value async for m in app.stream("sums", start="earliest", limit=2)]
        assert sorted(sums) == [3, 10]
        assert [letter.body for letter in await app.admin.dead.list("orders")] == [b"not a number", b"nor this"]
        assert (await app.admin.groups.lag("shop", "orders")).total == 0
