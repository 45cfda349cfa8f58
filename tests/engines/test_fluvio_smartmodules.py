"""SmartModules on a real cluster: loaded, listed, passed through by streams and subscribers, removed."""

from __future__ import annotations

import asyncio
import gzip
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headwater import (
    App,
    Broker,
    ConfigurationError,
    Fluvio,
    FluvioBroker,
    HeadwaterError,
    NotSupportedError,
    Outgoing,
    SmartModules,
)

pytestmark = pytest.mark.server
SOURCE = Path(__file__).parent / "smartmodule.wat"
WORDS = ["apple", "pear", "apricot", "plum", "almond"]


def wasm(export: str) -> bytes:
    """The module, which filters or maps."""
    wasmtime = pytest.importorskip("wasmtime")
    text = SOURCE.read_text().replace("EXPORT", export).replace("CHANGES", str(int(export == "map")))
    return bytes(wasmtime.wat2wasm(text))


@pytest.fixture
async def broker(fluvio_endpoint: str) -> AsyncIterator[Broker]:
    async with FluvioBroker(f"fluvio://{fluvio_endpoint}", session_timeout=3) as broker:
        yield broker


@pytest.fixture
async def topic(broker: Broker) -> str:
    """A topic with some words."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    await broker.admin.topics.create(name)
    await broker.publish_many([Outgoing(word.encode(), name, key=word[0]) for word in WORDS])
    return name


@pytest.fixture
async def module(broker: Broker) -> AsyncIterator[str]:
    """A name for one, which is removed in the end."""
    name = f"m-{uuid.uuid4().hex[:12]}"
    yield name
    if name in [found.name for found in await SmartModules(broker).list()]:
        await SmartModules(broker).delete(name)


async def test_they_are_loaded_listed_and_removed(broker: Broker, module: str) -> None:
    modules, body = SmartModules(broker), wasm("filter")
    await modules.create(module, body)
    assert [found.size for found in await modules.list() if found.name == module] == [len(gzip.compress(body))]
    await modules.delete(module)
    assert module not in [found.name for found in await modules.list()]
    with pytest.raises(LookupError, match=module):
        await modules.delete(module)


async def test_a_filter_lets_some_through_and_offsets_stay_what_they_were(
    broker: Broker, topic: str, module: str
) -> None:
    await SmartModules(broker).create(module, wasm("filter"))
    async with broker.stream(topic, start="earliest", limit=4, wait=10, options=[Fluvio(smartmodule=module)]) as stream:
        found = [
            (message.offset, message.body) async for message in stream if await more(broker, topic, message.offset)
        ]
    assert found == [(0, b"apple"), (2, b"apricot"), (4, b"almond"), (6, b"avocado")]


async def more(broker: Broker, topic: str, offset: int | str | None) -> bool:
    """Publish more once the last one was read."""
    if offset == 4:
        await broker.publish_many([Outgoing(b"fig", topic), Outgoing(b"avocado", topic)])
    return True


async def test_a_map_changes_what_is_read(broker: Broker, topic: str, module: str) -> None:
    await SmartModules(broker).create(module, wasm("map"))
    async with broker.stream(topic, start="earliest", limit=5, wait=10, options=[Fluvio(smartmodule=module)]) as stream:
        assert [message.body async for message in stream] == [b"!" + word[1:].encode() for word in WORDS]


async def test_a_group_goes_on_behind_what_a_filter_left_out(broker: Broker, topic: str, module: str) -> None:
    await SmartModules(broker).create(module, wasm("filter"))
    handled, three = [], asyncio.Event()
    app = App("shop", broker=broker.url)

    @app.subscriber(topic, group="shop", start="earliest", options=[Fluvio(smartmodule=module)])
    async def take(body: bytes) -> None:
        handled.append(body)
        if len(handled) == 3:
            three.set()

    async with app:
        await asyncio.wait_for(three.wait(), 20)
    assert handled == [b"apple", b"apricot", b"almond"]
    assert (await broker.admin.groups.lag("shop", topic)).total == 0


async def test_what_is_no_module_or_not_there_is_said(broker: Broker, topic: str) -> None:
    with pytest.raises(ConfigurationError, match="no WebAssembly"):
        await SmartModules(broker).create("text", b"fn main() {}")
    with pytest.raises(HeadwaterError, match="no such SmartModule"):
        async with broker.stream(topic, start="earliest", limit=1, options=[Fluvio(smartmodule="missing")]) as stream:
            await anext(stream)
    async with Broker("memory://") as memory:
        with pytest.raises(NotSupportedError):
            SmartModules(memory)
