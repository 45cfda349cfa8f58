"""The blocking face on the real server of every engine."""

from __future__ import annotations

import asyncio

import pytest

from headwater import App, Outgoing, SyncBroker


@pytest.mark.server
async def test_every_engine_is_published_to_read_and_asked(server_url: str, topic: str) -> None:
    app = App("shop", broker=server_url)

    @app.subscriber(f"{topic}-prices", dead_letter=False)
    async def price(n: int) -> int:
        return 2 * n

    def use() -> None:
        with SyncBroker(server_url) as face:
            face.ping()
            assert face.request(21, f"{topic}-prices", timeout=20).value == 42
            face.publish("first", topic, key="k")
            with face.stream(topic, limit=21, wait=20) as stream:
                soon = [face.publish_soon(n, topic, key="k") for n in range(10)]
                assert face.flush()
                assert all(delivery.result().topic == topic for delivery in soon)
                assert len(face.publish_many([Outgoing(n, topic, "k") for n in range(10, 20)])) == 10
                face.publish("last", topic, key="k")
                assert [message.value for message in stream] == [*range(20), "last"]
            able = face.admin.capabilities
            assert not able["list_topics"] or topic in [info.name for info in face.admin.topics.list()]
            assert not able["health"] or face.admin.cluster.health().healthy

    async with app:
        await asyncio.to_thread(use)
