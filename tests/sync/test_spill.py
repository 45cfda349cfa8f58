"""What is published while the engine is away: kept in a directory, and passed on in order when it is back."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from headwater import (
    AuthenticationError,
    ConnectError,
    Message,
    MessageTooLargeError,
    NotSupportedError,
    Outgoing,
    PublishError,
    Receipt,
    SyncBroker,
)
from headwater.broker import PublishNext
from headwater.sync import Stats
from servers.redis import RedisServer

from .engines import Late, Server, kept, on
from .processes import start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spill"


@pytest.fixture
def server() -> Server:
    return Server(there=False)


@pytest.fixture
def face(server: Server, folder: Path) -> Iterator[SyncBroker]:
    with SyncBroker(on(server), spill=folder) as face:
        yield face


def until(condition: Callable[[], bool], within: float = 10) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def numbers(engine: Server) -> list[int]:
    return [int(body) for body in kept(engine)]


def read_one(face: SyncBroker, topic: str) -> Message:
    with face.stream(topic, start="earliest", limit=1, wait=5) as stream:
        (message,) = stream
    return message


def test_while_the_engine_is_away_publishing_goes_on_and_all_arrives_in_order(
    face: SyncBroker, server: Server, folder: Path
) -> None:
    begin = time.monotonic()
    assert face.publish(0, "t").topic == "t"
    futures = [face.publish_soon(n, "t") for n in range(1, 50)]
    assert len(face.publish_many([Outgoing(n, "t") for n in range(50, 100)])) == 50
    assert face.flush(0)
    assert time.monotonic() - begin < 5
    assert {future.result() for future in futures} == {future.result() for future in futures}
    assert face.stats == Stats(spilled=100)
    assert folder.is_dir()
    assert kept(server) == []
    server.there = True
    for n in range(100, 150):
        face.publish(n, "t")
    until(lambda: len(kept(server)) == 150)
    assert numbers(server) == list(range(150))
    until(lambda: face.publish(150, "t").offset is not None)
    assert face.stats.delivered >= 1


def test_an_engine_that_is_there_needs_no_directory(server: Server, folder: Path) -> None:
    server.there = True
    with SyncBroker(on(server), spill=folder) as face:
        assert face.publish(1, "t").offset == 0
        assert face.stats == Stats(delivered=1)
    assert not folder.exists()


def test_what_is_being_written_as_the_engine_comes_back_is_not_forgotten(
    face: SyncBroker, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    face.publish(0, "t")
    spill = face._courier.spill
    assert spill is not None
    write, written = spill._kept.publish_many, threading.Event()

    async def slowly(messages: Sequence[Outgoing]) -> Sequence[Receipt]:
        await asyncio.sleep(0.5)
        written.set()
        return await write(messages)

    monkeypatch.setattr(spill._kept, "publish_many", slowly)
    last = face.publish_soon(1, "t")
    server.there = True
    until(lambda: kept(server) == [b"0"])
    assert not written.is_set()
    assert last.result().topic == "t"
    until(lambda: face.publish(2, "t").offset is not None)
    until(lambda: len(kept(server)) >= 3)
    assert numbers(server)[:2] == [0, 1]


def test_an_engine_that_comes_and_goes_gets_all_in_order(server: Server, folder: Path) -> None:
    server.there = True
    stopped = threading.Event()

    def come_and_go() -> None:
        while not stopped.wait(0.15):
            server.there = not server.there
        server.there = True

    restless = threading.Thread(target=come_and_go)
    with SyncBroker(on(server), spill=folder) as face:
        restless.start()
        for n in range(600):
            face.publish(n, "t", timeout=20)
            time.sleep(0.002)
        stopped.set()
        restless.join()
        assert face.stats.spilled > 0
        assert face.stats.delivered > 0
        until(lambda: len(set(kept(server))) == 600)
    seen = numbers(server)
    assert [n for i, n in enumerate(seen) if n not in seen[:i]] == list(range(600))


def test_everything_but_options_travels(face: SyncBroker, server: Server) -> None:
    headers = [("a", "1"), ("a", b"\xff"), ("empty", "")]
    face.publish({"id": 1}, "t", key="k", headers=headers, partition=5)
    face.publish(b"\x00", "bytes", key=b"\xff")
    with pytest.raises(NotSupportedError, match="spill"):
        face.publish(1, "t", options=[object()])
    with pytest.raises(PublishError) as refused:
        face.publish_many([Outgoing(1, "many"), Outgoing(1, "many", options=(object(),)), Outgoing(object(), "many")])
    assert [error is None for error in refused.value.errors] == [True, False, False]
    server.there = True
    until(lambda: len(kept(server)) == 3)
    message = read_one(face, "t")
    assert (message.value, message.key, message.partition) == ({"id": 1}, "k", 5)
    assert message.headers.pairs[-3:] == (("a", b"1"), ("a", b"\xff"), ("empty", b""))
    assert read_one(face, "bytes").key_bytes == b"\xff"


def test_a_delay_counts_from_when_it_was_published(face: SyncBroker, server: Server) -> None:
    face.publish("over", "t", delay=0.01)
    face.publish("later", "t", delay=60)
    time.sleep(0.02)
    server.there = True
    until(lambda: kept(server) == [b"over"])
    until(lambda: server.store.delayed == 1)


def test_what_the_engine_refuses_is_put_aside_and_holds_nothing_up(
    server: Server, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Small(Server):
        def send(self, messages: object) -> object:
            for outgoing in messages:  # type: ignore[attr-defined]  # messages
                if len(outgoing.body) > 5:
                    raise MessageTooLargeError(outgoing.topic, len(outgoing.body), 5)
            return super().send(messages)  # type: ignore[arg-type]  # messages

    small = Small(there=False)
    with SyncBroker(on(small), spill=folder) as face:
        face.publish("much too large", "t")
        small.there = True
        until(lambda: "'refused'" in caplog.text)
        until(lambda: face.publish("small", "t").offset is not None)
    assert b"much too large" not in kept(small)
    with SyncBroker(f"local://{folder}") as log:
        assert b"much too large" in read_one(log, "refused").body


def test_it_is_passed_on_by_the_next_process_that_uses_the_directory(server: Server, folder: Path) -> None:
    with SyncBroker(on(server), spill=folder) as face:
        for n in range(10):
            face.publish(n, "t")
    server.there = True
    with SyncBroker(on(server), spill=folder) as other:
        until(lambda: len(kept(server)) == 10)
        other.publish(10, "t")
        until(lambda: len(kept(server)) == 11)
    assert numbers(server) == list(range(11))


def test_faces_that_share_a_directory_pass_each_message_on_once(server: Server, folder: Path) -> None:
    faces = [SyncBroker(on(server), spill=folder) for _ in range(3)]
    for n in range(60):
        faces[n % 3].publish(n, "t")
    server.there = True
    until(lambda: len(kept(server)) == 60)
    for face in faces:
        until(lambda face=face: face.publish(99, "after").offset is not None)  # type: ignore[misc]  # bound now
        face.close()
    assert numbers(server)[:60] == list(range(60))


def test_what_was_passed_on_is_forgotten(face: SyncBroker, server: Server, folder: Path) -> None:
    for n in range(10):
        face.publish(n, "t")
    server.there = True
    until(lambda: face.publish("x", "u").offset is not None)
    with SyncBroker(f"local://{folder}") as log:
        until(lambda: log.admin.partitions.list("spill")[0].messages == 0)


def test_credentials_that_are_refused_are_no_absence(folder: Path) -> None:
    face = SyncBroker(on(Late(connects=10**9, error=AuthenticationError)), spill=folder)
    with pytest.raises(AuthenticationError):
        face.publish(1, "t")
    face.close()
    assert not folder.exists()


def test_a_directory_that_cannot_be_written_is_an_error_of_the_publish(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    face = SyncBroker(on(server), spill=tmp_path / "file")
    with pytest.raises(Exception, match="file"):
        face.publish(1, "t")
    assert face.stats.failed == 1
    face.close()


who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_the_publish_middleware_sees_each_message_once_in_its_context(server: Server, folder: Path) -> None:
    seen = []

    async def mark(outgoing: Outgoing, call_next: PublishNext) -> Receipt:
        seen.append(outgoing.value)
        if outgoing.value == 13:
            raise ValueError("unlucky")
        outgoing.headers = {"who": who.get()}
        return await call_next(outgoing)

    with SyncBroker(on(server, publish_middleware=[mark]), spill=folder) as face:
        who.set("me")
        face.publish(1, "t")
        with pytest.raises(ValueError, match="unlucky"):
            face.publish(13, "t")
        server.there = True
        until(lambda: len(kept(server)) == 1)
        assert read_one(face, "t").headers["who"] == "me"
    assert seen == [1, 13]


def test_other_calls_wait_for_the_engine_as_ever(face: SyncBroker, server: Server) -> None:
    with pytest.raises(ConnectError):
        face.request("anybody?", "t", timeout=0.2)
    face.publish(1, "t")
    server.there = True
    assert [topic.name for topic in face.admin.topics.list()] in ([], ["t"])


# --- real servers, and processes that are killed ------------------------------------------------------

PUBLISH = """
import sys
from headwater import SyncBroker

url, folder, topic, first, last = sys.argv[1:]
face = SyncBroker(url, spill=folder)
for n in range(int(first), int(last)):
    face.publish(n, topic, timeout=20)
    print(n, flush=True)
input()
"""


def published_until_killed(url: str, folder: Path, topic: str, first: int, last: int) -> None:
    """Publish in a process of its own, which is killed as soon as the last message was taken."""
    process = start(PUBLISH, url, str(folder), topic, str(first), str(last))
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if int(line) == last - 1:
                process.send_signal(signal.SIGKILL)
                break
        else:
            raise AssertionError(process.stderr and process.stderr.read())


@pytest.fixture
def stoppable(redis_server: RedisServer) -> Iterator[RedisServer]:
    """A server of the test's own."""
    with RedisServer() as server:
        yield server


def in_first_order(found: list[int]) -> list[int]:
    """Without what came again."""
    return list(dict.fromkeys(found))


def test_a_server_that_stops_and_processes_that_are_killed_lose_nothing(
    stoppable: RedisServer, folder: Path, topic: str
) -> None:
    url = stoppable.url
    published_until_killed(url, folder, topic, 0, 20)
    stoppable.down()
    published_until_killed(url, folder, topic, 20, 60)
    published_until_killed(url, folder, topic, 60, 100)
    stoppable.up()
    with SyncBroker(url, spill=folder) as face:
        until(lambda: face.publish("end", f"{topic}-end").offset is not None)
        with face.stream(topic, start="earliest", limit=100, wait=5) as stream:
            assert [message.value for message in stream] == list(range(100))


def test_a_process_killed_while_it_passes_on_loses_nothing_and_keeps_the_order(
    stoppable: RedisServer, folder: Path, topic: str
) -> None:
    url = stoppable.url
    stoppable.down()
    with SyncBroker(url, spill=folder, exit_timeout=1) as face:
        face.publish_many([Outgoing(n, topic) for n in range(5000)])
    stoppable.up()
    for _ in range(3):
        process = start(PUBLISH, url, str(folder), f"{topic}-other", "0", "1")
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "0\n"
            time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
    with SyncBroker(url, spill=folder) as face:
        until(lambda: face.publish("end", f"{topic}-end").offset is not None)
        with face.stream(topic, start="earliest", wait=1) as stream:
            found = [message.value for message in stream]
    assert in_first_order(found) == list(range(5000))


def test_a_server_killed_under_load_gets_all_that_was_published(
    stoppable: RedisServer, folder: Path, topic: str
) -> None:
    accepted: list[int] = []
    with SyncBroker(stoppable.url, spill=folder) as face:

        def work() -> None:
            for n in range(2000):
                try:
                    face.publish(n, topic, timeout=3)
                except TimeoutError:  # it was on its way: only its publisher knows whether twice is better
                    face.publish(n, topic, timeout=3)
                accepted.append(n)
                time.sleep(0.0005)

        publisher = threading.Thread(target=work)
        publisher.start()
        until(lambda: len(accepted) > 300)
        stoppable.down(kill=True)
        until(lambda: len(accepted) > 800, 20)
        stoppable.up()
        publisher.join(60)
        assert face.stats.spilled > 100
        until(lambda: face.publish("end", f"{topic}-end").offset is not None)
        with face.stream(topic, start="earliest", wait=1) as stream:
            found = [message.value for message in stream]
    assert in_first_order(found) == list(range(2000))
