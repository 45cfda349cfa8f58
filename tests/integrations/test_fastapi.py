"""FastAPI: routes that publish and ask, dependencies shared with handlers, and both under test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import fastapi
import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from headwater import App, Broker, ConfigurationError, Depends
from headwater.integrations.fastapi import FromApp
from headwater.testing import TestApp

FromAppBroker = Annotated[Broker, FromApp()]


class Pool:
    opened = closed = 0


async def pool() -> AsyncIterator[Pool]:
    """What a route and a handler depend on alike."""
    Pool.opened += 1
    yield Pool()
    Pool.closed += 1


def shop() -> tuple[App, FastAPI, Any]:
    app = App("shop", broker="redis://nowhere")

    @app.subscriber("orders")
    async def handle(n: int, pool: Annotated[Pool, Depends(pool)]) -> None:
        assert pool is not None

    @app.subscriber("prices")
    async def price(n: int, pool: Annotated[Pool, fastapi.Depends(pool)]) -> int:
        return 2 * n

    api = FastAPI(lifespan=app.lifespan)

    @api.post("/orders/{n}")
    async def order(n: int, broker: FromAppBroker, pool: Annotated[Pool, fastapi.Depends(pool)]) -> dict[str, Any]:
        receipt = await broker.publish(n, "orders")
        return {"topic": receipt.topic}

    @api.post("/blocking/{n}")
    def blocking(n: int, broker: FromAppBroker) -> dict[str, Any]:
        return {"topic": broker.sync.publish(n, "orders").topic}

    @api.get("/prices/{n}")
    async def ask(n: int) -> int:
        return int((await app.request(n, "prices")).value)

    return app, api, handle


def test_a_web_application_is_tested_together_with_the_handlers_of_its_events() -> None:
    app, api, handle = shop()
    with TestApp(app) as t:
        for again in (1, 2):
            with TestClient(api) as client:
                assert client.post(f"/orders/{again}").json() == {"topic": "orders"}
                assert client.post(f"/blocking/{10 * again}").json() == {"topic": "orders"}
                assert client.get("/prices/21").json() == 42
                t.settle()
                assert app.is_ready
        assert t.calls(handle) == [1, 10, 2, 20]
        t.publish(3, "orders")  # it runs on in the test's own loop
        assert t.calls(handle)[-1] == 3


async def test_so_is_it_in_an_asynchronous_test_which_runs_no_lifespan() -> None:
    app, api, handle = shop()
    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(api), base_url="http://test")
    async with TestApp(app) as t, client:
        assert (await client.post("/orders/1")).json() == {"topic": "orders"}
        assert (await client.get("/prices/21")).json() == 42
        await t.settle()
        assert t.calls(handle) == [1]
        async with app.lifespan(api):  # or one that does
            assert (await client.post("/orders/2")).status_code == 200
            await t.settle()
        assert t.calls(handle) == [1, 2]


async def test_a_test_client_beside_an_asynchronous_test_is_refused_with_what_to_use() -> None:
    app, api, _ = shop()
    async with TestApp(app):
        with pytest.raises(ConfigurationError, match=r"httpx\.AsyncClient"), TestClient(api):
            pass


def test_dependencies_that_yield_are_cleaned_up_in_routes_and_handlers() -> None:
    app, api, _ = shop()
    Pool.opened = Pool.closed = 0
    with TestApp(app) as t, TestClient(api) as client:
        client.post("/orders/1")
        t.settle()
    assert Pool.opened == Pool.closed == 2


async def test_a_route_without_an_app_is_told_what_is_missing() -> None:
    api = FastAPI()

    @api.get("/")
    async def index(broker: FromAppBroker) -> None: ...

    with pytest.raises(ConfigurationError, match=r"lifespan=app\.lifespan"):
        await httpx2.AsyncClient(transport=httpx2.ASGITransport(api), base_url="http://test").get("/")


def test_web_workers_may_only_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADWATER_CONSUME", "0")
    app, handled = App("shop", broker="memory://"), list[int]()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        handled.append(n)

    api = FastAPI(lifespan=app.lifespan)

    @api.post("/{n}")
    async def order(n: int) -> None:
        await app.publish(n, "orders")

    with TestClient(api) as client:
        assert client.post("/1").status_code == 200
        assert app.is_ready
        assert app.consuming == []
    assert handled == []
