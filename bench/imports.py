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


async def importing(name: str) -> float:
    return max(1e-4, started(f"import {name}") - started("pass"))


async def measure() -> str:
    us, them = await interleaved(lambda: importing("headwater"), lambda: importing("faststream"), rounds=9)
    row = Row("import", "import faststream", f"{us * 1e3:.0f} ms", f"{them * 1e3:.0f} ms", them / us, 5, 10)
    return render("Import", [row])


def main() -> str:
    return asyncio.run(measure())
