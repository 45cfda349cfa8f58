"""`headwater cluster`: the servers behind a broker, and whether they are well."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from ..admin import ClusterInfo, Health, NodeInfo
from ..broker import Broker
from .output import Columns, note, plain, show, show_details, show_json, to_json, write
from .parameters import AsJson, Target
from .target import ask

_NODES: Columns[NodeInfo] = {
    "node": lambda node: node.id,
    "address": lambda node: node.address,
    "controller": lambda node: node.controller,
}


def cluster(
    target: Target,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on looking, a line for each change.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """The servers behind a broker and their health; exits 1 if something is wrong."""
    if watch:
        ask(target, lambda broker: _watch(broker, every, as_json))
        return

    async def look(broker: Broker) -> tuple[ClusterInfo, Health]:
        return await broker.admin.cluster.describe(), await broker.admin.cluster.health()

    info, health = ask(target, look)
    if as_json:
        show_json([plain(info) | {"healthy": health.healthy} | plain(health)])
    else:
        show_details([("engine", info.engine), ("version", info.version), ("healthy", health.healthy)])
        show(info.nodes, _NODES, as_json=False)
        for problem in health.problems:
            note(f"problem: {problem}")
    raise typer.Exit(0 if health.healthy else 1)


async def _watch(broker: Broker, every: float, as_json: bool) -> None:
    async for health in broker.admin.watch_cluster(every=every):
        now = datetime.now().astimezone()
        if as_json:
            write(to_json({"time": now, "healthy": health.healthy} | plain(health)) + "\n")
        else:
            write(f"{now:%H:%M:%S}  {'healthy' if health.healthy else '; '.join(health.problems)}\n")
