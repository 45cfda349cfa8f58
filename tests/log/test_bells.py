"""A sleeping consumer is woken at once, and nobody pays for those who are awake."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headwater.errors import StoreCorruptError
from headwater.log.bells import Bells

SLEEPER = """
import asyncio, sys
from pathlib import Path
from headwater.log.bells import Bells
async def main():
    woken = asyncio.Event()
    bells = Bells(Path(sys.argv[1]), woken.set, lambda: 0)
    bells.hang()
    bells.listen("test", [int(sys.argv[2])])
    while True:
        woken.clear()
        bells.arm()
        print("asleep", flush=True)
        await woken.wait()
        print(f"awake {bells.looks}", flush=True)
asyncio.run(main())
"""


class Sleeper:
    """A consumer of one stream in another process."""

    def __init__(self, folder: Path, stream: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLEEPER, str(folder), str(stream)], stdout=subprocess.PIPE, text=True
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


class Own:
    """Bells of this process, with what they heard."""

    def __init__(self, folder: Path) -> None:
        self.commits = 0
        self.woken = asyncio.Event()
        self.bells = Bells(folder, self.woken.set, lambda: self.commits)


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Own]:
    own = Own(tmp_path)
    own.bells.hang()
    yield own
    own.bells.close()


async def test_a_sleeping_process_is_woken_by_a_datagram_and_not_by_its_poll(own: Own, tmp_path: Path) -> None:
    sleeper = Sleeper(tmp_path, 5)
    try:
        for _ in range(20):
            assert sleeper.says() == "asleep"
            own.bells.ring([5])
            assert sleeper.says() == "awake 0"
    finally:
        sleeper.kill()


async def test_a_process_that_waits_for_another_stream_sleeps_on(own: Own, tmp_path: Path) -> None:
    sleeper = Sleeper(tmp_path, 5)
    try:
        assert sleeper.says() == "asleep"
        own.bells.ring([6])
        own.bells.ring([5])
        assert sleeper.says().startswith("awake")
        assert sleeper.says() == "asleep"
        own.bells.ring(None)
        assert sleeper.says().startswith("awake")
    finally:
        sleeper.kill()


async def test_a_bell_of_our_own_needs_no_datagram(own: Own) -> None:
    own.bells.listen("test", [5])
    own.bells.arm()
    own.bells.ring([5])
    assert own.woken.is_set()
    assert own.bells.rings == 1


async def test_a_thread_rings_our_bell_through_the_loop(own: Own) -> None:
    own.bells.listen("test", [5])
    own.bells.arm()
    ringer = threading.Thread(target=own.bells.ring, args=([5],))
    ringer.start()
    await asyncio.wait_for(own.woken.wait(), 5)
    ringer.join()  # it may still be looking for others to wake


async def test_a_lost_datagram_is_made_up_for_by_the_poll(own: Own) -> None:
    own.bells.listen("test", [5])
    own.bells.arm()
    own.commits += 1
    await asyncio.wait_for(own.woken.wait(), 5)
    assert own.bells.looks == 1


async def test_bells_of_the_dead_are_removed(own: Own, tmp_path: Path) -> None:
    sleepers = [Sleeper(tmp_path, 5) for _ in range(2)]
    for sleeper in sleepers:
        assert sleeper.says() == "asleep"
    for sleeper in sleepers:
        sleeper.kill()
    assert len(list(tmp_path.glob("*.sock"))) == 3
    own.bells.ring([5])
    assert [path.stem for path in tmp_path.glob("*.sock")] == [own.bells.id]


async def test_a_new_bell_sweeps_away_those_of_the_dead(own: Own, tmp_path: Path) -> None:
    sleeper = Sleeper(tmp_path, 5)
    assert sleeper.says() == "asleep"
    sleeper.kill()
    other = Own(tmp_path)
    other.bells.hang()
    assert {path.stem for path in tmp_path.glob("*.sock")} == {own.bells.id, other.bells.id}
    other.bells.close()


async def test_ringing_a_process_that_does_not_listen_never_blocks(own: Own, tmp_path: Path) -> None:
    sleeper = Sleeper(tmp_path, 5)
    try:
        assert sleeper.says() == "asleep"
        sleeper.process.send_signal(signal.SIGSTOP)
        bell = next(path.stem for path in tmp_path.glob("*.sock") if path.stem != own.bells.id)
        for _ in range(10_000):
            own.bells.call(bell)
    finally:
        sleeper.kill()


async def test_a_deep_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    own = Own(folder)
    own.bells.hang()
    own.bells.call(own.bells.id)
    await asyncio.wait_for(own.woken.wait(), 5)
    own.bells.close()
    assert not list(folder.glob("*.sock"))


async def test_a_cut_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "table").write_bytes(b"x" * 10)
    with pytest.raises(StoreCorruptError, match="table of bells"):
        Bells(tmp_path, print, os.getpid)
