"""The clients of engines: imported when one is used, and their extra named where they are missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

CLIENTS = {  # by URL: the module that is missing, the extra that brings it
    "kafka://localhost:1": ("confluent_kafka", "kafka"),
    "nats://localhost:1": ("nats", "nats"),
    "fluvio://localhost:1": ("google_crc32c", "fluvio"),
    "amqp://localhost:1": ("aiormq", "rabbit"),
    "redis://localhost:1": ("hiredis", "redis"),
    "mqtt://localhost:1": ("paho", "mqtt"),
}

IMPORTS_NONE = f"""
import sys, headwater
from headwater import App, Broker, Fluvio, FluvioBroker, Kafka, KafkaBroker
from headwater import Mqtt, MqttBroker, Nats, NatsBroker, Rabbit, RabbitBroker, Redis
for url in {list(CLIENTS)!r}:
    App("shop", broker=Broker(url))
print([name for name in {[name for name, _ in CLIENTS.values()]!r} if name in sys.modules])
"""

MISSING = """
import asyncio, sys
sys.modules[{module!r}] = None  # as if it were not installed
from headwater import Broker, MissingExtraError
try:
    asyncio.run(Broker({url!r}).connect())
except MissingExtraError as error:
    print(error)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_no_client_is_imported_before_an_engine_connects() -> None:
    assert run(IMPORTS_NONE) == "[]"


@pytest.mark.parametrize("url", CLIENTS)
def test_a_missing_client_names_its_extra(url: str) -> None:
    module, extra = CLIENTS[url]
    assert f"pip install 'headwater[{extra}]'" in run(MISSING.format(module=module, url=url))
