"""`headwater cluster`: the servers behind a broker, and whether they are well."""

from __future__ import annotations

import typer

from ..admin import ClusterInfo, Health, NodeInfo
from ..broker import Broker
from .output import Columns, note, plain, show, show_details, show_json
from .parameters import AsJson, Target
from .target import ask

_NODES: Columns[NodeInfo] = {
    "node": lambda node: node.id,
    "address": lambda node: node.address,
    "controller": lambda node: node.controller,
}


def cluster(target: Target, as_json: AsJson = False) -> None:
    """The servers behind a broker and their health; exits 1 if something is wrong."""

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
