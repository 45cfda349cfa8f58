"""The proxy: cuts, refuses and stalls what goes through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from .process import HOST
from .proxy import Proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Before a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                writer.write(data)
        except ConnectionResetError:
            pass  # what a cut is to a server
        finally:
            writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as found:
        yield found
    server.close()


async def connect(proxy: Proxy) -> Streams:
    return await asyncio.open_connection(HOST, proxy.port)


async def echoed(streams: Streams, data: bytes) -> bytes:
    reader, writer = streams
    writer.write(data)
    return await asyncio.wait_for(reader.read(1000), 5)


async def ended(streams: Streams) -> bool:
    try:
        return await asyncio.wait_for(streams[0].read(1000), 5) == b""
    except ConnectionResetError:
        return True


async def test_a_proxy_forwards_both_ways(proxy: Proxy) -> None:
    one, two = await connect(proxy), await connect(proxy)
    assert await echoed(one, b"one") == b"one"
    assert await echoed(two, b"two") == b"two"
    assert proxy.connections == 2
    one[1].close()
    two[1].close()


async def test_a_cut_drops_all_connections_and_accepts_new_ones(proxy: Proxy) -> None:
    one, two = await connect(proxy), await connect(proxy)
    assert await echoed(one, b"x") == await echoed(two, b"x")
    await proxy.cut()
    assert await ended(one)
    assert await ended(two)
    assert proxy.connections == 0
    three = await connect(proxy)
    assert await echoed(three, b"three") == b"three"
    for _, writer in (one, two, three):
        writer.close()


async def test_a_refusing_proxy_keeps_what_is_connected(proxy: Proxy) -> None:
    one = await connect(proxy)
    assert await echoed(one, b"one") == b"one"
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    assert await echoed(one, b"still") == b"still"
    await proxy.accept()
    two = await connect(proxy)
    assert await echoed(two, b"two") == b"two"
    one[1].close()
    two[1].close()


async def test_a_stalled_proxy_forwards_nothing_until_it_goes_on(proxy: Proxy) -> None:
    one = await connect(proxy)
    assert await echoed(one, b"one") == b"one"
    proxy.stall()
    two = await connect(proxy)
    one[1].write(b"late")
    two[1].write(b"later")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one[0].read(1000), 0.1)
    proxy.go_on()
    assert await asyncio.wait_for(one[0].read(1000), 5) == b"late"
    assert await asyncio.wait_for(two[0].read(1000), 5) == b"later"
    one[1].close()
    two[1].close()


async def test_a_server_that_is_gone_ends_the_connection(proxy: Proxy) -> None:
    proxy.target = 1
    streams = await connect(proxy)
    assert await ended(streams)
    streams[1].close()
