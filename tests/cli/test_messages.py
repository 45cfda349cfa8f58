"""`headwater publish`, `request` and `tail`."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from headwater import Outgoing

from .conftest import PATIENCE, Here, Shell


def test_what_parses_as_json_is_published_as_json_and_anything_else_as_text(shell: Shell, here: Here) -> None:
    for value in ('{"id": 1.0}', "12", '"quoted"', "plain words", "null"):
        here("publish", shell.url, "notes", value, "--partition", 0)
    lines = here("tail", shell.url, "notes", "--from", "earliest", "--no-follow", "--json").out.splitlines()
    told = [json.loads(line) for line in lines]
    assert [message["value"] for message in told] == [{"id": 1.0}, 12, "quoted", "plain words", None]
    kinds = [message["headers"]["content-type"] for message in told]
    assert kinds == ["application/json"] * 3 + ["text/plain"] + ["application/json"]
    assert list(told[0]) == ["topic", "partition", "offset", "timestamp", "key", "headers", "value"]
    assert datetime.fromisoformat(told[0]["timestamp"]).tzinfo is not None


def test_publish_says_where_the_message_is(shell: Shell, here: Here) -> None:
    assert here("publish", shell.url, "notes", "1", "--partition", 3).out == "notes[3]@0\n"
    (receipt,) = here("publish", shell.url, "notes", "2", "--partition", 3, "--json").json
    assert (receipt["topic"], receipt["partition"], receipt["offset"]) == ("notes", 3, 1)


def test_publish_sets_key_and_repeated_headers(shell: Shell, here: Here) -> None:
    here("publish", shell.url, "notes", "1", "--key", "k", "--header", "a=1", "--header", "b=x=y")
    template = "{key} {headers[a]} {headers[b]} {headers[c]}."
    tail = here("tail", shell.url, "notes", "--from", "earliest", "--limit", 1, "--format", template)
    assert tail.out == "k 1 x=y .\n"
    assert "write NAME=VALUE" in here("publish", shell.url, "notes", "1", "--header", "a", code=2).err


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_publish_reads_lines_from_a_pipe(shell: Shell, dash: list[str]) -> None:
    done = shell("publish", shell.url, "notes", *dash, "--key", "k", stdin='{"id": 1}\n\nsome text\r\nlast')
    assert done.stdout == "published 3 messages to notes\n"
    tail = shell("tail", shell.url, "notes", "--from", "earliest", "--no-follow", "--format", "{value}")
    assert tail.stdout == '{"id": 1}\nsome text\nlast\n'


def test_publish_reads_lines_from_a_file(shell: Shell) -> None:
    shell.write("lines.txt", "".join(f"{number}\n" for number in range(1200)))
    with (shell.path / "lines.txt").open() as file:
        done = subprocess.run(
            shell.command("publish", shell.url, "notes", "--json"),
            stdin=file, capture_output=True, text=True, env=shell.environment, timeout=PATIENCE,
        )  # fmt: skip
    assert len(json.loads(done.stdout)) == 1200


def test_each_line_of_a_slow_pipe_is_published_at_once(shell: Shell) -> None:
    shell("topics", "create", shell.url, "notes")
    tail = shell.start("tail", shell.url, "notes", "--from", "earliest", "--format", "seen {value}")
    with subprocess.Popen(
        shell.command("publish", shell.url, "notes"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=shell.environment,
    ) as publish:  # fmt: skip
        assert publish.stdin is not None
        publish.stdin.write("first\n")
        publish.stdin.flush()
        tail.until("seen first")
        assert publish.poll() is None


def test_a_delayed_message_comes_later(shell: Shell) -> None:
    running = shell.start("run", "shop:app")  # whoever consumes moves what is due
    running.until("is ready")
    tail = shell.start("tail", "shop:app", "invoices", "--from", "earliest", "--limit", 1)
    assert shell("publish", "shop:app", "orders", '{"id": 1, "amount": 1}', "--delay", 0.5).stdout == (
        "orders, in 0.5 s\n"
    )
    tail.until("due")
    assert tail.wait() == 0


def test_request_prints_the_answer(shell: Shell) -> None:
    shell.write(
        "prices.py",
        """
from headwater import App
app = App("prices", broker="local://./data?durability=process")

@app.subscriber("prices")
async def price(sku: str) -> dict:
    if sku == "broken":
        raise ValueError("no price")
    return {"sku": sku, "price": 3}
""",
    )
    running = shell.start("run", "prices:app")
    running.until("is ready")
    assert shell("request", "prices:app", "prices", "apple").stdout == '{"sku": "apple", "price": 3}\n'
    (answer,) = shell.json("request", shell.url, "prices", "pear")
    assert answer["value"] == {"sku": "pear", "price": 3}
    assert shell("request", shell.url, "prices", "broken", code=1).stderr == "error: ValueError: no price\n"
    error = shell("request", shell.url, "silence", "1", "--timeout", 0.2, code=1).stderr
    assert error.startswith("error: no reply from 'silence' within 0.2 s")


def test_tail_follows_what_is_published(shell: Shell) -> None:
    shell("topics", "create", shell.url, "notes", "--partitions", 1)
    tail = shell.start("tail", shell.url, "notes", "--from", "earliest")
    shell.publish(Outgoing("one", "notes", key="k"))
    tail.until(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\S* notes\[0\]@0 k one$")
    shell.publish(Outgoing({"two": 2}, "notes"))
    tail.until(r'notes\[0\]@1 - \{"two": 2\}$')
    tail.signal(signal.SIGINT)
    assert tail.wait() == 130
    assert "Traceback" not in tail.text
    assert len(tail.seen) == 2


def test_tail_begins_at_an_offset_of_one_partition_or_at_a_time(shell: Shell, here: Here) -> None:
    shell.publish(*(Outgoing(number, "notes", partition=0) for number in range(5)))
    values = ("--no-follow", "--format", "{value}")
    assert here("tail", shell.url, "notes", "--from", 3, "--partition", 0, *values).out == "3\n4\n"
    error = here("tail", shell.url, "notes", "--from", 3, code=2).err
    assert "offset 3 is one of 8 partitions: add --partition N" in error
    begin = datetime.now(UTC) - timedelta(minutes=1)
    assert here("tail", shell.url, "notes", "--from", begin.isoformat(), *values).out == "0\n1\n2\n3\n4\n"
    later = (begin + timedelta(hours=1)).isoformat()
    assert here("tail", shell.url, "notes", "--from", later, *values).out == ""
    assert here("tail", shell.url, "notes", *values).out == ""
    assert "give earliest, latest, an offset, or a time" in here("tail", shell.url, "n", "--from", "x", code=2).err


def test_tail_without_following_ends_at_the_end_of_all_topics(shell: Shell, here: Here) -> None:
    shell.publish(*(Outgoing(n, topic) for n in range(600) for topic in ("orders.eu", "orders.us", "other")))
    tail = here("tail", shell.url, "orders.{region}", "--from", "earliest", "--no-follow", "--format", "{topic}")
    assert sorted(tail.out.split()) == ["orders.eu"] * 600 + ["orders.us"] * 600


def test_an_unknown_topic_names_those_of_a_similar_name(shell: Shell, here: Here) -> None:
    shell.publish(Outgoing(1, "orders"))
    error = here("tail", shell.url, "order", code=1).err
    assert error == "error: there is no topic 'order': did you mean 'orders'?\n"
    assert "see `headwater topics list`" in here("tail", shell.url, "zzz", "--no-follow", code=1).err


def test_reading_makes_no_store(shell: Shell) -> None:
    for command in (("tail", shell.url, "orders"), ("topics", "list", "shop:app"), ("dead", "list", shell.url, "x")):
        assert "there is no store here" in shell(*command, code=1).stderr
    assert not (shell.path / "data").exists()


def test_a_wrong_format_names_the_fields_there_are(shell: Shell, here: Here) -> None:
    error = here("tail", shell.url, "notes", "--format", "{offest}", code=2).err
    assert "topic, partition, offset, timestamp, key, headers, value" in " ".join(error.split())
    assert "--format" in here("tail", shell.url, "notes", "--format", "{value", code=2).err


def test_a_reader_that_goes_away_ends_the_command_quietly(shell: Shell) -> None:
    shell.publish(*(Outgoing("x" * 1000, "notes") for _ in range(2000)))
    command = shell.command("tail", shell.url, "notes", "--from", "earliest")  # it follows, with nothing more to write
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=shell.environment, text=True
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert "notes[" in tail.stdout.readline()
        tail.stdout.close()
        assert tail.stderr.read() == ""
        assert tail.wait(PATIENCE) == 0


def test_a_reader_that_goes_away_ends_a_tail_that_is_idle(shell: Shell) -> None:
    shell.publish(Outgoing("one", "notes"))
    command = shell.command("tail", shell.url, "notes", "--from", "earliest")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=shell.environment, text=True
    ) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert tail.stdout.readline().endswith("one\n")
        tail.stdout.close()
        assert tail.wait(PATIENCE) == 0
        assert tail.stderr.read() == ""


def test_lines_of_a_file_are_published(shell: Shell, here: Here) -> None:
    shell.write("orders.txt", '{"id": 1}\nplain\n\n')
    assert here("publish", shell.url, "notes", "--file", "orders.txt", "--key", "k").out == (
        "published 2 messages to notes\n"
    )
    assert "does not exist" in here("publish", shell.url, "notes", "--file", "nowhere.txt", code=2).err
    assert "give VALUE, or lines" in here("publish", shell.url, "notes", "1", "--file", "orders.txt", code=2).err


def test_what_tail_prints_as_json_can_be_published_again(shell: Shell, here: Here) -> None:
    for value in ('{"id": 1.0}', "words"):
        here("publish", shell.url, "notes", value, "--key", "k", "--header", "a=1", "--partition", 3)
    lines = here("tail", shell.url, "notes", "--from", "earliest", "--no-follow", "--json").out
    shell.write("notes.jsonl", lines)
    here("publish", shell.url, "again", "--file", "notes.jsonl", "--json-lines", "--header", "b=2")
    told = here("tail", shell.url, "again", "--from", "earliest", "--no-follow", "--json").out.splitlines()
    wanted = [json.loads(line) for line in lines.splitlines()]
    for line, original in zip(told, wanted, strict=True):
        message = json.loads(line)
        assert message["headers"] == original["headers"] | {"b": "2"}
        for field in ("partition", "key", "value"):
            assert message[field] == original[field]
    shell.write("broken.jsonl", '{"key": "k"}\n')
    refused = here("publish", shell.url, "again", "--file", "broken.jsonl", "--json-lines", code=1).err
    assert "is no line of --json-lines: Object missing required field `value`" in refused
