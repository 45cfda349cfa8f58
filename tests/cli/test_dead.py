"""`headwater dead`."""

from __future__ import annotations

import pytest

from headwater import Outgoing

from .conftest import Here, Shell


@pytest.fixture
def letters(shell: Shell) -> list[Outgoing]:
    """Two letters that groups gave up, as the worker writes them."""
    about = {"hw-reason": "attempts exhausted", "hw-topic": "orders", "hw-partition": "0", "hw-attempts": "3"}
    letters = [
        Outgoing(
            {"id": number},
            "orders.dead",
            key="k",
            partition=0,
            headers={**about, "hw-group": group, "hw-offset": str(number), "hw-exception": "ValueError: negative"},
        )
        for number, group in enumerate(["shop", "audit"])
    ]
    shell.publish(Outgoing(0, "orders"), *letters)
    return letters


@pytest.mark.usefixtures("letters")
def test_letters_are_listed_and_shown(shell: Shell, here: Here) -> None:
    assert here("dead", "list", shell.url, "orders").rows[0][0] == "0:0"
    assert [row[2] for row in here("dead", "list", shell.url, "orders", "--group", "audit").rows] == ["audit"]
    (first,) = here("dead", "list", shell.url, "orders", "--limit", 1, "--json").json
    assert (first["group"], first["attempts"], first["body"]) == ("shop", 3, '{"id":0}')
    shown = here("dead", "show", shell.url, "orders", "--offset", "0:1").out
    assert "from       orders[0]@1" in shown
    assert "exception  ValueError: negative" in shown
    assert here("dead", "list", shell.url, "orders.dead").rows[0][0] == "0:0"


@pytest.mark.usefixtures("letters")
def test_a_replayed_letter_leaves_the_list_and_comes_back_to_its_topic(shell: Shell, here: Here) -> None:
    assert here("dead", "replay", shell.url, "orders", "--group", "shop").out == "replayed 1 dead letter of orders\n"
    assert [letter["group"] for letter in here("dead", "list", shell.url, "orders", "--json").json] == ["audit"]
    tail = ("tail", shell.url, "orders", "--from", "earliest", "--no-follow", "--format")
    assert '{"id": 0} shop' in here(*tail, "{value} {headers[hw-only-group]}").out
    assert here("dead", "replay", shell.url, "orders", "--json").json == [{"topic": "orders", "replayed": 1}]
    assert here("dead", "list", shell.url, "orders").err == "no dead letters of orders\n"


@pytest.mark.usefixtures("letters")
def test_purge_wants_yes_where_nobody_can_be_asked(shell: Shell, here: Here) -> None:
    assert "add --yes" in here("dead", "purge", shell.url, "orders", code=2).err
    here("dead", "purge", shell.url, "orders", "--offset", "0:0", "--yes")
    assert [letter["offset"] for letter in here("dead", "list", shell.url, "orders", "--json").json] == [1]
    assert "no dead letter at 0:0" in here("dead", "replay", shell.url, "orders", "--offset", "0:0", code=1).err


@pytest.mark.usefixtures("letters")
def test_a_mistyped_topic_is_an_error_and_not_an_empty_list(shell: Shell, here: Here) -> None:
    assert "did you mean 'orders'" in here("dead", "list", shell.url, "order", code=1).err
    here("topics", "create", shell.url, "quiet")
    assert here("dead", "list", shell.url, "quiet").err == "no dead letters of quiet\n"


def test_what_a_handler_gave_up_is_replayed_once_it_is_mended(shell: Shell) -> None:
    broken = 'raise ValueError("not today")'
    app = (
        'from headwater import App\napp = App("fix", broker="local://./data?durability=process")\n'
        '@app.subscriber("work", start="earliest")\nasync def work(number: int):\n    '
    )
    shell.write("fix.py", app + broken + "\n")
    shell.publish(Outgoing(7, "work"))
    running = shell.start("run", "fix:app")
    running.until("kept as a dead letter")
    running.end()
    shell.write("fix.py", app + 'print("handled", number, flush=True)\n')
    running = shell.start("run", "fix:app")
    running.until("is ready")
    assert shell("dead", "replay", "fix:app", "work", "--group", "fix").stdout == "replayed 1 dead letter of work\n"
    running.until("handled 7")
