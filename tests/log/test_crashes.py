import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crashing import Countdown, die_at

from conftest import Opener, everything, put, values
from headwater import errors
from headwater.log.store import CursorCommit, Run, Store

_WRITER = """
import os, sys
from headwater.log.store import Run, Store
directory, name, durability = sys.argv[1:]
store = Store.open(directory, durability=durability, segment_bytes=1 << 16)
streams = store.topic("orders").streams
turn = 0
while True:
    values = [b"%s-%d-%d" % (name.encode(), turn, i) for i in range(3)]
    runs = [Run(s, [None] * 3, [b""] * 3, values) for s in streams]
    done = store.append(runs)
    store.sync(done.end)
    os.write(1, b"%d\\n" % turn)
    turn += 1
"""


def _writer(directory: Path, name: str, durability: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", _WRITER, str(directory), name, durability]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _check_whole(store: Store, acknowledged: dict[str, int]) -> None:
    """Every turn is there once, whole, in order, in both streams; none that was acknowledged is missing."""
    for stream in store.topic("orders").streams:
        records = everything(store, stream)
        assert [record.offset for record in records] == list(range(len(records)))
        seen: dict[str, list[tuple[int, int]]] = {}
        for record in records:
            name, turn, i = record.value.decode().split("-")
            seen.setdefault(name, []).append((int(turn), int(i)))
        for name, last in acknowledged.items():
            turns = seen.get(name, [])
            assert turns == [(turn, i) for turn in range(len(turns) // 3) for i in range(3)]
            assert len(turns) // 3 > last


def _kill_writers(directory: Path, rounds: int, durability: str, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: dict[str, int] = {}
    for turn in range(rounds):
        names = [f"a{turn}", f"b{turn}"]
        writers = [_writer(directory, name, durability) for name in names]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"0\n"
        time.sleep(chance.random() * 0.1)  # the moment of death is the point here
        for writer, name in zip(writers, names, strict=True):
            writer.send_signal(signal.SIGKILL)
            assert writer.stdout is not None
            lines = writer.stdout.read().split(b"\n")
            writer.stdout.close()
            writer.wait()
            acknowledged[name] = max([0, *(int(line) for line in lines[:-1])])
        with Store.open(directory) as store:
            done = store.append([Run(store.topic("orders").streams[0], [None], [b""], [b"c%d-0-0" % turn])])
            store.sync(done.end)
    with Store.open(directory) as store:
        first, second = store.topic("orders").streams
        mine = [value for value in values(store, first) if value.startswith(b"c")]
        assert mine == [b"c%d-0-0" % turn for turn in range(rounds)]
        assert store.latest(first) == store.latest(second) + rounds
        _check_whole(store, {name: last for name, last in acknowledged.items() if not name.startswith("c")})


@pytest.mark.parametrize("durability", ["fsync", "process"])
def test_writers_killed_at_any_moment_lose_nothing_acknowledged(
    opened: Opener, directory: Path, durability: str
) -> None:
    opened().create_topic("orders", 2)
    _kill_writers(directory, 4, durability, random.randrange(1 << 30))


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["fsync", "process"])
def test_writers_killed_hundreds_of_times_lose_nothing(opened: Opener, directory: Path, durability: str) -> None:
    opened().create_topic("orders", 2)
    _kill_writers(directory, 200, durability, random.randrange(1 << 30))


def test_two_processes_that_write_at_once_share_dense_offsets(opened: Opener, directory: Path) -> None:
    store = opened(durability="process")
    stream = store.create_topic("orders", 1).streams[0]

    def write(name: bytes, done: "multiprocessing.Queue[list[int]]") -> None:
        with Store.open(directory, durability="process", segment_bytes=1 << 16) as own:
            done.put([own.append([Run(stream, [None], [b""], [b"%s-%d" % (name, i)])]).bases[0] for i in range(2000)])

    context = multiprocessing.get_context("fork")
    done: multiprocessing.Queue[list[int]] = context.Queue()
    processes = [context.Process(target=write, args=(name, done)) for name in (b"a", b"b")]
    for process in processes:
        process.start()
    offsets = [done.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert all(own == sorted(own) for own in offsets)
    assert sorted(offsets[0] + offsets[1]) == list(range(4000))
    for name in (b"a", b"b"):
        mine = [value for value in values(store, stream) if value.startswith(name)]
        assert mine == [b"%s-%d" % (name, i) for i in range(2000)]


@pytest.mark.parametrize("durability", ["fsync", "process"])
@pytest.mark.parametrize("rolling", [False, True], ids=["within a segment", "over a roll"])
def test_a_death_at_any_step_of_a_commit_leaves_all_of_it_or_nothing(
    opened: Opener, directory: Path, durability: str, rolling: bool
) -> None:
    applied: dict[int, int] = {}

    def apply(cursors: list[CursorCommit], number: int) -> None:
        for cursor in cursors:
            applied[cursor.stream] = max(applied.get(cursor.stream, 0), cursor.next)

    store = opened(durability=durability, apply_cursors=apply)
    first, second = store.create_topic("orders", 2).streams
    size = 40_000 if rolling else 10
    acknowledged = 0

    def life(countdown: Countdown) -> None:
        with Store.open(directory, durability=durability, segment_bytes=1 << 16) as own:
            countdown.arm(own)
            runs = [Run(s, [None] * 2, [b""] * 2, [value, value * size]) for s in (first, second)]
            done = own.append(runs, [CursorCommit("g", first, int(value))])
            own.sync(done.end)

    step = 0
    while True:
        value = b"%07d" % step
        died = die_at(step, life)
        put(store, first, b"between")
        kept = [r.value for r in everything(store, first) if r.value != b"between"]
        assert kept == [r.value for r in everything(store, second)]
        assert len(kept) % 2 == 0
        assert all(b == a * size for a, b in zip(kept[::2], kept[1::2], strict=True))
        assert kept[::2] == sorted(kept[::2])
        if kept and kept[-2] == value:
            acknowledged += 1
            if died and applied.get(first, 0) < step:
                # The child itself applied it and died later: its own memory is gone with it.
                assert store._control.words is not None
        assert kept.count(value) <= 1
        if not died:
            assert kept[-2] == value
            break
        step += 1
    assert step > 8
    offsets = [record.offset for record in everything(store, first)]
    assert offsets == list(range(len(offsets)))
    assert values(opened(boot=b"another boot ..."), first) == values(store, first)


def test_the_next_process_applies_the_cursors_of_a_dead_one(opened: Opener, directory: Path) -> None:
    applied: list[int] = []
    store = opened(apply_cursors=lambda cursors, number: applied.extend(c.next for c in cursors))
    stream = store.create_topic("orders", 1).streams[0]

    def life(countdown: Countdown) -> None:
        with Store.open(directory, apply_cursors=lambda cursors, number: os._exit(77)) as own:
            own.append([], [CursorCommit("g", stream, 5)])

    assert die_at(0, life)
    put(store, stream, b"v")
    assert applied == [5]


def test_cursors_wait_for_a_process_that_applies_them(opened: Opener, directory: Path) -> None:
    applied: list[tuple[str, int]] = []
    plain = opened()
    stream = plain.create_topic("orders", 1).streams[0]
    opened(apply_cursors=lambda cursors, number: applied.extend((c.group, c.next) for c in cursors)).close()

    def life(countdown: Countdown) -> None:
        with Store.open(directory, apply_cursors=lambda cursors, number: os._exit(77)) as own:
            own.append([], [CursorCommit("g", stream, 5)])

    assert die_at(0, life)
    put(plain, stream, b"sees the dead one's frame through, and cannot apply its cursors")
    plain.append([], [CursorCommit("h", stream, 6)])
    assert applied == []
    opened(apply_cursors=lambda cursors, number: applied.extend((c.group, c.next) for c in cursors))
    assert applied == [("g", 5), ("h", 6)]


def test_a_death_at_any_step_of_making_a_store_leaves_a_place_for_one(directory: Path) -> None:
    def life(countdown: Countdown) -> None:
        countdown.arm()
        Store.open(directory, create=True).close()

    step = 0
    while die_at(step, life):
        with Store.open(directory, create=True) as store:
            put(store, store.create_topic("orders", 1).streams[0], b"v")
        subprocess.run(["rm", "-r", directory], check=True)
        step += 1
    assert step > 8


def test_a_death_at_any_step_of_changing_topics_leaves_the_old_or_the_new(opened: Opener, directory: Path) -> None:
    store = opened()
    kept = store.create_topic("kept", 1).streams[0]
    put(store, kept, b"v")

    def life(countdown: Countdown) -> None:
        with Store.open(directory) as own:
            countdown.arm(own)
            own.create_topic(f"made-{step}", 5000)
            own.delete_topic(f"made-{step}")

    step = 0
    while True:
        died = die_at(step, life)
        with Store.open(directory) as other:
            assert values(other, kept) == [b"v"]
            made = other.create_topic(f"made-{step}", 1)
            put(other, made.streams[-1], b"w")
            other.delete_topic(f"made-{step}")
            assert sorted(other.topics()) == ["kept"]
        if not died or step > 60:  # retiring 5,000 streams is a step each
            break
        step += 1


def test_a_stopped_holder_of_the_lock_is_named(opened: Opener, directory: Path) -> None:
    store = opened(lock_timeout=0.2)
    stream = store.create_topic("orders", 1).streams[0]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        own = Store.open(directory)
        with own._lock:
            own._control.words[7] = os.getpid()
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    try:
        with pytest.raises(errors.StoreBusyError) as caught:
            put(store, stream, b"v")
        assert caught.value.pid == pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert put(store, stream, b"v") == [0]
