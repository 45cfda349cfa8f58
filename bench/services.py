"""Child services: what they cost to start, to listen to, and to have."""

from __future__ import annotations

import asyncio
import logging
import os
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
IDLE_BAR = 0.001  # of a processor: one tick of the kernel's clock in ten seconds
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


def processor_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def idle_row() -> Row:
    """What five services that say nothing cost us and their guards."""
    services = Services(*(service(f"s{number}") for number in range(5)))
    async with services:
        guards = [parent_of(one.pid) for one in services.services if one.pid is not None]
        await asyncio.sleep(1)
        ours, theirs = time.process_time(), processor_seconds(guards)
        await asyncio.sleep(IDLE)
        used = (time.process_time() - ours + processor_seconds(guards) - theirs) / IDLE
    return Row("5 idle services", "a bar", f"{used:.4%} CPU", f"{IDLE_BAR:.1%} CPU", IDLE_BAR / max(used, 1e-6), bar=1)


async def measure() -> str:
    return render("Services", [await start_row(), *await flood_rows(), await idle_row()])


def main() -> str:
    return asyncio.run(measure())
