"""What every engine must do, as a test suite: ours and third parties' pass it against their real server.

An engine's test module subclasses `EngineContract` and says how to make a broker:

    class TestMine(EngineContract):
        @pytest.fixture
        def make_broker(self) -> MakeBroker:
            return lambda: Broker("mine://localhost:1234")

Each test uses topics and groups of its own, so one server serves all of them. Which tests run is decided by the
capabilities the engine declares, see `needs`. A server that can be restarted adds the fixture `restart`, one that
takes messages up to some size only the fixture `limit`. `HEADWATER_MATRIX=FILE` notes in that file, by the scheme of
the broker's URL or by `column`, which tests passed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest

from ...broker import Broker
from ...engine import Source, Topic
from ..matrix import ENGINE
from .administration import Administration
from .apps import Apps
from .engine import Basics
from .keeping import Keeping
from .needs import FIXTURES, able, needs, needs_of
from .places import Places
from .publishing import Publishing
from .receiving import Receiving
from .refusals import Refusals
from .requests import Requests
from .sharing import Sharing
from .tools import MakeBroker, Restart

__all__ = ["EngineContract", "MakeBroker", "Restart", "needs"]


class EngineContract(Basics, Publishing, Receiving, Sharing, Places, Keeping, Apps, Refusals, Requests, Administration):
    """Subclass it, name the subclass `Test…`, and give `make_broker`. Its tests run through anyio's pytest plugin."""

    pytestmark = pytest.mark.anyio
    column: ClassVar[str] = ""  # what the support matrix calls it; by default the scheme of the broker's URL

    @pytest.fixture
    def make_broker(self) -> MakeBroker:
        """Makes brokers that are not connected yet, each of its own connection, all on one server."""
        raise NotImplementedError("give a fixture make_broker that makes a Broker of your engine")

    @pytest.fixture
    def restart(self) -> Restart | None:
        """Restarts the server while brokers are connected to it; None where there is nothing to restart."""
        return None

    @pytest.fixture
    def limit(self) -> int | None:
        """The most bytes a message may have on this server; None where there is no bound to run into."""
        return None

    # --- what the tests share -------------------------------------------------------------------------

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture(autouse=True)
    def chosen(
        self, request: pytest.FixtureRequest, make_broker: MakeBroker, restart: Restart | None, limit: int | None
    ) -> None:
        """Skips a test whose needs the engine does not declare."""
        broker, given = make_broker(), {"restart": restart, "limit": limit}
        if column := self.column or (broker.url or "").partition(":")[0]:
            request.node.user_properties.append((ENGINE, column))
        can = broker.engine.capabilities(Source(topics=("orders",), group="shop"))
        for need in needs_of(request.function):
            if given[need] is None if need in FIXTURES else not able(need, can, broker):
                pytest.skip(f"{broker.engine.name} declares no {need}")

    @pytest.fixture
    def topic(self) -> str:
        """A topic nobody else uses."""
        return f"contract-{os.urandom(6).hex()}"

    @pytest.fixture
    def group(self) -> str:
        """A group nobody else uses."""
        return f"group-{os.urandom(6).hex()}"

    @pytest.fixture
    async def broker(self, make_broker: MakeBroker, topic: str) -> AsyncIterator[Broker]:
        """A connected broker, on which `topic` is declared."""
        async with make_broker() as broker:
            await broker.declare([Topic(topic)])
            yield broker
