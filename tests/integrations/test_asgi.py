"""The life of an app inside a web application's, and what probes and Prometheus are told."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from headwater import App, Broker, ConfigurationError, Context, StopApp, StopConsuming
from headwater.observe.health import AppHealth


def client_of(asgi: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(asgi), base_url="http://test")


# --- lifespan -----------------------------------------------------------------------------------------


async def test_the_app_runs_as_long_as_the_lifespan_lasts() -> None:
    app = App("shop", broker="memory://")
    async with app.lifespan(None):
        assert app.is_ready
    assert not app.is_ready


def test_startup_is_complete_once_messages_flow_and_it_can_be_entered_again() -> None:
    app, handled = App("shop", broker="memory://"), list[int]()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        handled.append(n)

    api = FastAPI(lifespan=app.lifespan)

    @api.post("/{n}")
    async def order(n: int) -> None:
        await app.publish(n, "orders")
        while n not in handled:
            await asyncio.sleep(0)

    for n in (1, 2):
        with TestClient(api) as client:
            assert app.is_ready
            assert client.post(f"/{n}").status_code == 200
        assert not app.is_ready
    assert handled == [1, 2]


async def test_a_lifespan_of_ones_own_is_entered_first_and_left_last_and_both_contexts_are_merged() -> None:
    order = list[str]()

    @asynccontextmanager
    async def mine(asgi: object) -> AsyncIterator[dict[str, Any]]:
        order.append(f"enter {asgi}")
        yield {"pool": "a pool", "both": "mine"}
        order.append("leave")

    @asynccontextmanager
    async def of_app() -> AsyncIterator[dict[str, Any]]:
        order.append("enter the app's")
        yield {"model": "a model", "both": "the app's"}
        order.append("leave the app's")

    app, seen = App("shop", broker="memory://", lifespan=of_app), list[str]()

    @app.subscriber("orders")
    async def handle(n: int, pool: str = Context(), model: str = Context()) -> None:
        seen.extend((pool, model))
        app.stop()

    async with app.lifespan_with(mine)("api") as state:
        assert state == {"pool": "a pool", "model": "a model", "both": "the app's", "headwater": app}
        await app.publish(1, "orders")
        await app.asked_to_stop()
    assert seen == ["a pool", "a model"]
    assert order == ["enter api", "enter the app's", "leave the app's", "leave"]


async def test_what_a_lifespan_yields_must_be_a_mapping() -> None:
    @asynccontextmanager
    async def wrong(_: object) -> AsyncIterator[int]:
        yield 7

    with pytest.raises(ConfigurationError, match="mapping"):
        async with App("shop", broker="memory://").lifespan_with(wrong)(None):
            pass


async def test_a_start_that_fails_fails_the_startup_of_the_server() -> None:
    sent = list[dict[str, Any]]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    with pytest.raises(Exception, match="has no broker"):
        await App("shop").asgi()({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = sent
    assert failed["type"] == "lifespan.startup.failed"
    assert "has no broker" in failed["message"]


async def test_an_app_that_stops_itself_is_drained_and_asks_a_server_that_handles_sigterm_to_stop() -> None:
    app, asked = App("shop", broker="memory://"), asyncio.Event()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        raise StopApp

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    try:
        async with app.lifespan(None):
            await app.publish(1, "orders")
            await asyncio.wait_for(asked.wait(), 5)
            assert app.health() == AppHealth(
                live=True, ready=False, reasons=("it is stopping: nothing more is received",)
            )
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


async def test_an_app_that_fails_is_not_alive_and_no_signal_ends_a_process_that_expects_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = App("shop", broker="memory://")
    async with app.lifespan(None), client_of(app.asgi()) as client:
        app.stop(OSError("the disk is gone"))
        answer = await client.get("/health/live")
        assert answer.status_code == 503
        assert answer.json()["reasons"][0] == "it failed: the disk is gone"
        assert (await client.get("/health/ready")).status_code == 503
        async with asyncio.timeout(5):
            while "shop failed, and receives nothing more: the disk is gone" not in caplog.text:
                await asyncio.sleep(0)


# --- probes and metrics -------------------------------------------------------------------------------


async def test_ready_is_true_only_while_consuming_and_says_why_not() -> None:
    app = App("shop", broker="memory://")
    release = asyncio.Event()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        await release.wait()

    async def ready() -> tuple[int, list[str]]:
        answer = await client.get("/health/ready")
        return answer.status_code, answer.json()["reasons"]

    async with client_of(app.asgi()) as client:
        assert await ready() == (503, ["it is not started"])
        async with app.lifespan(None):
            assert await ready() == (200, [])
            await app.publish(1, "orders")
            draining = asyncio.create_task(app.drain())
            await asyncio.sleep(0)
            assert await ready() == (503, ["it is stopping: nothing more is received"])
            assert (await client.get("/health/live")).status_code == 200
            release.set()
            await draining
            await app.publish(2, "orders")  # it stays connected
        assert await ready() == (503, ["it is not started"])


async def test_a_broker_that_is_away_makes_it_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker("memory://here")
    app = App("shop", broker=broker)
    async with app.lifespan(None), client_of(app.asgi()) as client:
        monkeypatch.setattr(type(broker.engine), "available", False)
        answer = await client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json() == {"live": True, "ready": False, "reasons": [f"{broker} cannot be reached"]}


async def test_an_app_whose_subscribers_have_all_ended_is_not_ready() -> None:
    app = App("shop", broker="memory://")

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        raise StopConsuming

    async with app.lifespan(None):
        await app.publish(1, "orders")
        (running,) = app.consuming
        await asyncio.wait([running.task], timeout=5)
        assert app.health().reasons == ("every subscriber has ended itself",)


async def test_prometheus_is_told_what_became_of_messages() -> None:
    app = App("shop", broker="memory://")

    @app.subscriber("orders", retry=None)
    async def handle(n: int) -> None:
        if n == 2:
            raise ValueError("broken")

    @app.subscriber("orders.dead")
    async def dead(n: int) -> None:
        app.stop()

    async with app.lifespan(None), client_of(app.asgi()) as client:
        for n in range(3):
            await app.publish(n, "orders")
        await app.asked_to_stop()
        text = (await client.get("/metrics")).text
    assert "python_info" in text  # what else is registered
    assert 'headwater_messages_received_total{app="shop",group="shop",subscription="orders"} 3.0' in text
    assert 'headwater_messages_given_up_total{app="shop",handler="' in text
    assert 'headwater_start_seconds{app="shop",step="connect"}' in text


async def test_what_several_share_is_one_sample_for_prometheus() -> None:
    app = App("shop", broker=["memory://", "memory://"])

    @app.subscriber("orders", broadcast=True)
    async def one(n: int) -> None: ...

    @app.subscriber("orders", broadcast=True)
    async def other(n: int) -> None:
        app.stop()

    app.subscriber("bills")(app.subscriber("letters")(one))
    async with app.lifespan(None), client_of(app.asgi()) as client:
        await app.publish(1, "orders")
        await app.asked_to_stop()
        lines = (await client.get("/metrics")).text.splitlines()
    samples = [line.rpartition(" ")[0] for line in lines if line.startswith("headwater_")]
    assert len(samples) == len(set(samples))
    assert 'headwater_messages_received_total{app="shop",group="",subscription="orders"} 2.0' in lines


async def test_without_prometheus_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with client_of(App("shop", broker="memory://").asgi()) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 404
    assert "pip install 'headwater[metrics]'" in answer.json()["error"]


async def test_other_paths_and_methods_are_refused_and_a_mounted_one_answers_too() -> None:
    app, api = App("shop", broker="memory://"), FastAPI()
    api.mount("/ops", app.asgi())
    async with client_of(app.asgi()) as client:
        assert (await client.get("/elsewhere")).status_code == 404
        assert (await client.post("/health/live")).status_code == 405
        assert (await client.head("/health/live")).status_code == 200
        assert (await client.get("/health/live/")).status_code == 200
    async with client_of(api) as client, app:
        assert (await client.get("/ops/health/ready")).status_code == 200
