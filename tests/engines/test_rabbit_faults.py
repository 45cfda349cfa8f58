"""A RabbitMQ that stops, dies, hangs or is cut off: nothing accepted is lost, and readiness tells the truth."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import resource
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConnectError,
    DeliveryUnknownError,
    HeadwaterError,
    RabbitBroker,
)
from servers.certificate import make_certificate
from servers.process import HOST, free_ports
from servers.proxy import Proxy
from servers.rabbit import RabbitServer
from waiting import until

pytestmark = pytest.mark.server


@pytest.fixture
def topic() -> str:
    """A topic nobody else uses."""
    return f"t-{os.urandom(6).hex()}"


@pytest.fixture
async def proxy(rabbit_server: RabbitServer) -> AsyncIterator[Proxy]:
    async with Proxy(rabbit_server.port) as proxy:
        yield proxy


def through(proxy: Proxy, **options: object) -> Broker:
    return RabbitBroker(f"amqp://guest:guest@{proxy.address}", **options)  # type: ignore[arg-type]  # passed on


class Load:
    """An app that handles numbers while somebody publishes them, each until it is confirmed."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.app = App(topic, broker)
        self.topic = topic
        self.handled = set[int]()
        self.published = 0
        self._stopping = False
        self.app.subscriber(topic, concurrency=10)(self._handle)

    async def _handle(self, number: int) -> None:
        self.handled.add(number)

    async def publish(self) -> None:
        while not self._stopping:
            try:
                await self.app.publish(self.published, self.topic, timeout=2)
            except HeadwaterError:
                continue
            self.published += 1
            await asyncio.sleep(0.001)

    async def __aenter__(self) -> Load:
        await self.app.start()
        self._task = asyncio.create_task(self.publish())
        await until(lambda: len(self.handled) > 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await self._task
        await until(lambda: len(self.handled) == self.published, within=20)
        await self.app.shutdown()

    async def goes_on(self, within: float = 20) -> None:
        """Return once messages that were published from now on are handled, and the app says that it is ready."""
        before = self.published
        await until(lambda: max(self.handled) > before + 20 and self.app.is_ready, within)


Said = Callable[[], list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """The levels of what the engine has logged."""
    caplog.set_level(logging.INFO, "headwater.rabbit")
    return lambda: [record.levelname for record in caplog.records if record.name == "headwater.rabbit"]


async def test_a_server_that_was_away_under_load_costs_no_message(
    rabbit_server: RabbitServer, topic: str, said: Said
) -> None:
    async with Load(RabbitBroker(rabbit_server.url), topic) as load:
        for away in (
            rabbit_server.stop,
            rabbit_server.kill,
        ):  # in 3.10 quorum queues do not survive a crash while young
            await away()
            await until(lambda: not load.app.is_ready)
            await rabbit_server.start()
            await load.goes_on()
        assert said() == ["WARNING", "INFO"] * 2


async def test_connections_that_are_cut_under_load_cost_no_message(proxy: Proxy, topic: str) -> None:
    async with Load(through(proxy), topic) as load:
        for _ in range(5):
            await proxy.cut()
            await load.goes_on()


async def test_reading_a_stream_may_cost_a_connection_and_groups_do_not_notice(
    rabbit_server: RabbitServer, topic: str, said: Said
) -> None:
    app, calls, go_on = App("shop", RabbitBroker(rabbit_server.url, client=topic)), list[int](), asyncio.Event()

    @app.subscriber(topic)
    async def handle(n: int) -> None:
        calls.append(n)
        await go_on.wait()

    async with app:
        await app.publish(1, topic)
        await until(lambda: calls == [1])
        assert not await app.admin.dead.list(topic)
        await until(lambda: asyncio.to_thread(close_connection, rabbit_server, f"{topic} reading"), within=20)
        assert not await app.admin.dead.list(topic)
        assert app.is_ready
        go_on.set()
        await app.publish(2, topic)
        await until(lambda: 2 in calls)
    assert calls == [1, 2]
    assert not said()


def close_connection(server: RabbitServer, name: str) -> bool:
    """Have the server close the connection that calls itself so; False if it is not listed yet."""
    listed: list[dict[str, Any]] = _manage(server, "GET", "connections")
    found = [one["name"] for one in listed if one.get("user_provided_name") == name]
    for one in found:
        _manage(server, "DELETE", f"connections/{quote(one, safe='')}")
    return bool(found)


def _manage(server: RabbitServer, method: str, path: str) -> Any:
    token = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    url = f"http://{HOST}:{server.management_port}/api/{path}"
    request = Request(url, headers={"Authorization": f"Basic {token}"}, method=method)
    with urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


async def test_a_server_that_hangs_is_not_available_until_it_goes_on(
    rabbit_server: RabbitServer, topic: str, said: Said
) -> None:
    async with Load(RabbitBroker(rabbit_server.url), topic) as load:
        rabbit_server.pause()
        await until(lambda: not load.app.is_ready)
        rabbit_server.resume()
        await load.goes_on()
        assert said() == ["WARNING", "INFO"]


async def test_a_network_that_loses_everything_is_noticed_by_its_silence(proxy: Proxy, topic: str) -> None:
    async with Load(through(proxy, heartbeat=1), topic) as load:
        proxy.stall()
        await until(lambda: not load.app.is_ready)
        await until(lambda: proxy.connections > 2, within=15)  # heartbeats were missed: it tries new ones
        proxy.go_on()
        await load.goes_on()


async def test_leaving_a_server_that_hangs_takes_no_longer_than_a_farewell(proxy: Proxy, topic: str) -> None:
    broker = through(proxy)
    async with broker:
        await broker.publish(1, topic)
        proxy.stall()
        begin = time.monotonic()
    assert time.monotonic() - begin < 10
    proxy.go_on()


async def test_an_app_waits_for_its_server_and_says_so(
    rabbit_server: RabbitServer, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Proxy(rabbit_server.port) as proxy:
        await proxy.refuse()
        app = App("shop", through(proxy))
        starting = asyncio.create_task(app.start())
        await until(lambda: "waits for its broker" in caplog.text)
        assert f"amqp://{proxy.address}/" in caplog.text
        await proxy.accept()
        await starting
        assert app.is_ready
        await app.shutdown()


async def test_an_app_that_starts_in_the_background_is_ready_once_its_server_is(
    rabbit_server: RabbitServer, topic: str
) -> None:
    async with Proxy(rabbit_server.port) as proxy:
        await proxy.refuse()
        async with App("shop", through(proxy), startup="background") as app:
            assert not app.is_ready
            await proxy.accept()
            await until(lambda: app.is_ready)


async def test_a_server_nobody_reaches_is_an_error_that_names_it() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConnectError, match=rf"amqp://127\.0\.0\.1:{port}/.*[Rr]efused"):
        await RabbitBroker(f"amqp://guest:secret@127.0.0.1:{port}").connect()


@pytest.mark.parametrize(("who", "vhost"), [("guest:wrong", ""), ("nobody:secret", ""), ("guest:guest", "missing")])
async def test_who_is_refused_is_told_at_once(rabbit_server: RabbitServer, who: str, vhost: str) -> None:
    broker = RabbitBroker(f"amqp://{who}@{rabbit_server.address}/{vhost}")
    with pytest.raises(AuthenticationError, match=rf"amqp://{rabbit_server.address}/{vhost}") as raised:
        await broker.connect()
    assert who.partition(":")[2] not in str(raised.value) or who == "guest:guest"


async def test_a_server_is_reached_by_tls_and_only_if_it_is_trusted(tmp_path: Path, topic: str) -> None:
    certificate, (port,) = make_certificate(tmp_path), free_ports(1)
    lines = [f"listeners.ssl.1 = 127.0.0.1:{port}", "ssl_options.verify = verify_none"]
    lines += [f"ssl_options.certfile = {certificate.file}", f"ssl_options.keyfile = {certificate.key}"]
    url = f"amqps://guest:guest@localhost:{port}"
    async with RabbitServer(extra=lines):
        async with RabbitBroker(url, ca=str(certificate.file)) as broker:
            await broker.publish(1, topic)
        with pytest.raises(ConnectError, match="certificate"):
            await RabbitBroker(url).connect()


async def test_of_several_servers_one_that_answers_is_enough(rabbit_server: RabbitServer, topic: str) -> None:
    (dead,) = free_ports(1)
    async with RabbitBroker(f"amqp://guest:guest@127.0.0.1:{dead},{rabbit_server.address}") as broker:
        await broker.publish(1, topic)


async def test_publishing_while_the_server_is_away_fills_no_memory(proxy: Proxy, topic: str) -> None:
    async with through(proxy) as broker:
        await broker.publish(b"", topic)
        await proxy.refuse()
        await proxy.cut()
        await until(lambda: not broker.engine.available)
        before = _peak()
        for _ in range(100):
            burst = [broker.publish(bytes(1024), topic, timeout=0.02) for _ in range(1000)]
            answers = await asyncio.gather(*burst, return_exceptions=True)
            assert all(isinstance(answer, DeliveryUnknownError) for answer in answers)
        assert _peak() - before < 30_000
        await proxy.accept()
        await until(lambda: broker.engine.available, within=15)
        await broker.publish(b"", topic)


async def test_publishing_to_a_server_that_hangs_fills_no_memory(proxy: Proxy, topic: str) -> None:
    async with through(proxy) as broker:
        await broker.publish(b"", topic)
        proxy.stall()
        before = _peak()
        for _ in range(100):
            burst = [broker.publish(bytes(1024), topic, timeout=0.02) for _ in range(1000)]
            answers = await asyncio.gather(*burst, return_exceptions=True)
            assert all(isinstance(answer, DeliveryUnknownError) for answer in answers)
        assert _peak() - before < 30_000
        proxy.go_on()
        await until(lambda: broker.engine.available, within=15)
        await broker.publish(b"", topic)


def _peak() -> int:
    """The most memory this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def test_a_server_short_of_memory_takes_nothing_and_publishing_times_out(topic: str) -> None:
    async with RabbitServer(extra=["vm_memory_high_watermark.absolute = 1"]) as server, Broker(server.url) as broker:
        with pytest.raises(DeliveryUnknownError):
            await broker.publish(1, topic, timeout=1)
        await until(lambda: not broker.engine.available)
        with pytest.raises(ConnectError):
            await broker.ping()
