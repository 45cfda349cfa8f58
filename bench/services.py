"""Child services: what they cost to start, to listen to, and to have."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import statistics
import sys
import time
from pathlib import Path

from headwater import Log, Service
from headwater.services import Services

from .report import Row, interleaved, rate, render

START_BAR = 0.050  # seconds that three services may take beyond one
LINES_BAR, DELAY_BAR = 100_000, 0.010  # lines a second; seconds, the 99th percentile
IDLE = 5.0  # seconds
IDLE_BAR = 5  # wake-ups meanwhile: one a second
FLOOD = "import sys\nline = '2026-01-01 10:00:00 INFO request 4711 handled in 13 ms by worker 7\\n' * 500\n"
FLOOD += "while True: sys.stdout.write(line)"


def service(name: str) -> Service:
    return Service(name, ["sh", "-c", "echo ready; exec sleep 1000"], ready=Log("ready"))


async def start(count: int) -> float:
    services = Services(*(service(f"s{number}") for number in range(count)))
    begun = time.perf_counter()
    async with services:
        return time.perf_counter() - begun


async def start_row() -> Row:
    three, one = await interleaved(lambda: start(3), lambda: start(1), rounds=15)
    beyond = max(three - one, 1e-4)
    ours, theirs = f"{three * 1e3:.1f} ms", f"{one * 1e3:.1f} ms"
    return Row(
        f"start of 3, {beyond * 1e3:.1f} ms beyond", "1, and 50 ms beyond", ours, theirs, START_BAR / beyond, bar=1
    )


class Counting(logging.NullHandler):
    """Throws records away, and says how many."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def handle(self, record: logging.LogRecord) -> bool:
        self.count += 1
        return True


async def flood_rows() -> list[Row]:
    """A chatty service, while another task wants the loop every millisecond."""
    logger, records, delays = logging.getLogger("headwater.service.flood"), Counting(), []
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(records)
    async with Service("flood", [sys.executable, "-I", "-S", "-c", FLOOD]):
        await asyncio.sleep(0.2)
        records.count, begun = 0, time.perf_counter()
        while (now := time.perf_counter()) < begun + 3:
            await asyncio.sleep(0.001)
            delays.append(time.perf_counter() - now - 0.001)
        lines = records.count / (time.perf_counter() - begun)
    delay = statistics.quantiles(delays, n=100)[98]
    return [
        Row("lines of a flood", "a bar", rate(lines), rate(LINES_BAR), lines / LINES_BAR, bar=1),
        Row("loop delay meanwhile, p99", "a bar", f"{delay * 1e3:.1f} ms", "10.0 ms", DELAY_BAR / delay, bar=1),
    ]


def wake_ups(pids: list[int]) -> int:
    """How often these processes were given a processor so far."""
    status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", status))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def idle_row() -> Row:
    """How often five services that say nothing wake us or their guards."""
    services = Services(*(service(f"s{number}") for number in range(5)))
    async with services:
        ours = [os.getpid(), *(parent_of(one.pid) for one in services.services if one.pid is not None)]
        await asyncio.sleep(1)
        before = wake_ups(ours)
        await asyncio.sleep(IDLE)
        count = wake_ups(ours) - before - 1  # one is that of the measurement
    ratio = IDLE_BAR / max(count, 0.5)
    return Row(f"wake-ups for 5 idle services in {IDLE:g} s", "a bar", str(count), str(IDLE_BAR), ratio, bar=1)


async def measure() -> str:
    return render("Services", [await start_row(), *await flood_rows(), await idle_row()])


def main() -> str:
    return asyncio.run(measure())
