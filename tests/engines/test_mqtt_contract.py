"""The MQTT engine keeps the contract on a real server, with either version of the protocol and at QoS 2 and 0, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from headwater import MqttBroker
from headwater.testing.contract import EngineContract, MakeBroker, Restart
from servers.fixtures import require
from servers.mosquitto import MosquittoServer
from waiting import until

pytestmark = pytest.mark.server

LIMIT = 1 << 20  # bytes; what the protocol itself allows is more than a test should send


@pytest.fixture(scope="module")
def patient_server() -> Iterator[MosquittoServer]:
    """The contract leaves thousands unacknowledged; how many there may be is on 3.1.1 the server's to say."""
    require("mqtt")
    with MosquittoServer(extra=["max_inflight_messages 10000"]) as server:
        yield server


class Contract(EngineContract):
    """What the variants share. Brokers are remembered, for `restart` to wait until all of them are back."""

    OPTIONS: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def server(self, mosquitto_server: MosquittoServer) -> MosquittoServer:
        return mosquitto_server

    @pytest.fixture
    def limit(self) -> int:
        return LIMIT

    @pytest.fixture
    def made(self) -> list[MqttBroker]:
        return []

    @pytest.fixture
    def make_broker(self, server: MosquittoServer, made: list[MqttBroker]) -> MakeBroker:
        def make() -> MqttBroker:
            made.append(MqttBroker(server.url, max_packet_size=LIMIT, **self.OPTIONS))
            return made[-1]

        return make

    @pytest.fixture
    def restart(self, server: MosquittoServer, made: list[MqttBroker]) -> Restart:
        async def restart() -> None:
            await server.restart()
            # Mosquitto 2.0 forgets shared subscriptions over a restart, until their members subscribe again.
            await until(lambda: all(broker.engine.available for broker in made if broker.connected), 20)

        return restart


class TestMqtt5(Contract):
    pass


class TestMqttQoS2(Contract):
    OPTIONS: ClassVar[dict[str, Any]] = {"qos": 2}


class TestMqttQoS0(Contract):
    OPTIONS: ClassVar[dict[str, Any]] = {"qos": 0}


class TestMqtt311(Contract):
    OPTIONS: ClassVar[dict[str, Any]] = {"protocol": "3.1.1"}

    @pytest.fixture
    def server(self, patient_server: MosquittoServer) -> MosquittoServer:
        return patient_server
