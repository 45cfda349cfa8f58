"""What an MQTT server says of itself, and how what it retains is cleared, looked at with another client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
import pytest

from headwater import ConnectError, Mqtt, MqttBroker, NotSupportedError, Outgoing
from servers.fixtures import require
from servers.mosquitto import MosquittoServer
from servers.process import free_ports
from servers.proxy import Proxy
from waiting import until

pytestmark = pytest.mark.server


@asynccontextmanager
async def foreign(server: MosquittoServer) -> AsyncIterator[aiomqtt.Client]:
    """Somebody else's client."""
    async with aiomqtt.Client("127.0.0.1", server.port, protocol=aiomqtt.ProtocolVersion.V5) as client:
        yield client


async def retained(server: MosquittoServer, topic: str) -> str:
    """What a server retains on a topic, as another client is told."""
    async with foreign(server) as client, asyncio.timeout(10):
        await client.subscribe(topic)
        message = await anext(aiter(client.messages))
        assert isinstance(message.payload, bytes)
        return message.payload.decode()


@pytest.mark.parametrize("protocol", ["5.0", "3.1.1"])
async def test_the_cluster_is_described_in_the_words_of_the_server(
    mosquitto_server: MosquittoServer, protocol: str
) -> None:
    version = await retained(mosquitto_server, "$SYS/broker/version")
    async with MqttBroker(f"{mosquitto_server.url}?protocol={protocol}") as broker:
        info = await broker.admin.cluster.describe()
        assert info.version == version
        assert [node.address for node in info.nodes] == [mosquitto_server.address]
        assert info.config["$SYS/broker/uptime"].endswith(" seconds")

        async def we_are_counted() -> bool:
            return int((await broker.admin.cluster.describe()).config.get("$SYS/broker/clients/connected", 0)) > 0

        await until(we_are_counted, within=15)


async def test_a_bridge_that_is_down_is_a_problem_with_a_name() -> None:
    require("mqtt")
    bridge = ["connection upstream", f"address 127.0.0.1:{free_ports(1)[0]}", "topic # out"]
    async with MosquittoServer(extra=bridge) as server, MqttBroker(server.url) as broker:

        async def is_seen() -> bool:
            return any("upstream is down" in problem for problem in (await broker.admin.cluster.health()).problems)

        await until(is_seen, within=15)


async def test_a_server_that_drops_messages_is_not_healthy() -> None:
    require("mqtt")
    async with MosquittoServer(extra=["max_queued_messages 5"]) as server, MqttBroker(server.url) as broker:
        assert (await broker.admin.cluster.health()).healthy
        async with aiomqtt.Client("127.0.0.1", server.port, identifier="away", clean_session=False) as client:
            await client.subscribe("orders", qos=1)
        await broker.publish_many([Outgoing(n, "orders") for n in range(100)])

        async def is_seen() -> bool:
            return any("drops messages" in problem for problem in (await broker.admin.cluster.health()).problems)

        await until(is_seen, within=15)
        assert int(await retained(server, "$SYS/broker/publish/messages/dropped")) >= 90


async def test_a_server_that_is_away_is_a_problem_or_an_error_in_time(mosquitto_server: MosquittoServer) -> None:
    async with (
        Proxy(mosquitto_server.port) as proxy,
        MqttBroker(f"mqtt://{proxy.address}") as broker,
    ):
        await proxy.refuse()
        await proxy.cut()
        await until(lambda: not broker.engine.available)
        (problem,) = (await broker.admin.cluster.health()).problems
        assert "is away" in problem
        with pytest.raises(ConnectError):
            await asyncio.wait_for(broker.admin.cluster.describe(), 5)


async def test_a_retained_message_is_cleared_by_an_empty_one(mosquitto_server: MosquittoServer) -> None:
    topic = f"t-{os.urandom(6).hex()}"
    async with MqttBroker(mosquitto_server.url) as broker:
        await broker.publish("on", topic, options=[Mqtt(retain=True)])
        assert await retained(mosquitto_server, topic) == "on"
        await broker.publish(b"", topic, options=[Mqtt(retain=True)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await retained(mosquitto_server, topic)


async def test_what_mqtt_does_not_know_is_refused(mosquitto_server: MosquittoServer) -> None:
    async with MqttBroker(mosquitto_server.url) as broker:
        for call in (broker.admin.topics.list(), broker.admin.groups.list(), broker.admin.topics.purge("orders")):
            with pytest.raises(NotSupportedError):
                await call
