"""What a type checker sees: decorated functions keep their types, and the public API has the types it promises."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest

import headwater

mypy_api = pytest.importorskip("mypy.api")
SOURCE = str(Path(headwater.__file__).parent.parent)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all programs: the first pays for the package, the others for themselves."""
    return tmp_path_factory.mktemp("mypy")


def check(program: str, directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """The types it revealed and the errors, in order."""
    path = directory / "program.py"
    path.write_text(textwrap.dedent(program))
    monkeypatch.setenv("MYPYPATH", SOURCE)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    options = ["--strict", "--no-error-summary", "--config-file=", "--cache-dir", str(cache)]
    output, problems, _ = mypy_api.run([*options, "--python-version", version, str(path)])
    assert not problems, problems
    revealed = re.findall(r'Revealed type is "(.*)"', output)
    return revealed, [line for line in output.splitlines() if ": error:" in line]


def short(type_name: str) -> str:
    """A revealed type without the modules its names come from."""
    return re.sub(r"\b([a-z_]+\.)+(?=[A-Za-z])", "", type_name)


USE = """
    from collections.abc import AsyncIterator, Iterator
    from typing import Annotated, reveal_type
    from dataclasses import dataclass
    from headwater import (
        App, Batch, Broker, Context, Depends, Header, Key, Message, Outgoing, Path, Response, Retry, Router, TestApp,
    )

    app = App("shop", broker="memory://")
    router = Router("v1.")

    @dataclass
    class Order:
        id: int

    def database() -> str:
        return "db"

    @app.subscriber("orders", concurrency=8, order_by="key", retry=Retry(attempts=5))
    @app.publisher("invoices", key=lambda invoice: str(invoice))
    async def invoice(order: Order, db: str = Depends(database), x: int = Header("x")) -> dict[str, int]:
        return {"order": order.id}

    @router.subscriber("orders.{region}", batch=Batch(10, 1))
    def collect(orders: list[Order]) -> int:
        return len(orders)

    @app.subscriber("items", filter=lambda message: message.key == "a")
    async def items(n: int, key: Annotated[str | None, Key()], c: Annotated[str, Context("c")]) -> AsyncIterator[int]:
        yield n

    @app.on_startup
    async def startup(app: App) -> None:
        app.set_broker("memory://")

    app.include_router(router)
"""


def test_decorated_functions_keep_their_types(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""{USE}
    reveal_type(invoice)
    reveal_type(collect)
    reveal_type(items)
    reveal_type(startup)
    """
    revealed, errors = check(program, tmp_path, cache, monkeypatch)
    assert errors == []
    assert [short(found) for found in revealed] == [
        "def (order: Order, db: str =, x: int =) -> Coroutine[Any, Any, dict[str, int]]",
        "def (orders: list[Order]) -> int",
        "def (n: int, key: str | None, c: str) -> AsyncIterator[int]",
        "def (app: App) -> Coroutine[Any, Any, None]",
    ]


def test_the_public_api_has_the_types_it_promises(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""{USE}
    async def use() -> None:
        async with Broker("memory://") as broker:
            reveal_type(await broker.publish(Order(1), "orders", key="7", headers={{"x": "1"}}, delay=5.0, timeout=10))
            reveal_type(await broker.publish_many([Outgoing(Order(1), "orders")]))
            reveal_type(await broker.request("q", "prices", timeout=2))
            reveal_type(await broker.get("orders", group="audit", timeout=1))
            async for message in broker.stream("orders", start="earliest"):
                reveal_type(message.value)
                reveal_type(message.key)
                reveal_type(message.headers["x"])
            await broker.admin.topics.create("orders", partitions=6)
            reveal_type((await broker.admin.groups.lag("billing", "orders")).total)
        reveal_type(await app.publish(1, "orders"))
        async with app:
            reveal_type(app.is_ready)
        async with app.subscribe("orders", invoice, group="g"):
            pass
        async with TestApp(app) as t:
            reveal_type(await t.publish(1, "orders"))
            reveal_type(t.published("x"))
            with t.override(database, lambda: "fake"):
                await t.advance(5)

    def synchronously() -> None:
        with TestApp(app) as t:
            reveal_type(t.publish(1, "orders"))
            reveal_type(t.dead("orders"))
    """
    revealed, errors = check(program, tmp_path, cache, monkeypatch)
    assert errors == []
    assert [short(found) for found in revealed] == [
        "Receipt",
        "Sequence[Receipt]",
        "Message",
        "Message | None",
        "Any",
        "str | None",
        "str",
        "int",
        "Receipt",
        "bool",
        "Receipt",
        "list[Message]",
        "Receipt",
        "list[Message]",
    ]


def test_mistakes_are_seen(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""{USE}
    async def use(broker: Broker) -> None:
        await broker.publish(1)
        await broker.publish(1, "orders", keys="typo")
        await app.publish(1, "orders", timeout="long")
        await invoice("not an order")
        app.subscriber("orders", concurrency="many")
        app.subscriber("orders", ack="never")
        app.subscriber("orders", order_by="day")
        Retry(atempts=3)
    """
    _, errors = check(program, tmp_path, cache, monkeypatch)
    assert len(errors) == 8, errors
