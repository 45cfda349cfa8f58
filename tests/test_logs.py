"""Logging as Headwater configures it where it owns the process, and its silence where it does not."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from headwater import App, Batch, configure_logging

_log = logging.getLogger("shop.orders")  # a user's


class Err:
    """What was written to stderr in this test."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self._text = capsys, ""

    @property
    def lines(self) -> list[str]:
        self._text += self._capsys.readouterr().err
        return self._text.splitlines()

    def json(self, logger: str = "shop.orders") -> list[dict[str, Any]]:
        """The records of this logger."""
        return [found for line in self.lines if (found := json.loads(line))["logger"] == logger]


@pytest.fixture(autouse=True)
def err(capsys: pytest.CaptureFixture[str]) -> Iterator[Err]:
    """What is logged; the root logger is left as it was before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Err(capsys)
    root.handlers[:], root.level = handlers, level


def shop() -> App:
    app = App("shop", broker="memory://")

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        _log.info("an order")
        app.stop()

    @app.subscriber("threads")
    def blocking(n: int) -> None:
        _log.info("in a thread")
        app.stop()

    @app.subscriber("batches", batch=Batch(3, 60))
    async def several(numbers: list[int]) -> None:
        _log.info("several")
        app.stop()

    return app


async def handled(app: App, topic: str, count: int = 1) -> None:
    async with app:
        for n in range(count):
            await app.publish(n, topic, key="k")
        await app.asked_to_stop()


@pytest.mark.parametrize("topic", ["orders", "threads"])
async def test_what_a_handler_logs_names_its_message_in_json(topic: str, err: Err) -> None:
    configure_logging(format="json")
    await handled(shop(), topic)
    (line,) = err.json()
    assert line["topic"] == topic
    assert line["group"] == "shop"
    assert line["message_id"] == f"{topic}/{line['partition']}/{line['offset']}"


async def test_of_a_batch_it_names_the_first_and_how_many_there_are(err: Err) -> None:
    configure_logging(format="json")
    await handled(shop(), "batches", 3)
    (line,) = err.json()
    assert line["messages"] == 3
    assert line["offset"] == 0


async def test_as_text_it_names_it_in_brackets(err: Err) -> None:
    configure_logging()
    await handled(shop(), "orders")
    (line,) = [line for line in err.lines if "an order" in line]
    assert " INFO     shop.orders: an order [orders/" in line
    assert line.endswith("/0]")


async def test_a_failure_names_its_message_once_and_keeps_the_traceback(err: Err) -> None:
    configure_logging()
    app = App("shop", broker="memory://")

    @app.subscriber("orders", retry=None)
    async def handle(n: int) -> None:
        app.stop()
        raise ValueError("broken")

    await handled(app, "orders")
    (line,) = [line for line in err.lines if "gave up" in line]
    assert line.count("orders/") == 1
    assert "ValueError: broken" in err.lines


async def test_what_is_logged_outside_of_handlers_names_none(err: Err) -> None:
    configure_logging(format="json")
    await handled(shop(), "orders")
    ready, stopped = err.json("headwater.shop")
    assert "topic" not in ready
    assert "topic" not in stopped


def test_levels_have_colours_on_a_terminal_alone(err: Err, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging()
    _log.warning("plain")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    configure_logging()
    _log.warning("coloured")
    plain, coloured = err.lines
    assert "\x1b" not in plain
    assert "\x1b[33mWARNING \x1b[0m shop.orders: coloured" in coloured


async def test_without_it_nothing_is_touched(err: Err) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level, logging.getLogger("headwater").propagate
    records = list[logging.LogRecord]()
    listener = logging.Handler()
    listener.emit = records.append  # type: ignore[method-assign]
    _log.addHandler(listener)
    _log.setLevel("INFO")
    try:
        await handled(shop(), "orders")
    finally:
        _log.removeHandler(listener)
        _log.setLevel(logging.NOTSET)
    assert not hasattr(records[0], "topic")
    assert before == (logging.getLogger().handlers, logging.getLogger().level, True)
    assert err.lines == []


def test_what_the_task_of_a_handler_starts_is_named_too(err: Err) -> None:
    configure_logging(format="json")
    app = App("shop", broker="memory://")

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        async def inner() -> None:
            _log.info("inner")

        await asyncio.create_task(inner())
        app.stop()

    asyncio.run(handled(app, "orders"))
    (line,) = err.json()
    assert line["topic"] == "orders"
