"""`make demo`: a year of departures through the embedded log, with progress, a summary and a rate.

Stop it with Ctrl-C, or kill it: started again it goes on where it was and ends with the same figures.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that `flights` is a package wherever this runs

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from flights.data import read_lines
from flights.flights import app, read_figures
from headwater import Broker, Outgoing, configure_logging

BURST = 1000
CARRIER = 9  # the field of a line that says who flies

console = Console()


async def load(broker: Broker, limit: int | None) -> int:
    """Publish the lines that are not in the log yet; how many there are in all.

    A burst is accepted as a whole or not at all, so the number of messages says where to go on.
    """
    lines = islice(read_lines(), limit)
    done = await count(broker, "departures")
    for _ in islice(lines, done):
        pass
    while burst := [Outgoing(line, "departures", key=line.split(",")[CARRIER]) for line in islice(lines, BURST)]:
        await broker.publish_many(burst)
        done += len(burst)
    return done


async def count(broker: Broker, topic: str) -> int:
    return sum(info.latest for info in await broker.admin.partitions.list(topic))


async def handled(broker: Broker) -> tuple[int, int]:
    """Departures that were parsed, and messages that wait anywhere."""
    parsing = await broker.admin.groups.lag("flights", "departures")
    ledger, watch = [await broker.admin.groups.lag(group, "flown") for group in ("ledger", "watch")]
    parsed = sum(partition.latest - partition.lag for partition in parsing.partitions)
    return parsed, parsing.total + ledger.total + watch.total


async def follow(broker: Broker, loading: asyncio.Task[int], total: int) -> None:
    """Show how far everything is, until nothing waits any more."""
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {name: progress.add_task(name, total=total) for name in ("loaded", "parsed")}
        while True:
            loaded = await count(broker, "departures")
            parsed, waiting = await handled(broker)
            progress.update(bars["loaded"], completed=loaded)
            progress.update(bars["parsed"], completed=parsed)
            if loading.done() and not waiting and parsed == loading.result():
                return
            await asyncio.sleep(0.2)


async def summarise(broker: Broker, begun: int, seconds: float) -> None:
    figures = await read_figures(broker)
    table = Table("airline", "flights", "mean delay", "worst delay", title="Departures from New York, 2013")
    for carrier, known in sorted(figures.items(), key=lambda item: -item[1].flights):
        table.add_row(
            f"{known.airline} ({carrier})", f"{known.flights:,}", f"{known.mean_delay:.1f} min", f"{known.worst} min"
        )
    console.print(table)
    loaded, cancelled, late = [await count(broker, topic) for topic in ("departures", "cancelled", "long-delays")]
    flown = sum(known.flights for known in figures.values())
    letters = await broker.admin.dead.list("departures")
    console.print(
        f"{loaded:,} lines: {flown:,} flights, {cancelled:,} cancelled, {len(letters)} malformed (the header)"
    )
    console.print(f"{late:,} departures were more than three hours late")
    console.print(
        f"{(loaded - begun) / seconds:,.0f} departures a second, each through three handlers on a durable log"
    )


async def demo(folder: Path, limit: int | None) -> None:
    total = sum(1 for _ in islice(read_lines(), limit))
    app.set_broker(f"local://{folder}")
    started = time.perf_counter()
    async with app:
        begun, _ = await handled(app.broker)
        if begun:
            console.print(f"going on after {begun:,} of {total:,} lines")
        loading = asyncio.create_task(load(app.broker, limit))
        await follow(app.broker, loading, total)
        await summarise(app.broker, begun, time.perf_counter() - started)
    (folder / "complete").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/flights"), help="the directory of the log")
    parser.add_argument("--limit", type=int, help="stop after so many lines")
    options = parser.parse_args()
    if (options.data / "complete").exists():
        console.print(f"{options.data} holds a run that is complete: starting afresh")
        shutil.rmtree(options.data)
    configure_logging("CRITICAL")  # the header is a dead letter on purpose
    try:
        asyncio.run(demo(options.data, options.limit))
    except KeyboardInterrupt:
        console.print("stopped; run it again to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
