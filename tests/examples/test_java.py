"""The example with a Java server, as its users run it: under uvicorn, with workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from java import compile_pricing
from servers.process import free_ports

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples/java"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"text": {"format": "%(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "text"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
}


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.server
def test_a_fastapi_service_starts_a_java_server_waits_for_it_and_stops_it_gracefully(tmp_path: Path) -> None:
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "uvicorn", "main:api", "--port", str(port), "--workers", "2"]
    (tmp_path / "log.json").write_text(json.dumps(LOGGING))
    command += ["--log-config", str(tmp_path / "log.json")]
    env = os.environ | {"PRICING_CLASSES": compile_pricing(tmp_path)}
    with subprocess.Popen(command, cwd=EXAMPLE, env=env, stderr=subprocess.PIPE, text=True) as server:
        end = time.monotonic() + 15
        while True:
            try:
                assert get(f"http://127.0.0.1:{port}/price/tea") == "4.5"
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.05)
        server.terminate()
        said = server.communicate(timeout=10)[1]
    assert said.count("headwater.service.pricing INFO Server - Started, port ") == 1
    assert said.count("headwater.service.pricing INFO Server - Stopped") == 1
    assert said.index("Server - Started") < said.index("Application startup complete")
