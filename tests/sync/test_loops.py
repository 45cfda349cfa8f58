"""Faces beside event loops: refused inside one, at home in that of a running app, moved when an app starts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from headwater import (
    App,
    Broker,
    ConnectError,
    Depends,
    Message,
    NotConnectedError,
    SyncBroker,
    SyncInAsyncError,
    TestApp,
)
from headwater.sync import Stats
from headwater.sync.thread import SHARED

from .engines import Late, on
from .processes import run

CALLS = [
    ("publish", "await broker.publish(...)", lambda face: face.publish(1, "t")),
    ("publish_soon", "await broker.publish(...)", lambda face: face.publish_soon(1, "t")),
    ("publish_many", "await broker.publish_many(...)", lambda face: face.publish_many([])),
    ("request", "await broker.request(...)", lambda face: face.request(1, "t")),
    ("get", "await broker.get(...)", lambda face: face.get("t")),
    ("stream", "async for message in broker.stream(...)", lambda face: face.stream("t")),
    ("flush", "await broker.flush(...)", lambda face: face.flush()),
    ("ping", "await broker.ping(...)", lambda face: face.ping()),
    ("connect", "await broker.connect(...)", lambda face: face.connect()),
    ("close", "await broker.close(...)", lambda face: face.close()),
    ("__enter__", "async with broker", lambda face: face.__enter__()),
    ("admin.topics.list", "await broker.admin.topics.list(...)", lambda face: face.admin.topics.list()),
]


@pytest.mark.parametrize(("method", "instead", "call"), CALLS, ids=[name for name, _, _ in CALLS])
async def test_a_running_loop_is_not_blocked_but_told_what_to_await(method: str, instead: str, call: Any) -> None:
    face = SyncBroker("memory://")
    with pytest.raises(SyncInAsyncError) as refused:
        call(face)
    assert (refused.value.method, refused.value.instead) == (method, instead)
    assert instead in str(refused.value)
    assert "allow_in_loop=True" in str(refused.value)
    assert face.stats == Stats()


async def test_a_notebook_may_block_its_loop() -> None:
    with SyncBroker("memory://", allow_in_loop=True) as face:
        assert face.publish(1, "t").topic == "t"
        futures = [face.publish_soon(n, "t") for n in range(10)]
        assert face.flush()
        assert all(future.done() for future in futures)
        assert face.admin.topics.list()[0].name == "t"
        with face.stream("t", start="earliest", limit=11) as stream:
            assert len(list(stream)) == 11


async def test_not_even_a_notebook_may_block_the_loop_of_its_own_broker() -> None:
    async with Broker("memory://") as broker:
        with pytest.raises(SyncInAsyncError):
            SyncBroker(broker, allow_in_loop=True).publish(1, "t")


# --- the running app ----------------------------------------------------------------------------------


def shop(broker: Broker | str) -> tuple[App, list[Any]]:
    """An app whose `def` handler and threaded dependency use its blocking face."""
    app, seen = App("shop", broker=broker), list[Any]()

    def audit(message: Message) -> int:
        app.sync.publish(message.value["id"], "audit")
        return int(message.value["id"])

    @app.subscriber("orders")
    def take(order: dict[str, int], id: int = Depends(audit)) -> None:
        face = app.sync
        assert face.broker.loop is not None
        seen.append((id, face.broker.loop is SHARED.loop))
        for n in range(10):
            face.publish_soon(n, "soon")
        assert face.flush()
        face.publish({"due": 3}, "invoices")
        answer = face.request("tea", "prices")
        seen.append(answer.value)
        seen.append(face.admin.topics.describe("invoices").messages)
        with face.stream("soon", start="earliest", limit=10) as stream:
            seen.append(sorted(message.value for message in stream))

    def checked(message: Message) -> None:
        app.sync.publish(message.body, "audit")

    @app.subscriber("prices", group="prices")
    async def price(name: str, _: None = Depends(checked, thread=True)) -> int:
        return 3

    return app, seen


EXPECTED = [(1, False), 3, 1, list(range(10))]


async def test_a_def_handler_uses_the_loop_and_the_connection_of_its_app() -> None:
    app, seen = shop("memory://")
    async with app:
        await app.publish({"id": 1}, "orders")
        async with asyncio.timeout(10):
            while len(seen) < 4:
                await asyncio.sleep(0.001)
    assert seen == EXPECTED


async def test_a_def_handler_does_so_in_an_asynchronous_test() -> None:
    app, seen = shop("redis://localhost:1")
    async with TestApp(app) as t:
        await t.publish({"id": 1}, "orders")
        assert len(t.published("audit")) == 2
    assert seen == EXPECTED


def test_a_def_handler_does_so_in_a_synchronous_test() -> None:
    app, seen = shop("redis://localhost:1")
    with TestApp(app) as t:
        t.publish({"id": 1}, "orders")
        assert len(t.published("audit")) == 2
    assert seen == EXPECTED


def test_what_a_view_publishes_is_handled_in_a_synchronous_test() -> None:
    app = App("shop", broker="redis://localhost:1")

    @app.subscriber("orders")
    async def take(order: int) -> None:
        pass

    with TestApp(app) as t:
        app.sync.publish(1, "orders")
        app.sync.publish_soon(2, "orders").result(5)
        thread = threading.Thread(target=lambda: app.sync.publish(3, "orders"))
        thread.start()
        thread.join()
        t.settle()
        assert sorted(t.calls(take)) == [1, 2, 3]


def test_no_loop_thread_is_started_where_the_broker_runs() -> None:
    run("""
        import asyncio
        from headwater import App, TestApp
        from headwater.sync.thread import SHARED

        app = App("shop", broker="memory://")


        @app.subscriber("orders")
        def take(order: int) -> None:
            app.sync.publish(order, "invoices")


        async def main():
            async with TestApp(app) as t:
                await t.publish(1, "orders")
                assert len(t.published("invoices")) == 1


        asyncio.run(main())
        with TestApp(app) as t:
            t.publish(1, "orders")
        assert SHARED.loop is None
    """)


# --- moving -------------------------------------------------------------------------------------------


def test_an_app_takes_over_what_its_face_had_connected_and_the_face_follows() -> None:
    engine = Late()
    app = App("shop", broker=on(engine))
    handled = []

    @app.subscriber("orders", start="earliest")
    async def take(order: int) -> None:
        handled.append(order)

    app.sync.publish(1, "orders")
    assert app.broker.loop is SHARED.loop

    async def main() -> None:
        async with app:
            assert app.broker.loop is asyncio.get_running_loop()
            await asyncio.to_thread(app.sync.publish, 2, "orders")
            await app.publish(3, "orders")
            async with asyncio.timeout(10):
                while len(handled) < 3:
                    await asyncio.sleep(0.001)

    asyncio.run(main())
    assert sorted(handled) == [1, 2, 3]
    assert app.broker.loop is None
    app.sync.publish(4, "orders")
    assert app.broker.loop is SHARED.loop
    app.sync.close()
    assert app.sync.stats == Stats(delivered=3)


@pytest.mark.parametrize("times", range(3))
def test_nothing_is_lost_or_doubled_while_apps_start_and_stop(url: str, topic: str, times: int) -> None:
    broker = Broker(url)
    app = App("shop", broker=broker)
    stopped = threading.Event()
    published = []

    def work(name: int) -> None:
        for n in range(10**9):
            if stopped.is_set():
                return
            published.append(broker.sync.publish_soon([name, n], topic, timeout=30))
            broker.sync.publish([name, -n], topic, timeout=30)

    async def start_and_stop() -> None:
        async with app:
            await app.publish("hello", topic)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        asyncio.run(start_and_stop())
    stopped.set()
    for thread in threads:
        thread.join()
    with broker.sync as face:
        assert face.flush()
        wanted = 2 * len(published) + 5
        with face.stream(topic, start="earliest", limit=wanted, wait=5) as stream:
            values = [str(message.value) for message in stream]
        assert len(values) == wanted
        assert face.stats == Stats(delivered=wanted - 5)
        assert len(set(values) - {"hello"}) == len(values) - 5 or "[0, 0]" in values


def test_a_face_waits_for_its_app_to_connect() -> None:
    engine = Late(connects=3)
    app = App("shop", broker=on(engine), startup="background")
    receipts = []

    async def main() -> None:
        async with app:
            publishing = asyncio.create_task(asyncio.to_thread(app.sync.publish, 1, "t"))
            receipts.append(await publishing)
            assert app.broker.loop is asyncio.get_running_loop()

    asyncio.run(main())
    assert engine.tries == 4
    assert receipts[0].topic == "t"


def test_a_face_whose_app_never_connects_says_so_in_time() -> None:
    app = App("shop", broker=on(Late(connects=10**9)), startup="background")
    errors = []

    def publish() -> None:
        soon = app.sync.publish_soon(1, "t", timeout=0.3)
        try:
            app.sync.publish(1, "t", timeout=0.3)
        except ConnectError as error:
            errors.append(error)
        errors.append(soon.exception(5))

    async def main() -> None:
        async with app:
            await asyncio.to_thread(publish)

    asyncio.run(main())
    assert [type(error) for error in errors] == [ConnectError, ConnectError]


def test_a_broker_left_behind_by_a_loop_that_is_gone_connects_anew() -> None:
    engine = Late()
    broker = on(engine)
    asyncio.run(broker.connect())
    assert broker.connected
    with broker.sync as face:
        face.publish(1, "t")
        assert broker.loop is SHARED.loop


def test_a_loop_that_stands_still_is_said_to() -> None:
    with asyncio.Runner() as runner:
        broker = Broker("memory://")
        runner.run(broker.connect())
        with pytest.raises(NotConnectedError, match="does not run"):
            broker.sync.publish(1, "t")
        with pytest.raises(NotConnectedError, match="does not run"):
            broker.sync.ping()
        assert broker.sync.stats.in_flight == 0
        runner.run(broker.close())


async def test_connecting_twice_at_once_connects_once() -> None:
    engine = Late()
    broker = on(engine)
    await asyncio.gather(*(broker.connect() for _ in range(5)))
    assert engine.tries == 1
    await broker.close()


async def test_who_connects_is_told_when_the_broker_is_closed_meanwhile() -> None:
    class Slow(Late):
        async def connect(self) -> None:
            await asyncio.Event().wait()

    broker = on(Slow())
    connecting = asyncio.create_task(broker.connect())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await broker.close()
    with pytest.raises(ConnectError, match="meanwhile"):
        await connecting
    assert broker.loop is None


async def test_connecting_can_be_cancelled() -> None:
    class Slow(Late):
        async def connect(self) -> None:
            await asyncio.Event().wait()

    broker = on(Slow())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await broker.connect()
    assert broker.loop is None


def test_threads_that_ask_for_the_face_at_once_get_the_same() -> None:
    broker, faces = Broker("memory://"), []
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait()
        faces.append(broker.sync)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, faces))) == 1
