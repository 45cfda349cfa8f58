"""The real clients of the servers, each as far as it takes to keep a text there, and to be refused."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Protocol
from urllib.parse import urlsplit

from .kafka import KafkaServer
from .mosquitto import MosquittoServer
from .nats import NatsServer
from .rabbit import RabbitServer
from .redis import RedisServer


class Client(Protocol):
    """Log in with the server's credentials, or with another password. What a refusal raises is the client's own."""

    async def keep(self, text: str, *, password: str = "") -> None: ...
    async def kept(self) -> str: ...


class KafkaClient:
    """One partition with one message."""

    def __init__(self, server: KafkaServer) -> None:
        self._settings: dict[str, Any] = {"bootstrap.servers": server.address, "log_level": 0}
        if server.user:
            self._settings |= {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
            self._settings |= {"sasl.username": server.user, "sasl.password": server.password}

    async def keep(self, text: str, *, password: str = "") -> None:
        await asyncio.to_thread(self._keep, text, {"sasl.password": password} if password else {})

    async def kept(self) -> str:
        return await asyncio.to_thread(self._kept)

    def _keep(self, text: str, other: dict[str, Any]) -> None:
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({**self._settings, **other, "error_cb": lambda _: None})
        admin.list_topics(timeout=3 if other else 20)  # a wrong password is tried again until the time is over
        for created in admin.create_topics([NewTopic("kept", 1)]).values():
            created.result(20)
        producer = Producer(self._settings)
        producer.produce("kept", text.encode())
        assert producer.flush(20) == 0

    def _kept(self) -> str:
        from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

        consumer = Consumer({**self._settings, "group.id": "readers"})
        try:
            consumer.assign([TopicPartition("kept", 0, OFFSET_BEGINNING)])
            message = consumer.poll(20)
            assert message is not None
            assert message.error() is None, message.error()
            return bytes(message.value() or b"").decode()
        finally:
            consumer.close()


class MosquittoClient:
    """A retained message."""

    def __init__(self, server: MosquittoServer) -> None:
        self._server = server

    async def keep(self, text: str, *, password: str = "") -> None:
        async with self._connect(password) as client:
            await client.publish("kept", text, qos=1, retain=True)

    async def kept(self) -> str:
        async with self._connect() as client, asyncio.timeout(10):
            await client.subscribe("kept")
            message = await anext(aiter(client.messages))
            return bytes(message.payload).decode()

    def _connect(self, password: str = "") -> Any:
        import aiomqtt

        server = self._server
        return aiomqtt.Client(
            *_host_and_port(server.url),
            username=server.user or None,
            password=password or server.password or None,
            tls_context=_trust(server),
        )


class NatsClient:
    """A stream with one message."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server

    async def keep(self, text: str, *, password: str = "") -> None:
        client = await self._connect(password)
        await client.jetstream().add_stream(name="kept", subjects=["kept"])
        await client.jetstream().publish("kept", text.encode())
        await client.close()

    async def kept(self) -> str:
        client = await self._connect()
        message = await client.jetstream().get_last_msg("kept", "kept")
        await client.close()
        return bytes(message.data or b"").decode()

    async def _connect(self, password: str = "") -> Any:
        from nats.aio.client import Client

        async def ignore(_: Exception) -> None:
            """The default prints a traceback."""

        server, client = self._server, Client()
        try:
            await client.connect(
                f"{urlsplit(server.url).scheme}://{server.address}",
                user=server.user or None,
                password=password or server.password or None,
                token=server.token or None,
                tls=_trust(server),
                allow_reconnect=False,
                error_cb=ignore,
            )
        except BaseException:
            await client.close()  # who was refused keeps the socket otherwise
            raise
        return client


class RabbitClient:
    """A durable queue with one persistent message, confirmed."""

    def __init__(self, server: RabbitServer) -> None:
        self._server = server

    async def keep(self, text: str, *, password: str = "") -> None:
        import aio_pika

        async with await self._connect(password) as connection:
            channel = await connection.channel()
            await channel.declare_queue("kept", durable=True)
            message = aio_pika.Message(text.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, "kept")

    async def kept(self) -> str:
        async with await self._connect() as connection:
            queue = await (await connection.channel()).get_queue("kept")
            message = await queue.get()
            await message.ack()
            return bytes(message.body).decode()

    async def _connect(self, password: str = "") -> Any:
        import aio_pika
        from aio_pika.connection import make_url

        server = self._server
        host, port = _host_and_port(server.url)
        login = {"login": server.user, "password": password or server.password}
        connection = aio_pika.Connection(make_url(host=host, port=port, **login))
        try:
            await connection.connect(timeout=10)
        except BaseException:
            await connection.close()  # one that is forgotten is closed wherever it happens to be collected
            raise
        return connection


class RedisClient:
    """A stream with one entry."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def keep(self, text: str, *, password: str = "") -> None:
        async with self._client(password) as client:
            await client.xadd("kept", {"text": text})

    async def kept(self) -> str:
        async with self._client() as client:
            [(_, fields)] = await client.xrange("kept")
            return str(fields[b"text"].decode())

    def _client(self, password: str = "") -> Any:
        from redis.asyncio import Redis

        server = self._server
        host, port = _host_and_port(server.url)
        trust = {"ssl": True, "ssl_ca_certs": str(server.certificate.file)} if server.certificate else {}
        return Redis(host=host, port=port, password=password or server.password or None, **trust)  # type: ignore[arg-type]  # a dict of several types


CLIENTS: dict[str, Any] = {
    "kafka": KafkaClient,
    "mqtt": MosquittoClient,
    "nats": NatsClient,
    "rabbit": RabbitClient,
    "redis": RedisClient,
}


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _trust(server: MosquittoServer | NatsServer) -> ssl.SSLContext | None:
    return server.certificate.trusted() if server.certificate else None
