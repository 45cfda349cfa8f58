"""An app's life: the broker that comes late, start and stop in order, unwinding, running, subscribing while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from headwater import (
    App,
    AuthenticationError,
    Broker,
    ConfigurationError,
    ConnectError,
    HeadwaterError,
    MemoryBroker,
    Message,
    NoBrokerError,
    NotConnectedError,
    TestApp,
    Topic,
    TopicNotFoundError,
)
from headwater.engines.memory import MemoryEngine
from waiting import until


async def works(app: App) -> bool:
    """Whether a handler declared on the app gets what is published, once it is started."""
    got = asyncio.Event()

    async def handle(body: int) -> None:
        got.set()

    app.subscriber("orders")(handle)
    async with app:
        await app.publish(1, "orders")
        async with asyncio.timeout(5):
            await got.wait()
    return True


# --- the broker may come late -------------------------------------------------------------------------


async def async_url() -> str:
    return "memory://"


@pytest.mark.parametrize(
    "broker",
    [
        "memory://",
        Broker("memory://"),
        MemoryBroker(),
        lambda: "memory://",
        lambda: Broker("memory://"),
        async_url,
        ["memory://", lambda: "memory://"],
        [Broker("memory://")],
    ],
    ids=["url", "broker", "typed", "callable", "callable broker", "async callable", "mixed", "sequence"],
)
async def test_a_broker_is_given_in_any_form(broker: Any) -> None:
    assert await works(App("shop", broker))


async def test_a_broker_is_set_in_an_on_startup_hook() -> None:
    app = App("shop")

    @app.on_startup
    async def choose(it: App) -> None:
        it.set_broker("memory://")

    assert await works(app)
    assert await works(App("shop", on_startup=[lambda: None, lambda app: app.set_broker(Broker("memory://"))]))


async def test_a_broker_comes_from_the_environment_and_wins_over_the_apps_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HEADWATER_BROKER", "memory://of-the-environment")
    for given in (None, "memory://own", lambda: "memory://own"):
        app = App("shop", given)
        assert await works(app)
    late = App("shop", on_startup=[lambda app: app.set_broker("memory://own")])
    async with late:
        assert late.broker.url == "memory://of-the-environment"


async def test_a_callable_is_called_after_the_hooks_and_at_each_start() -> None:
    steps: list[str] = []

    def choose() -> str:
        steps.append("callable")
        return "memory://"

    app = App("shop", choose, on_startup=[lambda: steps.append("hook")])
    async with app:
        first = app.broker
    async with app:
        assert app.broker is not first
    assert steps == ["hook", "callable", "hook", "callable"]


async def test_a_broker_that_a_hook_set_wins_over_the_callable() -> None:
    app = App("shop", lambda: "memory://callable", on_startup=[lambda app: app.set_broker("memory://hook")])
    async with app:
        assert app.broker.url == "memory://hook"


async def test_without_a_broker_the_start_fails_after_the_hooks_and_says_how_to_give_one() -> None:
    steps: list[str] = []
    app = App("shop", on_startup=[lambda: steps.append("hook")], after_shutdown=[lambda: steps.append("undone")])

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    with pytest.raises(NoBrokerError, match=r"set_broker.*HEADWATER_BROKER.*--broker") as caught:
        await app.start()
    assert caught.value.app == "shop"
    assert steps == ["hook", "undone"]


async def test_an_unbound_broker_is_bound_late_and_its_handlers_run() -> None:
    kafka, got = Broker(), asyncio.Queue[int]()
    app = App("shop", kafka)

    @kafka.subscriber("orders")
    async def handle(body: int) -> None:
        got.put_nowait(body)

    with pytest.raises(ConfigurationError, match="bind"):
        await app.start()
    kafka.bind("memory://")
    async with app, asyncio.timeout(5):
        await kafka.publish(1, "orders")
        assert await got.get() == 1
        with pytest.raises(ConfigurationError, match="connected"):
            kafka.bind("memory://other")


async def test_the_broker_cannot_change_while_the_app_runs() -> None:
    app = App("shop", "memory://")

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with app:
        with pytest.raises(ConfigurationError, match="runs"):
            app.set_broker("memory://other")


async def test_publishing_before_the_connection_says_where_to_publish() -> None:
    app = App("shop", "memory://")

    @app.on_startup
    async def early() -> None:
        await app.publish(1, "orders")

    with pytest.raises(NotConnectedError, match="after_startup"):
        await app.start()


async def test_two_brokers_each_have_their_handlers_and_the_app_acts_on_the_first() -> None:
    one, two = Broker("memory://"), Broker("memory://")
    app, got = App("shop", [one, two]), asyncio.Queue[tuple[str, Broker]]()

    @app.subscriber("a")
    async def on_first(body: int, broker: Broker) -> None:
        got.put_nowait(("app", broker))

    @two.subscriber("a")
    @two.publisher("b")
    async def on_second(body: int, broker: Broker) -> int:
        got.put_nowait(("two", broker))
        return body

    async with app, asyncio.timeout(5):
        assert app.broker is one
        assert list(app.brokers) == [one, two]
        await app.publish(1, "a")
        assert await got.get() == ("app", one)
        await two.publish(2, "a")
        assert await got.get() == ("two", two)
        await until(lambda: app.consuming[1].worker.busy == 0)
        assert (await two.admin.topics.describe("b")).messages == 1
        assert [t.name for t in await one.admin.topics.list()] == ["a"]


# --- starting and stopping ----------------------------------------------------------------------------


class Recording(MemoryEngine):
    """Notes what is asked of it, and fails where it is told to."""

    def __init__(self, steps: list[str], fail_at: str = "") -> None:
        super().__init__()
        self.steps, self.fail_at = steps, fail_at

    def note(self, step: str) -> None:
        self.steps.append(step)
        if step == self.fail_at:
            raise HeadwaterError(step)

    async def connect(self) -> None:
        self.note("connect")

    async def close(self) -> None:
        self.note("close")

    async def declare(self, topics: Any, mode: Any) -> None:
        self.note("declare")
        await super().declare(topics, mode)

    def subscribe(self, source: Any, on_change: Any) -> Any:
        place = super().subscribe(source, on_change)

        @contextlib.asynccontextmanager
        async def noted() -> AsyncIterator[Any]:
            self.note("consume")
            async with place as subscription:
                yield subscription
            self.note("leave")

        return noted()


def recording_app(steps: list[str], fail_at: str = "") -> App:
    broker = Broker()
    broker.replace_engine(Recording(steps, fail_at))

    def note(step: str) -> Any:
        async def hook() -> None:
            steps.append(step)
            if step == fail_at:
                raise HeadwaterError(step)

        return hook

    @contextlib.asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[None]:
        steps.append("lifespan in")
        if fail_at == "lifespan in":
            raise HeadwaterError(fail_at)
        try:
            yield
        finally:
            steps.append("lifespan out")

    hooks = {name: [note(name)] for name in ("on_startup", "after_startup", "on_shutdown", "after_shutdown")}
    app = App("shop", broker, lifespan=lifespan, **hooks)  # type: ignore[arg-type]  # four hook options

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        steps.append("handle")

    return app


STARTING = ["lifespan in", "on_startup", "connect", "declare", "consume", "after_startup"]
STOPPING = ["leave", "on_shutdown", "close", "after_shutdown", "lifespan out"]


async def test_the_stop_is_the_mirror_of_the_start() -> None:
    steps: list[str] = []
    app = recording_app(steps)
    assert not app.is_ready
    async with app:
        assert steps == STARTING
        assert app.is_ready
        assert list(app.timings) == [
            "lifespan",
            "on_startup",
            "broker",
            "connect",
            "declare",
            "consume",
            "after_startup",
        ]
    assert steps == STARTING + STOPPING
    assert not app.is_ready


@pytest.mark.parametrize(
    ("fail_at", "undone"),
    [
        ("lifespan in", []),
        ("on_startup", ["lifespan out"]),
        ("connect", ["close", "after_shutdown", "lifespan out"]),
        ("declare", ["close", "after_shutdown", "lifespan out"]),
        ("consume", ["close", "after_shutdown", "lifespan out"]),
        ("after_startup", STOPPING),
    ],
)
async def test_a_failure_at_any_step_undoes_exactly_what_had_started(fail_at: str, undone: list[str]) -> None:
    steps: list[str] = []
    app = recording_app(steps, fail_at)
    with pytest.raises(HeadwaterError, match=fail_at):
        await app.start()
    assert steps == STARTING[: STARTING.index(fail_at) + 1] + undone
    assert not app.is_ready


@pytest.mark.parametrize("fail_at", ["on_shutdown", "close", "after_shutdown"])
async def test_a_failure_while_stopping_does_not_keep_the_rest_from_stopping(fail_at: str) -> None:
    steps: list[str] = []
    app = recording_app(steps, fail_at)
    await app.start()
    with pytest.raises(HeadwaterError, match=fail_at):
        await app.shutdown()
    assert steps[len(STARTING) :] == STOPPING


async def test_every_shutdown_hook_is_called_although_one_fails() -> None:
    steps: list[str] = []

    def fails() -> None:
        steps.append("fails")
        raise HeadwaterError("fails")

    for name in ("on_shutdown", "after_shutdown"):
        app = App("shop", "memory://", **{name: [fails, lambda: steps.append("next")]})  # type: ignore[arg-type]
        await app.start()
        with pytest.raises(HeadwaterError):
            await app.shutdown()
    assert steps == ["fails", "next"] * 2


async def test_a_second_start_after_a_stop_works_and_goes_on_where_the_first_ended() -> None:
    app, got = App("shop", "memory://"), []

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    for n in range(3):
        async with app:
            await app.publish(n, "orders")
            await until(lambda: len(got) > n)  # noqa: B023
        with pytest.raises(NotConnectedError):
            await app.publish(9, "orders")
    assert got == [0, 1, 2]


async def test_starting_twice_is_refused_and_stopping_twice_is_not() -> None:
    app = App("shop", "memory://")
    async with app:
        with pytest.raises(ConfigurationError, match="started already"):
            await app.start()
    await app.shutdown()


async def test_publishing_works_in_after_startup_and_in_on_shutdown() -> None:
    app = App("shop", "memory://")

    @app.after_startup
    @app.on_shutdown
    async def say() -> None:
        await app.publish("hello", "greetings")

    async with app.broker as broker:
        async with app:
            pass
        await broker.connect()
        assert (await broker.admin.topics.describe("greetings")).messages == 2


async def test_what_each_step_took_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with App("shop", "memory://"):
        pass
    assert "shop is ready: lifespan" in caplog.text
    assert "shop is stopped" in caplog.text


async def test_a_lifespan_that_yields_no_mapping_is_refused() -> None:
    @contextlib.asynccontextmanager
    async def lifespan() -> AsyncIterator[int]:
        yield 5

    with pytest.raises(ConfigurationError, match="mapping"):
        await App("shop", "memory://", lifespan=lifespan).start()


async def test_an_app_needs_a_name() -> None:
    with pytest.raises(ConfigurationError, match="name"):
        App("")


async def test_the_worker_id_is_the_supervisors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert App("shop").worker_id is None
    monkeypatch.setenv("HEADWATER_WORKER_ID", "3")
    assert App("shop").worker_id == 3


async def test_an_app_that_only_publishes_consumes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for app in (App("shop", "memory://", consume=False), App("shop", "memory://")):
        app.subscriber("orders")(lambda body: None)
        async with app:
            await app.publish(1, "orders")
            assert app.is_ready
            assert app.consuming == []
            assert await app.admin.groups.list() == []
        monkeypatch.setenv("HEADWATER_CONSUME", "0")


# --- connecting ---------------------------------------------------------------------------------------


class Away(MemoryEngine):
    """A server that cannot be reached until it is back."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()
        self.tries = 0

    async def connect(self) -> None:
        self.tries += 1
        if not self.back.is_set():
            raise ConnectError("memory://", "refused")


async def test_a_start_that_never_reaches_its_broker_fails_after_startup_timeout() -> None:
    engine, broker = Away(), Broker()
    broker.replace_engine(engine)
    with pytest.raises(ConnectError, match="refused"):
        await App("shop", broker, startup_timeout=0.01).start()


async def test_a_server_that_does_not_answer_is_a_connect_error_after_connect_timeout() -> None:
    class Silent(MemoryEngine):
        async def connect(self) -> None:
            await asyncio.Event().wait()

    broker = Broker(connect_timeout=0.01)
    broker.replace_engine(Silent(), "odd://user:secret@host?token=1")
    with pytest.raises(ConnectError, match=r"0\.01 s") as caught:
        await broker.connect()
    assert "secret" not in str(caught.value)
    assert "token" not in str(caught.value)


async def test_a_background_start_is_ready_once_connected_and_calls_after_startup_then() -> None:
    engine, broker, hooks = Away(), Broker(), []
    broker.replace_engine(engine)
    app = App("shop", broker, startup="background")

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        hooks.append(body)

    @app.after_startup
    async def say() -> None:
        await app.publish(1, "orders")

    async with app:
        await until(lambda: engine.tries > 0)
        assert not app.is_ready
        assert hooks == []
        engine.back.set()
        await until(lambda: app.is_ready)
        await until(lambda: hooks == [1])


async def test_a_background_start_that_fails_stops_the_app_with_the_reason() -> None:
    app = App("shop", "memory://", startup="background", declare="check", topics=["missing"])
    with pytest.raises(TopicNotFoundError, match="missing"):
        await asyncio.wait_for(app.run(), 5)


async def test_a_refusal_of_who_asks_ends_a_start_at_once() -> None:
    class Refusing(MemoryEngine):
        tries = 0

        async def connect(self) -> None:
            self.tries += 1
            raise AuthenticationError("memory://somebody", "wrong password")

    engine, broker = Refusing(), Broker()
    broker.replace_engine(engine)
    with pytest.raises(AuthenticationError, match="wrong password"):
        await asyncio.wait_for(App("shop", broker, startup_timeout=60).start(), 1)
    assert engine.tries == 1


async def test_an_app_is_ready_while_all_of_its_brokers_can_be_reached() -> None:
    one, two, engine = Broker("memory://"), Broker(), MemoryEngine()
    two.replace_engine(engine)
    app = App("shop", [one, two])
    assert not app.is_ready
    async with app:
        assert app.is_ready
        engine.available = False
        assert not app.is_ready
        engine.available = True
        assert app.is_ready
        await app.drain()
        assert not app.is_ready
    assert not app.is_ready


async def test_a_background_start_is_given_up_by_a_stop() -> None:
    broker = Broker()
    broker.replace_engine(Away())
    async with App("shop", broker, startup="background") as app:
        pass
    assert not app.is_ready


# --- topics -------------------------------------------------------------------------------------------


async def test_the_topics_of_an_app_are_declared_with_their_settings_and_those_of_handlers_by_default() -> None:
    app = App("shop", "memory://", topics=[Topic("orders", partitions=3), "plain"])

    @app.subscriber("orders")
    @app.publisher("invoices")
    async def handle(body: int) -> int:
        return body

    async with app:
        topics = {topic.name: topic.partitions for topic in await app.admin.topics.list()}
    assert topics == {"orders": 3, "plain": 8, "invoices": 8}


async def test_a_topic_that_a_handler_names_is_declared_with_the_handler_s_options() -> None:
    broker, declared = Broker("memory://"), list[Topic]()
    app = App("shop", broker, topics=[Topic("listed", partitions=3)])

    async def declare(topics: Sequence[Topic], mode: Any) -> None:
        declared.extend(topics)

    @app.subscriber("orders", "listed", options=["of the subscriber"])
    @app.publisher("invoices", options=["of the publisher"])
    async def handle(body: int) -> int:
        return body

    broker.engine.declare = declare  # type: ignore[method-assign]  # sees what is asked for
    async with app:
        pass
    options = {topic.name: topic.options for topic in declared}
    assert options["orders"] == ("of the subscriber",)
    assert options["invoices"] == ("of the publisher",)
    assert options["listed"] == ()


async def test_declare_check_fails_without_the_topic_and_off_does_nothing() -> None:
    def app(declare: Any, broker: Any = "memory://") -> App:
        it = App("shop", broker, declare=declare)
        it.subscriber("orders")(lambda body: None)
        return it

    with pytest.raises(TopicNotFoundError, match="orders"):
        await app("check").start()
    async with app("off") as it:
        assert await it.admin.topics.list() == []
    broker = Broker("memory://declared")
    async with broker:
        await broker.admin.topics.create("orders")
    async with app("check", broker):
        pass


@pytest.mark.parametrize("declare", ["create", "off"])
@pytest.mark.parametrize("where", ["subscriber", "publisher", "dead_letter"])
async def test_names_are_checked_at_start_before_anything_is_connected(where: str, declare: Any) -> None:
    steps: list[str] = []
    broker = Broker()
    broker.replace_engine(Recording(steps))
    app, bad = App("shop", broker, declare=declare), " bad "

    async def handle(body: int) -> int:
        return body

    app.subscriber(bad if where == "subscriber" else "good", dead_letter=bad if where == "dead_letter" else None)(
        handle
    )
    app.publisher(bad if where == "publisher" else "fine")(handle)
    with pytest.raises(ConfigurationError, match="' bad '"):
        await app.start()
    assert "connect" not in steps


# --- running ------------------------------------------------------------------------------------------


async def test_run_runs_until_it_is_stopped() -> None:
    app = App("shop", "memory://")
    running = asyncio.create_task(app.run())
    await until(lambda: app.is_ready)
    app.stop()
    await asyncio.wait_for(running, 5)
    assert not app.is_ready


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_stops_gracefully_at_a_signal(number: signal.Signals) -> None:
    app, begun, done = App("shop", "memory://"), asyncio.Event(), []

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        begun.set()
        await until(lambda: not app.is_ready)
        done.append(body)

    running = asyncio.create_task(app.run())
    await until(lambda: app.is_ready)
    await app.publish(1, "orders")
    await begun.wait()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(running, 5)
    assert done == [1]


async def test_a_second_signal_stops_at_once() -> None:
    app, begun = App("shop", "memory://"), asyncio.Event()

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(app.run())
    await until(lambda: app.is_ready)
    await app.publish(1, "orders")
    await begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: not app.is_ready)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 5)


async def test_a_signal_during_the_start_undoes_it() -> None:
    broker = Broker()
    broker.replace_engine(Away())
    app = App("shop", broker)
    running = asyncio.create_task(app.run())
    await until(lambda: broker.engine.tries > 0)  # type: ignore[attr-defined]  # it is an Away
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(running, 5)


async def test_run_raises_why_the_app_was_stopped() -> None:
    app = App("shop", "memory://")
    running = asyncio.create_task(app.run())
    await until(lambda: app.is_ready)
    app.stop(ValueError("a service died"))
    with pytest.raises(ValueError, match="a service died"):
        await asyncio.wait_for(running, 5)


async def test_drain_finishes_what_is_in_work_and_stays_connected() -> None:
    app, done, begun = App("shop", "memory://"), [], asyncio.Event()

    @app.subscriber("orders")
    async def handle(body: int) -> None:
        begun.set()
        await until(lambda: not app.is_ready)
        done.append(body)

    async with app:
        await app.publish(1, "orders")
        await begun.wait()
        await app.drain()
        assert not app.is_ready
        assert done == [1]
        await app.publish(2, "orders")
    assert done == [1]


# --- subscribing while it runs ------------------------------------------------------------------------


async def test_a_subscription_may_be_made_while_the_app_runs() -> None:
    app, got = App("shop", "memory://"), asyncio.Queue[Any]()

    async def handle(body: int, message: Message, it: App) -> None:
        got.put_nowait((body, message.topic, it))

    async with app, asyncio.timeout(5):
        async with app.subscribe("orders", handle, group="live"):
            await app.publish(1, "orders")
            assert await got.get() == (1, "orders", app)
        await app.publish(2, "orders")
        assert app.consuming == []
        assert (await app.admin.groups.lag("live", "orders")).total == 1
        async with app.subscribe(["orders", "more"], handle, group="live"):
            assert (await got.get())[0] == 2


async def test_a_subscription_made_while_running_does_not_take_messages_from_another_handler() -> None:
    app = App("shop", "memory://")

    @app.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with app:
        with pytest.raises(ConfigurationError, match="group="):
            async with app.subscribe("orders", handle):
                pass
        async with app.subscribe("orders", handle, broadcast=True):
            pass


async def test_a_subscription_made_while_running_is_drained_with_the_app() -> None:
    app, done, begun = App("shop", "memory://"), [], asyncio.Event()

    async def handle(body: int) -> None:
        begun.set()
        await asyncio.sleep(0)
        done.append(body)

    async with app:
        place = app.subscribe("orders", handle)
        await place.__aenter__()
        await app.publish(1, "orders")
        await begun.wait()
    assert done == [1]
    await place.__aexit__(None, None, None)


# --- middleware ---------------------------------------------------------------------------------------


async def test_middleware_of_the_app_is_outside_the_routers_and_that_outside_the_subscribers() -> None:
    from headwater import Router

    steps: list[str] = []

    def layer(name: str) -> Any:
        async def mw(message: Message, call_next: Any) -> Any:
            steps.append(f"{name} in")
            result = await call_next(message)
            steps.append(f"{name} out")
            return result

        return mw

    app = App("shop", middleware=[layer("app 1"), layer("app 2")])
    outer, inner = Router(middleware=[layer("outer")]), Router(middleware=[layer("inner")])

    @inner.subscriber("orders", middleware=[layer("own")])
    async def handle(body: int) -> None:
        steps.append("handle")

    outer.include_router(inner)
    app.include_router(outer)
    async with TestApp(app) as t:
        await t.publish(1, "orders")
    names = ["app 1", "app 2", "outer", "inner", "own"]
    assert steps == [f"{n} in" for n in names] + ["handle"] + [f"{n} out" for n in reversed(names)]


async def test_middleware_sees_results_failures_iterators_and_batches_and_may_answer_itself() -> None:
    from headwater import Batch

    seen: list[Any] = []

    async def watch(work: Any, call_next: Any) -> Any:
        if isinstance(work, tuple):
            seen.append(len(work))
            return await call_next(work)
        if work.value == "short":
            return "cut"
        try:
            result = await call_next(work)
        except ValueError as error:
            seen.append(str(error))
            return "saved"
        seen.append(type(result).__name__)
        return result

    app = App("shop", middleware=[watch])

    @app.subscriber("one")
    @app.publisher("out")
    async def one(body: str) -> str:
        if body == "bad":
            raise ValueError("bad")
        return body

    @app.subscriber("many")
    @app.publisher("out")
    async def many(body: str) -> AsyncIterator[str]:
        yield body

    @app.subscriber("batch", batch=Batch(2, 0))
    async def batch(bodies: list[str]) -> None: ...

    async with TestApp(app) as t:
        for body in ("good", "bad", "short"):
            await t.publish(body, "one")
        await t.publish("item", "many")
        await app.publish("x", "batch", key="k")
        await app.publish("y", "batch", key="k")
        await t.settle()
        assert sorted(m.value for m in t.published("out")) == ["cut", "good", "item", "saved"]
        assert t.calls(one) == ["good", "bad"]
    assert seen == ["str", "bad", "async_generator", 2]


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, begun, release = App("shop", "memory://", graceful_timeout=0.05), asyncio.Event(), asyncio.Event()

    @app.subscriber("orders")
    async def stubborn(body: int) -> None:
        begun.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with app:
        await app.publish(1, "orders")
        await begun.wait()
        task = app.consuming[0].task
    assert "goes on although it was cancelled" in caplog.text
    release.set()
    await asyncio.wait([task])
