"""`headwater groups`."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from headwater import Broker, Outgoing

from .conftest import Here, Shell


@pytest.fixture
def audit(shell: Shell) -> str:
    """A group that has handled 2 of the 5 messages of orders, all in one partition."""

    async def consume() -> None:
        async with Broker(shell.url) as broker:
            for _ in range(2):
                assert await broker.get("orders", group="audit", timeout=10) is not None

    shell.publish(*(Outgoing(number, "orders", partition=0) for number in range(5)))
    asyncio.run(consume())
    return "audit"


def test_groups_are_listed_with_their_topics(shell: Shell, here: Here, audit: str) -> None:
    assert here("groups", "list", shell.url).rows == [["audit", "0", "orders"]]
    assert here("groups", "list", shell.url, "--json").json == [{"name": "audit", "topics": ["orders"], "members": []}]
    assert here("groups", "show", shell.url, audit).err == "no live members\n"


def test_lag_counts_what_is_still_to_do(shell: Shell, here: Here, audit: str) -> None:
    told = here("groups", "lag", shell.url, audit)
    assert told.rows[0] == ["orders", "0", "2", "5", "3"]
    assert told.err == "total lag 3\n"
    rows = here("groups", "lag", shell.url, audit, "orders", "--json").json
    assert rows[0] == {"topic": "orders", "partition": 0, "committed": 2, "latest": 5, "lag": 3}


def test_reset_moves_a_group_and_a_dry_run_only_says_where(shell: Shell, here: Here, audit: str) -> None:
    def reset(*options: object) -> int:
        rows = here("groups", "reset", shell.url, audit, "orders", *options, "--json").json
        return next(row["offset"] for row in rows if row["partition"] == 0)

    def lag() -> int:
        return sum(row["lag"] for row in here("groups", "lag", shell.url, audit, "--json").json)

    assert reset("--to", "earliest", "--dry-run") == 0
    assert lag() == 3
    assert reset("--shift", -1, "--yes") == 1
    assert lag() == 4
    assert reset("--offset", "0:4", "--yes") == 4
    assert reset("--to", "latest", "--yes") == 5
    assert reset("--to", "2020-01-01", "--yes") == 0
    assert lag() == 5


def test_what_destroys_wants_yes_where_nobody_can_be_asked(shell: Shell, here: Here, audit: str) -> None:
    assert "add --yes" in here("groups", "reset", shell.url, audit, "orders", "--to", "earliest", code=2).err
    assert "add --yes" in here("groups", "delete", shell.url, audit, code=2).err
    assert here("groups", "delete", shell.url, audit, "--yes").err == "deleted group audit\n"
    assert here("groups", "list", shell.url, "--json").json == []


def test_errors_say_what_to_do_next(shell: Shell, here: Here, audit: str) -> None:
    for command in ("show", "lag", "delete"):
        told = here("groups", command, shell.url, "adit", code=1)
        assert told.err == "error: there is no group 'adit': did you mean 'audit'?\n"
    assert "did you mean 'orders'" in here("groups", "lag", shell.url, audit, "order", code=1).err
    assert "give one of --to, --shift" in here("groups", "reset", shell.url, audit, "orders", code=2).err


def test_a_group_at_work_cannot_be_moved(shell: Shell, here: Here) -> None:
    running = shell.start("run", "shop:app")
    running.until("is ready")
    (group,) = here("groups", "show", shell.url, "shop", "--json").json
    assert len(group["members"]) == 1
    assert "orders[0]" in here("groups", "show", shell.url, "shop").out
    refused = here("groups", "reset", shell.url, "shop", "orders", "--to", "earliest", "--yes", code=1)
    assert refused.err.startswith("error: ")


def test_lag_is_watched_a_line_each_time_until_nobody_wants_to_know(shell: Shell) -> None:
    shell.publish(*(Outgoing(n, "orders", key="k") for n in range(10)))
    shell("copy", shell.url, "orders", f"local://{shell.path}/there", "--group", "audit", "--limit", 4)
    watching = shell.start("groups", "lag", shell.url, "audit", "--watch", "--every", 0.1)
    watching.until(r"TIME +LAG +PUBLISHED/s +HANDLED/s +LEFT")
    watching.until(r"\d\d:\d\d:\d\d +6 +- +- +-$")
    watching.until(r"\d\d:\d\d:\d\d +6 +0\.0 +0\.0 +-$")
    shell("copy", shell.url, "orders", f"local://{shell.path}/there", "--group", "audit")
    watching.until(r"\d\d:\d\d:\d\d +0 +0\.0 +[1-9]\d*\.\d +0s$")
    watching.signal(signal.SIGINT)
    assert watching.wait() == 130
    as_json = shell.start("groups", "lag", shell.url, "audit", "--watch", "--json")
    assert json.loads(as_json.until("{").string)["total"] == 0
