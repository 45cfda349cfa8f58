"""`headwater partitions`, `topics ensure` and `cluster --watch`."""

from __future__ import annotations

import json

from headwater import Outgoing

from .conftest import Here, Shell

APP = """
from datetime import timedelta
from headwater import App, Topic

app = App(
    "shop",
    broker="local://./data?durability=process",
    topics=[Topic("orders", partitions=12, retention=timedelta(days=7)), "invoices"],
)
"""


def test_partitions_are_listed_with_their_ends_and_added(shell: Shell, here: Here) -> None:
    shell("topics", "create", shell.url, "orders", "--partitions", 2)
    shell.publish(*(Outgoing(n, "orders", partition=1) for n in range(3)))
    assert here("partitions", "list", shell.url, "orders").rows == [["0", "0", "0", "0"], ["1", "0", "3", "3"]]
    assert "--yes" in here("partitions", "add", shell.url, "orders", 3, code=2).err
    added = here("partitions", "add", shell.url, "orders", 3, "--yes", "--json").json
    assert [info["latest"] for info in added] == [0, 3, 0]
    assert "no topic 'order': did you mean 'orders'" in here("partitions", "list", shell.url, "order", code=1).err


def test_the_topics_of_an_app_are_ensured_and_never_deleted_unasked(shell: Shell, here: Here) -> None:
    shell.write("owner.py", APP)
    shell("topics", "create", shell.url, "orders", "--partitions", 8)
    shell("topics", "create", shell.url, "others")
    shell.publish(Outgoing(1, "others"))
    shown = here("topics", "ensure", "owner:app", "--dry-run").rows
    assert [row[:2] for row in shown] == [["orders", "grow"], ["orders", "alter"], ["invoices", "create"]]
    assert shown[0][2] == "partitions 8 → 12"
    assert len(here("topics", "list", shell.url, "--json").json) == 2
    assert len(here("topics", "ensure", "owner:app", "--json").json) == 3
    assert here("topics", "ensure", "owner:app").err == "nothing differs\n"
    refused = here("topics", "ensure", "owner:app", "--delete", code=2).err
    assert "delete others and their 1 message" in refused
    here("topics", "ensure", "owner:app", "--delete", "--yes")
    assert [topic["name"] for topic in here("topics", "list", shell.url, "--json").json] == ["invoices", "orders"]
    assert "not a Headwater App" in here("topics", "ensure", "owner:Topic", code=2).err


def test_the_health_of_a_cluster_is_watched(shell: Shell) -> None:
    shell("topics", "create", shell.url, "orders")
    watching = shell.start("cluster", shell.url, "--watch")
    watching.until(r"\d\d:\d\d:\d\d  healthy$")
    as_json = shell.start("cluster", shell.url, "--watch", "--json")
    assert json.loads(as_json.until("{").string)["healthy"] is True
