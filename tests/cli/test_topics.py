"""`headwater topics` and `headwater cluster`."""

from __future__ import annotations

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
