"""The shops in web frameworks: by themselves, as their last lines run them, and under a server."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from integrations.web import ask, free_port, get, serving

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
SHOPS = {
    "fastapi_shop": ["{'topic': 'orders'}", "{'1': 'pear'} 0.75"],
    "starlette_shop": ["{'topic': 'orders'}", "[1] 0.75"],
    "litestar_shop": ["{'topic': 'orders'}", "[1] 0.75"],
}
WELL = "{'live': True, 'ready': True, 'reasons': []}"


@pytest.mark.parametrize("shop", SHOPS)
def test_a_shop_shows_itself_without_a_server_and_without_a_broker(shop: str, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{shop}.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == [*SHOPS[shop], WELL], done.stderr


@pytest.mark.server
@pytest.mark.parametrize("shop", SHOPS)
def test_a_shop_runs_under_uvicorn_on_the_broker_that_a_variable_names(shop: str, tmp_path: Path) -> None:
    port = free_port()
    command = ["-m", "uvicorn", f"{shop}:api", "--port", str(port)]
    with serving(command, tmp_path, port, PYTHONPATH=str(EXAMPLES), SHOP_BROKER="local://./data") as server:
        assert get(port, "/prices/pear") == "0.75"
        assert ask(port, "POST", "/orders", {"id": 1, "item": "pear"}) == (202, '{"topic":"orders"}')
        handled = 'headwater_messages_received_total{app="shop",group="shop",subscription="orders"} 1.0'
        deadline = time.monotonic() + 10
        while handled not in get(port, "/ops/metrics"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert "Traceback" not in server.read_text()


# --- logs -------------------------------------------------------------------------------------------------

OURS = "import headwater; headwater.configure_logging()"
HOST = "import logging; logging.basicConfig(level='INFO', format='%(name)s: %(message)s')"


@pytest.mark.server
@pytest.mark.parametrize(
    ("command", "first"),
    [("uvicorn", OURS), ("uvicorn", HOST), ("headwater run", "")],
    ids=["uvicorn, with one call", "uvicorn, with logging of the host", "headwater run"],
)
def test_the_same_application_logs_under_uvicorn_and_under_headwater_run(
    command: str, first: str, tmp_path: Path
) -> None:
    (tmp_path / "main.py").write_text(f"{first}\nfrom fastapi_shop import api\n")
    port = free_port()
    arguments = ["-m", *command.split(), "main:api", "--port", str(port)]
    with serving(arguments, tmp_path, port, PYTHONPATH=str(EXAMPLES)) as server:
        get(port, "/prices/pear")
        server.stop()
    log = server.read_text()
    for line in ("headwater.shop: shop is ready: ", "headwater.shop: shop is stopped", "Application startup complete."):
        assert log.count(line) == 1, log
