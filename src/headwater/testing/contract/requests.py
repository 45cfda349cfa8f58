"""Requests and their answers."""

from __future__ import annotations

import asyncio

import pytest

from ...app import App
from ...broker import Broker
from ...engine import Source
from ...errors import RemoteError, RequestTimeoutError
from .needs import needs
from .tools import QUIET, MakeBroker


class Requests:
    """Requests and their answers."""

    async def test_a_request_is_answered(self, broker: Broker, make_broker: MakeBroker, topic: str, group: str) -> None:
        app = App(group, make_broker())
        shared = broker.engine.capabilities(Source(topics=(topic,), group=group)).groups

        @app.subscriber(topic, concurrency=4, dead_letter=False, broadcast=not shared)
        async def double(n: int) -> int:
            return n * 2

        async with app:
            answers = await asyncio.gather(*(broker.request(n, topic, timeout=10) for n in range(20)))
        assert [answer.value for answer in answers] == [2 * n for n in range(20)]

    @needs("groups", "settles")
    async def test_a_failure_is_an_answer(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app = App(group, make_broker())

        @app.subscriber(topic, retry=None)
        async def fails(n: int) -> int:
            raise LookupError("no such thing")

        async with app:
            with pytest.raises(RemoteError, match="LookupError: no such thing"):
                await broker.request(1, topic, timeout=10)

    async def test_nobody_answering_is_a_timeout(self, broker: Broker, topic: str) -> None:
        with pytest.raises(RequestTimeoutError):
            await broker.request(1, topic, timeout=QUIET)
