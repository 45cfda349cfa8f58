"""`headwater copy`: nothing is lost, and what is doubled by an interruption is bounded."""

from __future__ import annotations

import asyncio
import os
import pty
import resource
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest

from headwater import Broker, Message, Outgoing
from headwater.cli.copy import CHUNK

from .conftest import PATIENCE, Here, Shell


def there(shell: Shell) -> str:
    return f"local://{shell.path}/there?durability=process"


def read(url: str, topic: str) -> list[Message]:
    async def all_of_it() -> list[Message]:
        async with Broker(url) as broker:
            count = sum(info.messages for info in await broker.admin.partitions.list(topic))
            async with broker.stream(topic, start="earliest", limit=count) as stream:
                return [message async for message in stream]

    return asyncio.run(all_of_it())


def fill(shell: Shell, count: int, keys: int = 50) -> None:
    numbers = range(count)
    messages = [Outgoing(n, "orders", key=f"k{n % keys}", headers={"n": str(n)}) for n in numbers]
    shell.publish(*messages)


def by_key(messages: Sequence[Message]) -> dict[str | None, list[int]]:
    found = defaultdict[str | None, list[int]](list)
    for message in messages:
        found[message.key].append(message.value)
    return found


def test_bodies_keys_and_headers_are_copied_as_they_are_and_in_order(shell: Shell, here: Here) -> None:
    fill(shell, 2500)
    shell.publish(Outgoing(b"\xff\x00", "orders", headers=[("a", "1"), ("a", "2")]))
    assert "copied 2501 messages from orders to copies" in here("copy", shell.url, "orders", there(shell), "copies").err
    copied = read(there(shell), "copies")
    (raw,) = [message for message in copied if message.key is None]
    assert (raw.body, raw.headers.get_all("a"), raw.headers.get("content-type")) == (b"\xff\x00", ["1", "2"], None)
    original = by_key([message for message in read(shell.url, "orders") if message.key is not None])
    assert by_key([message for message in copied if message is not raw]) == original
    assert all(message.headers["content-type"] == "application/json" for message in copied if message is not raw)


def test_the_next_copy_goes_on_where_the_last_one_ended(shell: Shell, here: Here) -> None:
    fill(shell, 30)
    assert here("copy", shell.url, "orders", there(shell), "--limit", 20, "--json").json[0]["copied"] == 20
    assert here("copy", shell.url, "orders", there(shell), "--json").json[0]["copied"] == 10
    fill(shell, 5)
    assert here("copy", shell.url, "orders", there(shell), "--json").json[0]["copied"] == 5
    assert here("copy", shell.url, "orders", there(shell), "others", "--group", "b", "--json").json[0]["copied"] == 35
    assert len(read(there(shell), "orders")) == 35


@pytest.mark.soak
def test_a_million_messages_are_copied_in_bounded_memory(shell: Shell) -> None:
    for _ in range(20):
        shell.publish(*(Outgoing(b"x" * 100, "orders", key=str(n)) for n in range(50_000)))
    shell("copy", shell.url, "orders", there(shell))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 150 << 10  # KiB, of any program so far
    copied = shell.json("topics", "list", there(shell))
    assert copied[0]["messages"] == 1_000_000


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_a_killed_copy_loses_nothing_and_doubles_no_more_than_a_chunk(shell: Shell, count: int) -> None:
    fill(shell, count)
    running = shell.start("copy", shell.url, "orders", there(shell))

    async def begun() -> None:
        async with Broker(there(shell)) as broker:
            await broker.admin.topics.create("orders", partitions=8)
            async with asyncio.timeout(PATIENCE):
                while sum(info.messages for info in await broker.admin.partitions.list("orders")) < 3 * CHUNK:
                    await asyncio.sleep(0)

    asyncio.run(begun())
    running.popen.kill()
    running.wait()
    first = len(read(there(shell), "orders"))
    assert first < count, "it was over before it could be killed"
    shell("copy", shell.url, "orders", there(shell))
    copied = [message.value for message in read(there(shell), "orders")]
    assert set(copied) == set(range(count))
    assert len(copied) - count <= CHUNK


def test_it_follows_what_is_published_until_it_is_interrupted(shell: Shell) -> None:
    fill(shell, 3)
    shell("topics", "create", there(shell), "orders")
    running = shell.start("copy", shell.url, "orders", there(shell), "--follow")
    tail = shell.start("tail", there(shell), "orders", "--from", "earliest", "--format", "copied {value}")
    for _ in range(3):
        tail.until("copied")
    shell.publish(Outgoing(99, "orders"))
    tail.until("copied 99")
    running.signal(signal.SIGINT)
    assert running.wait() == 130


def test_partitions_are_kept_if_asked_for(shell: Shell, here: Here) -> None:
    shell.publish(*(Outgoing(n, "orders", partition=n % 8) for n in range(16)))
    here("copy", shell.url, "orders", there(shell), "--keep-partitions")
    assert {(message.partition, message.value % 8) for message in read(there(shell), "orders")} == {
        (n, n) for n in range(8)
    }


def test_on_a_terminal_it_shows_how_many_and_how_fast(shell: Shell) -> None:
    fill(shell, 5000)
    ours, theirs = pty.openpty()
    command = shell.command("copy", shell.url, "orders", there(shell))
    with subprocess.Popen(command, cwd=shell.path, env=shell.environment, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # its end
                break
        assert process.wait() == 0
    os.close(ours)
    assert b"a second" in shown
    assert b"copied 5000 messages" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "local://./there"], "no topic 'nowhere'"),
        (["orders", "nonsense://x"], "nonsense"),
    ],
)
def test_what_cannot_be_copied_is_told(shell: Shell, here: Here, arguments: list[str], said: str) -> None:
    fill(shell, 1)
    assert said in here("copy", shell.url, *arguments, code=1).err


@pytest.mark.server
def test_a_topic_goes_from_engine_to_engine_and_back(shell: Shell, here: Here, request: pytest.FixtureRequest) -> None:
    fill(shell, 1500)
    urls = [request.getfixturevalue(f"{name}_server").url for name in ("nats", "redis", "kafka")]
    topic, places = f"copies-{os.getpid()}-{time.time_ns()}", [(shell.url, "orders")]
    places += [(url, topic) for url in urls] + [(there(shell), "back")]
    for (source, name), (destination, to) in pairwise(places):
        copied = here("copy", source, name, destination, to, "--group", f"g-{time.time_ns()}", "--json").json[0]
        assert copied["copied"] == 1500, (source, destination)
    assert by_key(read(there(shell), "back")) == by_key(read(shell.url, "orders"))
