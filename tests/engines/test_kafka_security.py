"""Kafka that is encrypted and asks who comes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headwater import AuthenticationError, ConnectError, KafkaBroker
from servers.certificate import Certificate, make_certificate
from servers.kafka import API_VERSIONS, CORRELATION, KafkaServer
from servers.process import ask

pytestmark = [pytest.mark.anyio, pytest.mark.server]

SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"


class SecureKafkaServer(KafkaServer):
    """Its clients come encrypted, with a password that is in no configuration."""

    def __init__(self, folder: Path) -> None:
        self.certificate: Certificate = make_certificate(folder)
        both = folder / "both.pem"
        both.write_text(self.certificate.key.read_text() + self.certificate.file.read_text())
        super().__init__(
            extra=[
                "listener.security.protocol.map=CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
                "listener.name.client.ssl.keystore.type=PEM",
                f"listener.name.client.ssl.keystore.location={both}",
                "listener.name.client.sasl.enabled.mechanisms=SCRAM-SHA-512",
                f"listener.name.client.scram-sha-512.sasl.jaas.config={SCRAM} required;",
            ]
        )

    def answers(self) -> bool:
        return ask(self.port, API_VERSIONS, tls=True)[4:8] == CORRELATION

    def add_user(self, name: str, password: str) -> None:
        from confluent_kafka.admin import (  # type: ignore[attr-defined]  # it says not that it exports them
            AdminClient,
            ScramCredentialInfo,
            ScramMechanism,
            UserScramCredentialUpsertion,
        )

        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion(name, info, password.encode())
        admin = AdminClient({"bootstrap.servers": self.open_address})
        admin.alter_user_scram_credentials([user])[name].result(20)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SecureKafkaServer]:
    async with SecureKafkaServer(tmp_path) as server:
        server.add_user("ann", "s3cret")
        yield server


async def test_the_certificate_and_the_password_must_be_right(server: SecureKafkaServer) -> None:
    ours = {"tls_ca": str(server.certificate.file), "sasl": "scram-sha-512", "connect_timeout": 5}
    url = f"kafka+ssl://ann:s3cret@{server.address}"
    async with KafkaBroker(url, **ours) as broker:  # type: ignore[arg-type]  # a dict of several types
        await broker.publish(1, "numbers")
        async with broker.stream("numbers", start="earliest", limit=1) as stream:
            assert [message.value async for message in stream] == [1]
        assert await broker.get("numbers", group="shop", timeout=10) is not None

    with pytest.raises(AuthenticationError, match=server.address) as refused:
        await KafkaBroker(url.replace("s3cret", "wr0ng"), **ours).connect()  # type: ignore[arg-type]  # the same
    assert "wr0ng" not in str(refused.value)
    with pytest.raises(ConnectError, match=rf"{server.address}.*certificate"):
        await KafkaBroker(url, sasl="scram-sha-512", connect_timeout=5).connect()
    async with KafkaBroker(url, sasl="scram-sha-512", tls_verify=False) as broker:
        await broker.publish(2, "numbers")
