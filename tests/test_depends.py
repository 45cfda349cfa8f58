"""Dependencies: nested, cached, cleaned up, in threads, FastAPI's own."""

import asyncio
import logging
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest

from headwater import App, Broker, ConfigurationError, Depends, Header, Message, Retry, Router, TestApp


async def run(handler: Callable[..., Any], value: Any = 1, **options: Any) -> TestApp:
    """A stopped test of an app whose handler was given one message."""
    app = App("shop")
    app.subscriber("orders", retry=None, **options)(handler)
    async with TestApp(app) as t:
        await t.publish(value, "orders")
    return t


async def test_dependencies_nest_and_are_made_once_per_message() -> None:
    made: list[str] = []

    def base() -> str:
        made.append("base")
        return "b"

    async def middle(b: str = Depends(base)) -> str:
        made.append("middle")
        return b + "m"

    def top(b: Annotated[str, Depends(base)], m: str = Depends(middle)) -> str:
        return b + m + "t"

    got = []

    async def handle(body: int, one: str = Depends(top), two: str = Depends(base)) -> None:
        got.append((body, one, two))

    await run(handle)
    assert got == [(1, "bbmt", "b")]
    assert made == ["base", "middle"]


async def test_a_dependency_is_made_anew_for_each_message_and_without_cache_for_each_parameter() -> None:
    numbers = iter(range(10))
    app, got = App("shop"), []

    def number() -> int:
        return next(numbers)

    @app.subscriber("orders")
    async def handle(a: int = Depends(number), b: int = Depends(number), c: int = Depends(number, use_cache=False)):  # type: ignore[no-untyped-def]
        got.append((a, b, c))

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.publish(1, "orders")
    assert got == [(0, 0, 1), (2, 2, 3)]


async def test_dependencies_get_messages_headers_and_the_app() -> None:
    got = []

    def about(message: Message, app: App, broker: Broker, log: logging.Logger, tag: str = Header("tag")) -> Any:
        return message.topic, app.name, broker is app.broker, log.name, tag

    app = App("shop")

    @app.subscriber("orders")
    async def handle(it: Any = Depends(about)) -> None:
        got.append(it)

    async with TestApp(app) as t:
        await t.publish(1, "orders", headers={"tag": "x"})
    assert got == [("orders", "shop", True, "headwater.shop", "x")]


async def test_yielding_dependencies_are_cleaned_up_in_reverse_after_the_result_was_published() -> None:
    app, steps = App("shop"), []

    async def outer() -> AsyncIterator[str]:
        steps.append("outer in")
        yield "outer"
        steps.append(f"outer out, {len(t.published('done'))} published")

    def inner(o: str = Depends(outer)) -> Iterator[str]:
        steps.append("inner in")
        yield "inner"
        steps.append("inner out")

    @app.subscriber("orders")
    @app.publisher("done")
    async def handle(body: int, i: str = Depends(inner)) -> int:
        steps.append("handle")
        return body

    async with TestApp(app) as t:
        await t.publish(1, "orders")
    assert steps == ["outer in", "inner in", "handle", "inner out", "outer out, 1 published"]


@pytest.mark.parametrize("threaded", [False, True])
async def test_what_the_handler_raises_is_thrown_into_its_dependencies(threaded: bool) -> None:
    seen: list[str] = []

    def watching() -> Iterator[int]:
        try:
            yield 1
        except ValueError as error:
            seen.append(str(error))
            raise

    async def handle(body: int, w: int = Depends(watching, thread=threaded)) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run(handle)
    assert seen == ["no"]


@pytest.mark.parametrize("threaded", [False, True])
async def test_a_dependency_that_swallows_the_failure_does_not_make_it_a_success(threaded: bool) -> None:
    def forgiving() -> Iterator[int]:
        try:
            yield 1
        except ValueError:
            pass

    async def handle(body: int, f: int = Depends(forgiving, thread=threaded)) -> None:
        raise ValueError("still failed")

    with pytest.raises(ValueError, match="still failed"):
        await run(handle)


async def test_a_failing_cleanup_is_a_failure_of_the_message() -> None:
    async def leaky() -> AsyncIterator[int]:
        yield 1
        raise OSError("cannot close")

    async def handle(body: int, f: int = Depends(leaky)) -> None: ...

    with pytest.raises(OSError, match="cannot close"):
        await run(handle)


async def test_a_dependency_that_fails_leaves_those_before_it_cleaned_up() -> None:
    steps: list[str] = []

    async def first() -> AsyncIterator[int]:
        steps.append("in")
        try:
            yield 1
        finally:
            steps.append("out")

    async def second(f: int = Depends(first)) -> int:
        raise LookupError("second")

    async def handle(body: int, s: int = Depends(second)) -> None:
        steps.append("never")

    with pytest.raises(LookupError):
        await run(handle)
    assert steps == ["in", "out"]


async def test_a_def_handler_and_its_def_dependencies_share_one_thread_hop() -> None:
    threads: list[threading.Thread] = []

    def here() -> threading.Thread:
        return threading.current_thread()

    def opened(below: threading.Thread = Depends(here)) -> Iterator[threading.Thread]:
        threads.append(below)
        yield threading.current_thread()
        threads.append(threading.current_thread())

    async def on_loop() -> threading.Thread:
        return threading.current_thread()

    def handle(
        body: int,
        a: threading.Thread = Depends(opened),
        b: threading.Thread = Depends(here, thread=True),
        c: threading.Thread = Depends(on_loop),
    ) -> None:
        threads.extend([threading.current_thread(), a, b])
        assert c is threading.main_thread()

    await run(handle)
    assert threading.main_thread() not in threads
    assert len(set(threads[:-1])) == 1


async def test_a_def_dependency_that_an_async_one_of_a_def_handler_needs_is_made_before_it() -> None:
    def sync() -> str:
        return "made"

    async def needs(value: str = Depends(sync)) -> str:
        return f"from {value}"

    got = []

    def handle(body: int, first: str = Depends(sync), second: str = Depends(needs)) -> None:
        got.append((first, second))

    await run(handle)
    assert got == [("made", "from made")]


async def test_a_def_dependency_of_an_async_handler_runs_inline_or_in_a_thread_when_told() -> None:
    got = []

    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    def opened() -> Iterator[bool]:
        yield where()
        got.append(where())

    async def handle(
        inline: bool = Depends(where),
        threaded: bool = Depends(where, thread=True, use_cache=False),
        generator: bool = Depends(opened, thread=True),
    ) -> None:
        got.append((inline, threaded, generator))

    await run(handle)
    assert got == [(True, False, False), False]


async def test_a_dependency_that_holds_the_loop_is_named_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App("shop")
    moments = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments) * 0.06)

    def slow_lookup() -> int:
        return 1

    @app.subscriber("orders")
    async def handle(body: int, s: int = Depends(slow_lookup)) -> None: ...

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.publish(2, "orders")
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "slow_lookup" in warning
    assert "60 ms" in warning
    assert "thread=True" in warning


async def test_context_variables_of_the_task_reach_a_thread() -> None:
    import contextvars

    name = contextvars.ContextVar("name", default="unset")
    got = []

    async def set_it(message: Message, call_next: Any) -> Any:
        name.set("set")
        return await call_next(message)

    def handle(body: int) -> None:
        got.append(name.get())

    await run(handle, middleware=[set_it])
    assert got == ["set"]


async def test_fastapis_own_depends_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fastapi.params")

    class FastapiDepends:
        def __init__(self, dependency: Any = None, *, use_cache: bool = True) -> None:
            self.dependency, self.use_cache = dependency, use_cache

    FastapiDepends.__module__ = "fastapi.params"
    monkeypatch.setitem(sys.modules, "fastapi.params", module)

    class Settings:
        def __init__(self) -> None:
            self.name = "prod"

    async def session(settings: Annotated[Settings, FastapiDepends()]) -> AsyncIterator[str]:
        yield f"session on {settings.name}"

    got = []

    async def handle(body: int, s: Annotated[str, FastapiDepends(session)], d: Any = FastapiDepends(session)) -> None:
        got.append((s, d))

    await run(handle)
    assert got == [("session on prod", "session on prod")]


async def test_dependencies_of_app_router_and_subscriber_run_in_that_order_before_the_handler() -> None:
    steps: list[str] = []

    def step(name: str) -> Any:
        def note() -> None:
            steps.append(name)

        return Depends(note)

    app = App("shop", dependencies=[step("app")])
    router = Router(dependencies=[step("router")])

    @router.subscriber("orders", dependencies=[step("subscriber")])
    async def handle(body: int, s: None = step("own")) -> None:
        steps.append("handle")

    app.include_router(router)
    async with TestApp(app) as t:
        await t.publish(1, "orders")
    assert steps == ["app", "router", "subscriber", "own", "handle"]


async def test_a_dependency_nothing_can_fill_is_refused_at_start_by_name() -> None:
    def lookup(sku: str) -> str:
        return sku

    app = App("shop")

    @app.subscriber("orders")
    async def handle(body: int, price: str = Depends(lookup)) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'sku'.*lookup"):
        async with TestApp(app):
            pass


async def test_classes_partials_and_async_callable_objects_are_dependencies() -> None:
    from functools import partial

    class Unit:
        def __init__(self, message: Message) -> None:
            self.topic = message.topic

    class Client:
        async def __call__(self) -> str:
            await asyncio.sleep(0)
            return "client"

    def add(a: int, b: int) -> int:
        return a + b

    got = []

    async def handle(
        body: int, u: Unit = Depends(Unit), c: str = Depends(Client()), s: int = Depends(partial(add, 1, b=2))
    ) -> None:
        got.append((u.topic, c, s))

    await run(handle)
    assert got == [("orders", "client", 3)]


async def test_dependencies_are_made_again_for_each_attempt() -> None:
    made = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    app = App("shop")

    @app.subscriber("orders", retry=Retry(attempts=2))
    async def handle(body: int, n: int = Depends(make)) -> None:
        if n == 0:
            raise ValueError

    async with TestApp(app) as t:
        await t.publish(1, "orders")
        await t.advance(60)
    assert made == [0, 1]


async def test_a_generator_handler_keeps_its_dependencies_until_its_last_item_is_published() -> None:
    app, steps = App("shop"), []

    async def resource() -> AsyncIterator[str]:
        yield "open"
        steps.append("closed")

    @app.subscriber("orders")
    @app.publisher("items")
    async def handle(body: int, r: str = Depends(resource)) -> AsyncIterator[int]:
        for n in range(body):
            steps.append(n)
            yield n

    async with TestApp(app) as t:
        await t.publish(2, "orders")
        assert [m.value for m in t.published("items")] == [0, 1]
    assert steps == [0, 1, "closed"]
