"""The end of a process: what was published is delivered within a bound, and what could not be is counted."""

from __future__ import annotations

import gc
import signal
import sys
import time
from pathlib import Path

import pytest

from headwater import SyncBroker
from headwater.sync.thread import SHARED
from servers.redis import RedisServer

from .conftest import Read
from .processes import finish, run, start

HEAD = """
import atexit, os, signal, sys, threading, time
from headwater import SyncBroker
from headwater.sync.thread import SHARED

url, topic = sys.argv[1:3]
face = SyncBroker(url, exit_timeout=5)

"""


connects_at_the_end = pytest.mark.skipif(
    (3, 12) <= sys.version_info[:3] < (3, 12, 2),
    reason="they start no thread once the main one has ended (CPython issue 113964)",
)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"local://{tmp_path}/data"


def count(url: str, topic: str, wanted: int, read: Read) -> None:
    with SyncBroker(url) as face:
        assert len(read(face, topic, wanted)) == wanted


@connects_at_the_end
@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(3)", 3), ("threading.Thread(target=sys.exit).start()", 0)],
    ids=["the end", "sys.exit", "sys.exit in a thread"],
)
def test_what_was_published_soon_is_delivered(ending: str, code: int, store: str, topic: str, read: Read) -> None:
    run(HEAD + f"for n in range(1000): face.publish_soon(n, topic)\n{ending}", store, topic, code=code)
    count(store, topic, 1000, read)


@connects_at_the_end
def test_an_exception_that_ends_the_process_loses_nothing(store: str, topic: str, read: Read) -> None:
    script = HEAD + "for n in range(100): face.publish_soon(n, topic)\nraise ValueError('the end')"
    _, err = finish(start(script, store, topic), code=1)
    assert "the end" in err.splitlines()[-1]
    count(store, topic, 100, read)


@connects_at_the_end
def test_what_is_published_by_the_last_who_clean_up_is_delivered(store: str, topic: str, read: Read) -> None:
    run(HEAD + "face.publish_soon(1, topic)\natexit.register(lambda: face.publish_soon(2, topic))", store, topic)
    count(store, topic, 2, read)


# The first message comes when the thread pools of Python take no work any more, which connecting needs.
LATE = """
def work():
    threading.main_thread().join()
    for n in range(500):
        face.publish_soon(n, topic)
    face.publish("confirmed", topic)
    face.publish_soon("the last", topic)


for _ in range(3):
    threading.Thread(target=work).start()
"""


@connects_at_the_end
def test_threads_that_go_on_after_the_main_thread_lose_nothing(store: str, topic: str, read: Read) -> None:
    run(HEAD + LATE, store, topic)
    count(store, topic, 3 * 502, read)


@connects_at_the_end
def test_names_of_servers_are_resolved_after_the_main_thread(redis_server: RedisServer, topic: str, read: Read) -> None:
    run(HEAD + LATE, redis_server.url.replace("127.0.0.1", "localhost"), topic)
    count(redis_server.url, topic, 3 * 502, read)


CHILD = """
import {package}


def work():
    for n in range(500):
        face.publish_soon(n, topic)


if __name__ == "__main__":
    child = {context}.Process(target=work)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_child_of_multiprocessing_delivers_too(method: str, store: str, topic: str, read: Read) -> None:
    context = f"multiprocessing.get_context({method!r})"
    run(HEAD + CHILD.format(package="multiprocessing", context=context), store, topic)
    count(store, topic, 500, read)


def test_a_child_of_billiard_delivers_too(store: str, topic: str, read: Read) -> None:
    child = CHILD.format(package="billiard", context="billiard")
    run(f"{HEAD}\nimport warnings\nwarnings.simplefilter('ignore')  # its own\n{child}", store, topic)
    count(store, topic, 500, read)


@connects_at_the_end
def test_an_engine_with_threads_of_its_own_delivers_before_they_take_nothing_any_more(topic: str) -> None:
    run("""
import sys
from headwater import SyncBroker
from sync.engines import Pooled, on

face = SyncBroker(on(Pooled()))
face.publish_soon(1, "t")
""")


def test_what_could_not_be_delivered_is_counted_within_a_bound(topic: str) -> None:
    script = HEAD.replace("exit_timeout=5", "exit_timeout=0.5") + "for n in range(17): face.publish_soon(n, topic)"
    begin = time.monotonic()
    _, err = finish(start(script, "redis://127.0.0.1:1", topic))
    assert time.monotonic() - begin < 10
    assert "17 of the last messages were not delivered in 0.5 s" in err
    assert err.count("\n") == 1


def test_what_the_server_refuses_at_the_end_is_counted(tmp_path: Path, topic: str) -> None:
    script = HEAD + "face.connect()\nfor n in range(5): face.publish_soon(n, topic)"
    _, err = finish(start(script, f"local://{tmp_path}/data?auto_create=false", topic))
    assert "5 of the last messages were not delivered" in err


def test_no_signal_handler_is_installed(store: str, topic: str) -> None:
    run(
        HEAD
        + """
before = {number: signal.getsignal(number) for number in signal.valid_signals()}
face.publish(1, topic)
face.close()
assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}
assert signal.set_wakeup_fd(-1) == -1
""",
        store,
        topic,
    )


@connects_at_the_end
def test_two_lines_deliver_what_is_left_on_sigterm(store: str, topic: str, read: Read) -> None:
    process = start(
        HEAD
        + """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
for n in range(1000):
    face.publish_soon(n, topic)
print("ready", flush=True)
while True:
    time.sleep(0.05)  # signal.pause() would miss one that comes just before it
""",
        store,
        topic,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert finish(process) == ("", "")
    count(store, topic, 1000, read)


def test_a_face_that_nobody_has_any_more_is_forgotten_once_all_is_delivered() -> None:
    gc.collect()
    before = len(SHARED.leaving)
    delivery = SyncBroker("memory://").publish_soon(1, "t")
    assert len(SHARED.leaving) == before + 1
    delivery.result()
    SyncBroker(delivery._carrier.broker).close()  # type: ignore[attr-defined]  # nobody else has it
    del delivery
    gc.collect()
    assert len(SHARED.leaving) == before
