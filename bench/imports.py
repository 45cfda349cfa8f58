"""Importing the package, beside importing the peer: whole processes, less one that imports nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

from .report import Row, interleaved, render


def started(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


async def cost(code: str) -> float:
    return max(1e-4, started(code) - started("pass"))


async def measure() -> str:
    rows = []
    for ours, theirs, bar, aim in (
        ("import headwater", "import faststream", 5, 10),
        ("from headwater import App", "from faststream import FastStream", None, None),
    ):
        us, them = await interleaved(lambda c=ours: cost(c), lambda c=theirs: cost(c), rounds=9)  # type: ignore[misc]
        rows.append(Row(ours, theirs, f"{us * 1e3:.1f} ms", f"{them * 1e3:.0f} ms", them / us, bar, aim))
    return render("Import", rows)


def main() -> str:
    return asyncio.run(measure())
