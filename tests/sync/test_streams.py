"""Reading from synchronous code: a plain iterator that ends, is closed, sought and interrupted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice

import pytest

from headwater import Message, Outgoing, SyncBroker, TopicNotFoundError
from headwater.sync import SyncStream

from .processes import finish, start


@pytest.fixture
def filled(face: SyncBroker, topic: str) -> SyncBroker:
    """A face whose topic has the messages 0 to 9, in one partition where there are any."""
    if face.broker.engine.name in ("memory", "local"):
        face.admin.topics.create(topic, partitions=1)
    face.publish_many([Outgoing(n, topic) for n in range(10)])
    return face


def values(messages: Iterator[Message]) -> list[object]:
    return [message.value for message in messages]


def test_a_stream_is_a_plain_iterator_that_ends_where_it_is_told_to(filled: SyncBroker, topic: str) -> None:
    assert values(filled.stream(topic, start="earliest", limit=10)) == list(range(10))
    assert values(filled.stream(topic, start="earliest", wait=0.2)) == list(range(10))
    assert values(filled.stream(topic, start="earliest", until=lambda m: m.value == 4)) == [0, 1, 2, 3]
    assert [type(m.value) for m in filled.stream(topic, start="earliest", limit=1, type=float)] == [float]


def test_left_early_it_gives_its_place_up(filled: SyncBroker, topic: str) -> None:
    with filled.stream(topic, start="earliest") as stream:
        assert values(islice(stream, 3)) == [0, 1, 2]
    assert next(stream, None) is None
    stream.close()
    other = filled.stream(topic, start="earliest")
    assert next(other).value == 0
    other.close()
    assert filled.broker._streams == set()


def test_batches_and_single_messages_can_be_mixed(filled: SyncBroker, topic: str) -> None:
    with filled.stream(topic, start="earliest", limit=10) as stream:
        assert next(stream).value == 0
        seen = [values(iter(batch)) for batch in stream.batches(4)]
    assert [n for batch in seen for n in batch] == list(range(1, 10))
    assert max(map(len, seen)) <= 4


def test_it_can_be_sought(filled: SyncBroker, topic: str) -> None:
    if filled.broker.engine.name not in ("memory", "local"):
        pytest.skip("its offsets are no small ints")
    with filled.stream(topic, start="earliest", limit=6) as stream:
        assert values(islice(stream, 2)) == [0, 1]
        stream.seek(7)
        assert next(stream).value == 7
        stream.seek(5)
        assert values(stream) == [5, 6, 7]


def test_opened_by_with_it_misses_nothing_that_comes_after(filled: SyncBroker, topic: str) -> None:
    with filled.stream(topic, limit=1) as stream:
        filled.publish("later", topic)
        assert values(stream) == ["later"]


def test_it_waits_for_what_comes(filled: SyncBroker, topic: str) -> None:
    with filled.stream(topic, limit=3) as stream:
        threading.Timer(0.1, lambda: [filled.publish(n, topic) for n in range(3)]).start()
        assert values(stream) == [0, 1, 2]


def test_a_topic_that_is_not_there_is_said_to_be_missing() -> None:
    with SyncBroker("memory://") as face:
        with pytest.raises(TopicNotFoundError):
            next(face.stream("nothing"))
        with pytest.raises(TopicNotFoundError), face.stream("nothing"):
            pass


def test_closing_the_face_ends_a_stream_that_waits_in_another_thread() -> None:
    with SyncBroker("memory://") as face:
        face.publish(1, "t")
        opened, seen = threading.Event(), []

        def read(stream: SyncStream) -> None:
            opened.set()
            seen.extend(stream)

        stream = face.stream("t")
        stream.open()
        reader = threading.Thread(target=read, args=(stream,))
        reader.start()
        opened.wait()
    reader.join(5)
    assert not reader.is_alive()
    assert seen == []


def test_an_interrupted_stream_is_closed_and_its_broker_goes_on() -> None:
    process = start("""
        from headwater import SyncBroker

        with SyncBroker("memory://") as face:
            face.publish(1, "t")
            stream = face.stream("t")
            stream.open()
            print("ready", flush=True)
            try:
                for message in stream:
                    pass
            except KeyboardInterrupt:
                print("interrupted", next(stream, None), face.broker._streams)
            print(face.publish(2, "t").topic)
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)  # until it waits: a signal before that would interrupt something else
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("interrupted None set()\nt\n", "")


def test_a_paused_one_waits_for_another_thread_to_resume_it(filled: SyncBroker, topic: str) -> None:
    resumed = threading.Event()

    def resume() -> None:
        resumed.set()
        stream.resume()

    with filled.stream(topic, start="earliest") as stream:
        assert next(stream).value == 0
        stream.pause()
        resuming = threading.Timer(0.05, resume)
        resuming.start()
        assert next(stream).value == 1
        assert resumed.is_set()
        resuming.join()
        (place,) = stream.position
        assert [next(stream).value for _ in range(2)] == [2, 3]
        stream.seek(place)
        assert next(stream).value == 2
