"""Real Java servers as services: a small one, and Apache Kafka."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from pathlib import Path

import pytest

from headwater.services import Log, Service, State, Stop, Tcp
from java import compile_pricing
from servers.fixtures import require
from servers.kafka import READY, KafkaServer

pytestmark = pytest.mark.server


async def test_a_java_server_is_started_awaited_by_its_log_and_stopped_gracefully(tmp_path: Path) -> None:
    service = Service(
        "pricing",
        ["java", "-cp", compile_pricing(tmp_path), "Pricing"],
        ready=Log(r"Server - Started, port (?P<port>\d+)"),
        ready_timeout=15,
        stop=Stop("SIGTERM", 10),
    )
    async with service:
        url = f"http://127.0.0.1:{service.found['port']}/price/ab"
        with await asyncio.to_thread(urllib.request.urlopen, url, timeout=5) as answer:
            assert answer.read() == b"3.0"
        begun = time.monotonic()
    assert time.monotonic() - begun < 10
    assert service.lines[-1] == "INFO Server - Stopped"  # its shutdown hook has run
    assert service.exit_code == 143  # as Java ends after SIGTERM


async def test_apache_kafka_is_a_service() -> None:
    require("kafka")
    server = KafkaServer()
    command = server.configure().command
    ready = Log(READY) & Tcp(server.port)
    service = Service("kafka", command, ready=ready, ready_timeout=60, stop=Stop("SIGTERM", 30))
    try:
        async with service:
            assert service.state is State.READY
    finally:
        server.close()
    assert service.exit_code == 143
    assert "shut" in service.lines[-1], service.lines[-5:]
