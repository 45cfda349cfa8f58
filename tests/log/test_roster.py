"""Who lives: the kernel's locks say so, and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headwater.errors import StoreCorruptError
from headwater.log.roster import DeathWatch, Roster

MEMBER = """
import os, sys, time
from pathlib import Path
from headwater.log.roster import Roster
roster = Roster(Path(sys.argv[1]), create=True)
with roster.locked():
    slot = roster.enter(sys.argv[2], "00" * 16, "peer")
if "fork" in sys.argv and os.fork() == 0:
    os.write(1, b"child %d\\n" % os.getpid())
    time.sleep(60)
os.write(1, b"slot %d\\n" % slot)
if "hold" in sys.argv:
    with roster.locked():
        os.write(1, b"held\\n")
        time.sleep(60)
time.sleep(60)
"""
ID = "ab" * 16


def member(path: Path, *flags: str) -> tuple[subprocess.Popen[str], list[str]]:
    process = subprocess.Popen([sys.executable, "-c", MEMBER, str(path), ID, *flags], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [process.stdout.readline().strip() for _ in range(1 + len(flags))]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "members"


def test_a_member_lives_until_its_process_is_killed(path: Path) -> None:
    roster = Roster(path, create=True)
    process, (line,) = member(path)
    slot = int(line.split()[1])
    assert roster.is_alive(ID, slot)
    assert roster.entry(slot).client == "peer"
    process.kill()
    process.communicate()
    assert not roster.is_alive(ID, slot)
    roster.close()


def test_a_forked_child_does_not_keep_its_dead_parent_alive(path: Path) -> None:
    roster = Roster(path, create=True)
    process, lines = member(path, "fork")
    words = dict(line.split() for line in lines)
    process.kill()
    process.wait()
    assert not roster.is_alive(ID, int(words["slot"]))
    os.kill(int(words["child"]), signal.SIGKILL)
    process.communicate()
    roster.close()


def test_two_members_of_one_process_have_slots_of_their_own(path: Path) -> None:
    first, second = Roster(path, create=True), Roster(path, create=True)
    slots = [roster.enter(os.urandom(16).hex(), ID, "me") for roster in (first, second)]
    assert slots == [1, 2]
    assert first.is_held(2)
    second.close()
    assert not first.is_held(2)
    first.close()


def test_a_member_that_says_nothing_for_a_lease_counts_as_hung(path: Path) -> None:
    roster = Roster(path, create=True, lease=0.05)
    other = Roster(path)
    slot = other.enter(ID, ID, "me")
    assert roster.is_alive(ID, slot)
    time.sleep(0.06)
    assert not roster.is_alive(ID, slot)
    other.beat()
    assert roster.is_alive(ID, slot)
    other.close()
    roster.close()


def test_a_stopped_holder_of_the_groups_lock_loses_it_with_its_term(path: Path) -> None:
    process, _ = member(path, "hold")
    (path.parent / "state.0").write_bytes(b"as it was")
    process.send_signal(signal.SIGSTOP)
    roster = Roster(path, create=True, lease=0.1)
    with roster.locked() as term:
        assert term == 1
        assert (path.parent / "state.1").read_bytes() == b"as it was"
    process.kill()
    process.communicate()
    with roster.locked() as term:
        assert term == 1
    roster.close()


def test_a_dead_holder_of_the_groups_lock_is_not_waited_for(path: Path) -> None:
    process, _ = member(path, "hold")
    process.kill()
    process.communicate()
    roster = Roster(path, lease=1000.0)
    with roster.locked() as term:
        assert term == 0
    roster.close()


def test_a_damaged_table_is_named(path: Path) -> None:
    Roster(path, create=True).close()
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="members"):
        Roster(path)


async def test_a_death_is_told_by_the_kernel(path: Path) -> None:
    roster = Roster(path, create=True)
    process, (line,) = member(path)
    died = asyncio.Event()
    watch = DeathWatch(died.set)
    watch.follow([roster.entry(int(line.split()[1]))])
    process.kill()
    await asyncio.wait_for(died.wait(), 5)
    assert not roster.is_alive(ID, int(line.split()[1]))
    process.communicate()
    watch.close()
    roster.close()
