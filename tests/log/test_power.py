"""Power cuts: what was not synced is dropped, zeroed or torn at any byte, and the boot id is another."""

import random
import shutil
from pathlib import Path

import pytest

from conftest import Opener, everything, fill, put, values
from headwater import errors
from headwater.log import control
from headwater.log.control import LOW, unseal
from headwater.log.directory import list_segments, segment_path
from headwater.log.store import CursorCommit, Run, Store

ANOTHER = b"another boot id."


def _cut(directory: Path, store: Store, chance: random.Random) -> None:
    """Make the directory what a power cut could have left; the store is closed by it."""
    durable = unseal(store._control.words[control.DURABLE])
    store.close()
    for name in list_segments(directory):
        start = 0 if name.first > durable >> 32 else durable & LOW if name.first == durable >> 32 else None
        if start is not None and start < name.path.stat().st_size:
            _spoil(name.path, start, chance)
    how = chance.randrange(4)
    if how == 0:
        (directory / control.NAME).unlink()
    elif how == 1:
        data = (directory / control.NAME).read_bytes()  # a page of it never reached the disk
        (directory / control.NAME).write_bytes(data[:4096] + bytes(len(data) - 4096))
    elif how == 2:  # an older state of it, or half of one
        data = bytearray((directory / control.NAME).read_bytes())
        data[40:48] = bytes(8)
        data[192:200] = bytes(8)
        (directory / control.NAME).write_bytes(data)


def _spoil(path: Path, start: int, chance: random.Random) -> None:
    size = path.stat().st_size
    how = chance.randrange(5)
    cut = chance.randrange(start, size)
    if how == 4 and start == 0:
        path.unlink()
        return
    with open(path, "r+b") as file:
        if how == 0:
            file.truncate(start)
        elif how == 1:
            file.truncate(cut)
        else:
            file.seek(start if how == 2 else cut)
            rest = size - file.tell()
            file.write(bytes(min(rest, 1 << 20)))


def _cut_often(directory: Path, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    boot = ANOTHER
    with Store.open(directory, create=True, boot=boot) as store:
        first, second = store.create_topic("orders", 2).streams
    kept: list[bytes] = []
    for turn in range(rounds):
        store = Store.open(directory, segment_bytes=1 << 14, boot=boot)
        acknowledged = len(kept)
        for i in range(chance.randrange(1, 60)):
            batch = [b"%d-%d-%d-" % (turn, i, j) + b"x" * chance.randrange(200) for j in range(chance.randrange(1, 20))]
            count = len(batch)
            done = store.append([Run(s, [None] * count, [b""] * count, batch) for s in (first, second)])
            kept += batch
            if chance.random() < 0.3:
                store.sync(done.end)
                acknowledged = len(kept)
        _cut(directory, store, chance)
        boot = b"boot %011d" % turn
        with Store.open(directory, segment_bytes=1 << 14, boot=boot) as store:
            found = values(store, first)
            assert len(found) >= acknowledged
            assert found == kept[: len(found)]
            assert values(store, second) == found
            assert [record.offset for record in everything(store, second)] == list(range(len(found)))
            kept = found


def test_nothing_acknowledged_is_lost_in_a_power_cut(directory: Path) -> None:
    _cut_often(directory, 25, random.randrange(1 << 30))


@pytest.mark.soak
def test_nothing_acknowledged_is_lost_in_hundreds_of_power_cuts(directory: Path) -> None:
    _cut_often(directory, 200, random.randrange(1 << 30))


def test_a_frame_torn_at_any_byte_is_cut_off_and_those_before_it_stay(opened: Opener, directory: Path) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    put(store, stream, b"kept")
    before = store.end & LOW
    store.append([Run(stream, [b"k"], [b""], [b"torn"])])
    after = store.end & LOW
    store.close()
    whole = directory.with_name("whole")
    shutil.copytree(directory, whole)
    for cut in range(before, after):
        shutil.rmtree(directory)
        shutil.copytree(whole, directory)
        path = segment_path(directory, 1)
        with open(path, "r+b") as file:
            file.seek(cut)
            file.write(bytes(path.stat().st_size - cut))
        with Store.open(directory, boot=ANOTHER) as again:
            assert values(again, stream) == [b"kept"]
            assert put(again, stream, b"next") == [1]


def test_stale_bytes_are_never_taken_for_frames(opened: Opener, directory: Path) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    for i in range(5):
        put(store, stream, b"%d" % i)
    end = store.end & LOW
    store.close()
    path = segment_path(directory, 1)
    data = path.read_bytes()[:end]
    with Store.open(directory, boot=ANOTHER) as again:  # rolled to segment 2
        put(again, stream, b"new")
        start = again.end & LOW
    header = (directory / "0000000002.log").read_bytes()
    (directory / "0000000002.log").write_bytes(header[:start] + data[-(end - 200) :])
    with Store.open(directory, boot=b"yet another boot") as third:
        assert values(third, stream) == [b"0", b"1", b"2", b"3", b"4", b"new"]


def test_damage_in_what_was_on_disk_is_not_taken_for_a_torn_tail(opened: Opener, directory: Path) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    put(store, stream, b"first")
    position = store.end & LOW
    for _ in range(3):
        put(store, stream, b"later")
    store.close()
    (directory / control.NAME).unlink()
    path = segment_path(directory, 1)
    data = bytearray(path.read_bytes())
    data[position + 70] ^= 4
    path.write_bytes(data)
    with pytest.raises(errors.StoreCorruptError, match=path.name) as caught:
        Store.open(directory, boot=ANOTHER)
    assert caught.value.position == position
    assert path.read_bytes() == data


def test_cursors_are_applied_again_after_a_power_cut(opened: Opener, directory: Path) -> None:
    store = opened(segment_bytes=1 << 14)
    stream = store.create_topic("orders", 1).streams[0]
    for i in range(1, 6):
        done = store.append([Run(stream, [None], [b""], [b"v" * 5000])], [CursorCommit("g", stream, i)])
        if i == 2:
            store.note_applied(done.end)
        store.sync(done.end)
    fill(store, stream, 200)
    store.close()
    seen: list[int] = []
    Store.open(directory, boot=ANOTHER, apply_cursors=lambda cursors, _: seen.extend(c.next for c in cursors)).close()
    assert seen[-3:] == [3, 4, 5]


def test_deleted_topics_stay_deleted_after_a_power_cut(opened: Opener, directory: Path) -> None:
    store = opened()
    gone = store.create_topic("gone", 1).streams[0]
    kept = store.create_topic("kept", 1).streams[0]
    put(store, gone, b"v")
    put(store, kept, b"v")
    store.delete_topic("gone")
    store.close()
    with Store.open(directory, boot=ANOTHER) as again:
        with pytest.raises(errors.TopicNotFoundError):
            put(again, gone, b"w")
        assert values(again, kept) == [b"v"]
