"""aiomqtt at QoS 1: a persistent session that is filled while away, and publishes that await their acknowledgement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiomqtt
from fast_depends.msgspec import MsgSpecSerializer
from faststream.mqtt import MQTTBroker, QoS
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from headwater import Topic

from .measure import BODY, PREFETCH, Counter, Reading, Send, decode

_quiet = logging.getLogger("bench.mqtt")  # it warns of every publish that waits beside others
_quiet.setLevel(logging.ERROR)


def _session() -> Properties:
    """It outlives the connection, and has so many messages under way."""
    wanted = Properties(PacketTypes.CONNECT)
    wanted.SessionExpiryInterval, wanted.ReceiveMaximum = 3600, PREFETCH
    return wanted


class Mqtt:
    name = "MQTT QoS 1"
    messages = 10_000

    def __init__(self, url: str) -> None:
        self.url = f"{url}?receive_maximum={PREFETCH}"
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 1883

    def options(self, topic: str) -> tuple[Topic, ...]:
        return ()

    def client(self, identifier: str) -> aiomqtt.Client:
        return aiomqtt.Client(
            self.host,
            self.port,
            identifier=identifier,
            protocol=aiomqtt.ProtocolVersion.V5,
            clean_start=False,
            properties=_session(),
            logger=_quiet,
            max_inflight_messages=PREFETCH,
            max_concurrent_outgoing_calls=1000,
        )

    async def prepare(self, topic: str) -> None:
        async with self.client(f"bench-{topic}") as client:
            await client.subscribe(topic, qos=1)

    async def fill(self, topic: str, count: int) -> None:
        async with self.publisher(topic) as send:
            for _ in range(0, count, 500):
                await asyncio.gather(*(send() for _ in range(500)))

    async def consume(self, topic: str, handle: Counter) -> None:
        async with self.client(f"bench-{topic}") as client:
            async for message in client.messages:
                await handle(decode(message.payload))  # type: ignore[arg-type]  # bytes, as it was published
                if not handle.left:
                    return

    @asynccontextmanager
    async def faststream(self, topic: str, handle: Counter) -> AsyncIterator[None]:
        broker = MQTTBroker(
            f"mqtt://{self.host}:{self.port}",
            client_id=f"bench-{topic}",
            clean_session=False,
            version="3.1.1",  # on 5.0 it loses what a session had kept
            logger=None,
            serializer=MsgSpecSerializer(),
        )

        @broker.subscriber(topic, qos=QoS.AT_LEAST_ONCE)
        async def take(reading: Reading) -> None:
            await handle(reading)

        async with broker:
            await broker.start()
            yield

    @asynccontextmanager
    async def publisher(self, topic: str) -> AsyncIterator[Send]:
        async with self.client(f"publisher-{topic}") as client:
            yield lambda: client.publish(topic, BODY, qos=1)
