"""`headwater topics` and `headwater cluster`; and what looks after a broker, on real servers."""

from __future__ import annotations

import os

import pytest

from headwater import Outgoing

from .conftest import Here, Shell


def test_a_topic_is_made_shown_changed_and_deleted(shell: Shell, here: Here) -> None:
    here("topics", "create", shell.url, "orders", "--partitions", 2, "--retention", "7d", "--retention-bytes", "1GiB")
    assert here("topics", "list", shell.url).rows[0][:3] == ["orders", "2", "0"]
    assert "7d, 1.0 GiB" in here("topics", "show", shell.url, "orders").out
    here("topics", "alter", shell.url, "orders", "--retention", "12h")
    (info,) = here("topics", "show", shell.url, "orders", "--json").json
    assert (info["retention"], info["retention_bytes"], info["partitions"]) == (43200.0, 1 << 30, 2)
    here("topics", "alter", shell.url, "orders", "--retention-bytes", "forever", "--partitions", 4)
    (info,) = here("topics", "list", shell.url, "--json").json
    assert (info["retention"], info["retention_bytes"], info["partitions"]) == (43200.0, None, 4)
    assert here("topics", "delete", shell.url, "orders", "--yes").err == "deleted orders\n"
    assert here("topics", "list", shell.url).err == "no topics yet\n"
    assert here("topics", "list", shell.url, "--json").json == []


def test_the_fields_are_those_of_the_admin_results(shell: Shell, here: Here) -> None:
    shell.publish(Outgoing(1, "orders", partition=1), Outgoing(2, "orders.dead"))
    (info,) = here("topics", "list", shell.url, "--json").json
    assert list(info) == [
        "name", "partitions", "messages", "size", "retention", "retention_bytes", "internal",
        "replicas", "compacted", "config",
    ]  # fmt: skip
    names = [info["name"] for info in here("topics", "list", shell.url, "--internal", "--json").json]
    assert names == ["orders", "orders.dead"]
    (shown,) = here("topics", "show", shell.url, "orders", "--json").json
    place = {"topic": "orders", "partition": 1, "earliest": 0, "latest": 1}
    assert shown["offsets"][1] == place | {"count": None, "leader": None, "replicas": []}


def test_purge_takes_all_or_what_is_below_an_offset(shell: Shell, here: Here) -> None:
    shell.publish(*(Outgoing(number, "orders", partition=0) for number in range(5)))
    here("topics", "purge", shell.url, "orders", "--before", "2020-01-01", "--yes")
    assert here("topics", "show", shell.url, "orders", "--json").json[0]["offsets"][0]["earliest"] == 0
    here("topics", "purge", shell.url, "orders", "--offset", "0:3", "--yes")
    assert here("topics", "show", shell.url, "orders", "--json").json[0]["offsets"][0]["earliest"] == 3
    assert "0 messages left" in here("topics", "purge", shell.url, "orders", "--yes").err


def test_what_destroys_wants_yes_where_nobody_can_be_asked(shell: Shell, here: Here) -> None:
    shell.publish(Outgoing(1, "orders"))
    for command in (("delete",), ("purge",)):
        refused = here("topics", *command, shell.url, "orders", code=2)
        assert refused.err.startswith(f"error: this would {command[0]} ")
        assert "add --yes" in refused.err
    assert here("topics", "list", shell.url, "--json").json[0]["messages"] == 1


def test_errors_say_what_to_do_next(shell: Shell, here: Here) -> None:
    shell.publish(Outgoing(1, "orders"))
    assert here("topics", "show", shell.url, "ordrs", code=1).err == (
        "error: there is no topic 'ordrs': did you mean 'orders'?\n"
    )
    assert "topics alter" in here("topics", "create", shell.url, "orders", code=1).err
    assert "only grow" in here("topics", "alter", shell.url, "orders", "--partitions", 1, code=1).err
    assert "say what to change" in here("topics", "alter", shell.url, "orders", code=2).err
    assert "is no duration" in here("topics", "create", shell.url, "new", "--retention", "7 moons", code=2).err
    assert "is no size" in here("topics", "create", shell.url, "new", "--retention-bytes", "1 ton", code=2).err
    assert "is no place" in here("topics", "purge", shell.url, "orders", "--offset", "3", code=2).err


def test_cluster_tells_the_engine_and_its_health(shell: Shell, here: Here) -> None:
    shell.publish(Outgoing(1, "orders"))
    assert "healthy  yes" in here("cluster", shell.url).out
    (told,) = here("cluster", shell.url, "--json").json
    assert told["engine"] == "local"
    assert told["healthy"] is True
    assert told["problems"] == []
    assert told["nodes"][0]["id"] == "local"


@pytest.mark.server
@pytest.mark.parametrize("engine", ["kafka", "nats", "redis"])
def test_a_server_is_looked_after_as_the_embedded_log_is(
    shell: Shell, here: Here, engine: str, request: pytest.FixtureRequest
) -> None:
    url, topic = request.getfixturevalue(f"{engine}_server").url, f"t-{os.urandom(6).hex()}"
    group = f"g-{topic}"
    here("topics", "create", url, topic, "--retention", "7d")
    for value in (1, 2, 3):
        here("publish", url, topic, value, "--key", "k")
    assert here("tail", url, topic, "--from", "earliest", "--no-follow", "--format", "{value}").out == "1\n2\n3\n"
    assert sum(one["count"] or one["latest"] for one in here("partitions", "list", url, topic, "--json").json) == 3
    here("copy", url, topic, shell.url, "--group", group, "--limit", 1)
    assert group in {one["name"] for one in here("groups", "list", url, "--json").json}
    assert here("groups", "lag", url, group).err == "total lag 2\n"
    here("groups", "reset", url, group, topic, "--to", "earliest", "--yes")
    assert here("groups", "lag", url, group).err == "total lag 3\n"
    here("groups", "delete", url, group, "--yes")
    assert f"no group '{group}'" in here("groups", "show", url, group, code=1).err
    here("topics", "alter", url, topic, "--retention", "12h")
    assert here("topics", "show", url, topic, "--json").json[0]["retention"] == 43200.0
    assert "0 messages left" in here("topics", "purge", url, topic, "--yes").err
    here("topics", "delete", url, topic, "--yes")
    assert topic not in {one["name"] for one in here("topics", "list", url, "--json").json}
    assert "healthy  yes" in here("cluster", url).out
