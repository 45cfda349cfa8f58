"""The examples that run on any engine, as their users run them: as a process, on a real server, by a variable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from servers.kafka import KafkaServer
from servers.nats import NatsServer

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SERVERS = ["kafka_server", "nats_server", "rabbit_server", "redis_server", "mosquitto_server", "fluvio_server"]


def run(example: str, folder: Path, **variables: str) -> str:
    """What the example printed; it has to end by itself, and well."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        env={**os.environ, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sold(output: str) -> None:
    """One order is refused, the others are invoiced, those that failed at first among them."""
    lines = output.splitlines()
    assert "order 13 was refused: an order of 0" in lines
    assert lines[-1] == "19 invoices, 23.50 due"


@pytest.mark.parametrize("url", ["memory://", "local://./data"])
def test_the_shop_runs_without_a_server(url: str, tmp_path: Path) -> None:
    sold(run("shop.py", tmp_path, SHOP_BROKER=url))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.server
def test_the_shop_runs_on_every_engine_by_a_variable(
    server: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sold(run("shop.py", tmp_path, SHOP_BROKER=request.getfixturevalue(server).url))


@pytest.mark.parametrize("server", ["nats_server", "redis_server"])
@pytest.mark.server
def test_the_engine_is_chosen_while_starting(server: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = request.getfixturevalue(server).url
    assert "order 1 on " in run("late_broker.py", tmp_path, SHOP_BROKER=url)


@pytest.mark.server
def test_the_bridge_takes_messages_from_kafka_to_nats(
    kafka_server: KafkaServer, nats_server: NatsServer, tmp_path: Path
) -> None:
    lines = run("bridge.py", tmp_path, BRIDGE_FROM=kafka_server.url, BRIDGE_TO=nats_server.url).splitlines()
    assert {line.split(":")[0] for line in lines} == {f"sensor {n}" for n in range(10)}
