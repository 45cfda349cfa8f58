import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from crashing import DIED, Countdown, die_at

from conftest import everything, put, values
from headwater import errors
from headwater.log import control
from headwater.log.catalog import NAME as CATALOG
from headwater.log.check import check, repair
from headwater.log.directory import list_segments, segment_path
from headwater.log.store import Run, Store


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _make(directory: Path, frames: int = 120) -> dict[str, list[bytes]]:
    """A store of several segments with three topics, closed; what is in it."""
    with Store.open(directory, create=True, segment_bytes=1 << 13) as store:
        names = ("orders", "invoices", "audit")
        streams = {name: store.create_topic(name, 1).streams[0] for name in names}
        for i in range(frames):
            runs = [
                Run(
                    streams[name],
                    [b"k"] * 3,
                    [b""] * 3,
                    [b"%s-%d-%d" % (name.encode(), i, j) for j in range(3)],
                )
                for name in names[: 1 + i % 3]
            ]
            store.sync(store.append(runs).end)
        return {name: values(store, streams[name]) for name in names}


def _read_all(directory: Path, limit: int = 1000) -> dict[str, list[tuple[int, bytes]]]:
    with Store.open(directory) as store:
        return {
            name: [(r.offset, r.value) for r in everything(store, topic.streams[0], limit)]
            for name, topic in store.topics().items()
        }


def _expect(content: dict[str, list[bytes]]) -> dict[str, list[tuple[int, bytes]]]:
    return {name: list(enumerate(column)) for name, column in content.items()}


def test_a_whole_store_is_found_healthy(directory: Path) -> None:
    content = _make(directory)
    report = check(directory)
    assert report.healthy
    assert report.records == sum(map(len, content.values()))
    assert repair(directory).healthy
    assert _read_all(directory) == _expect(content)


def test_a_store_in_use_is_checked_beside_its_writers(directory: Path) -> None:
    _make(directory)
    stop = threading.Event()

    def write() -> None:
        with Store.open(directory, durability="process", segment_bytes=1 << 13) as store:
            stream = store.topic("orders").streams[0]
            while not stop.is_set():
                store.append([Run(stream, [None], [b""], [b"v" * 500])])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(5):
            assert check(directory).damages == ()
    finally:
        stop.set()
        writer.join()


def test_a_store_whose_last_owner_died_is_healthy(directory: Path) -> None:
    _make(directory)

    def life(countdown: Countdown) -> None:
        with Store.open(directory) as store:
            stream = store.topic("orders").streams[0]
            store._control.words = _DyingAfter(store._control.words, control.COMMIT)  # type: ignore[assignment]
            put(store, stream, b"committed")

    assert die_at(0, life)
    assert check(directory).damages == ()
    assert _read_all(directory)["orders"][-1][1] == b"committed"


class _DyingAfter:
    """Words of a control file whose owner dies right after storing one of them."""

    def __init__(self, words: "memoryview[int]", last: int) -> None:
        self._words, self._last = words, last

    def __getitem__(self, index: object) -> object:
        return self._words[index]  # type: ignore[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value
        if index == self._last:
            os._exit(DIED)


def test_checking_a_directory_without_a_store_creates_nothing(tmp_path: Path) -> None:
    for act in (check, repair):
        with pytest.raises(errors.StoreNotFoundError):
            act(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _try_reading(directory: Path) -> tuple[str | None, dict[str, list[tuple[int, bytes]]]]:
    """What can be read, or the file that the error names."""
    try:
        return None, _read_all(directory)
    except errors.StoreCorruptError as error:
        return error.segment, {}


def _flip_somewhere(directory: Path, content: dict[str, list[bytes]], path: Path, bit: int) -> None:
    """A flipped bit is harmless, or is named by reading, or at least never served; and can be repaired."""
    where = f"bit {bit} of {path.name}"
    _flip(path, bit)
    report = check(directory)
    named, found = _try_reading(directory)
    if named is None:
        assert found == _expect(content), where
    else:
        assert named == path.name, where
        assert not report.healthy, where
    removed = repair(directory)
    after = _read_all(directory)
    lost = 0
    for name, column in content.items():
        kept = set(after[name])
        assert kept <= set(enumerate(column)), where
        lost += len(column) - len(kept)
        missing = {offset for offset, _ in enumerate(column)} - {offset for offset, _ in kept}
        told = {
            offset
            for damage in removed.damages
            for loss in damage.losses
            if loss.topic == name
            for offset in range(loss.first, loss.end)
        }
        assert missing == told, where
    assert removed.lost == lost, where
    again = check(directory)
    assert again.healthy, (where, again.damages)
    with Store.open(directory) as store:
        for name, column in content.items():
            stream = store.topic(name).streams[0]
            assert put(store, stream, b"after") == [len(column)], where
            assert values(store, stream)[-1] == b"after", where


def _flip_often(directory: Path, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    content = _make(directory)
    whole = directory.with_name("whole")
    shutil.copytree(directory, whole)
    for _ in range(rounds):
        shutil.rmtree(directory)
        shutil.copytree(whole, directory)
        segments = [name.path for name in list_segments(directory)]
        path = chance.choice([*segments, *segments, directory / control.NAME, directory / CATALOG])
        size = min(path.stat().st_size, 8 * (control.HEADS + 32)) if path.name == control.NAME else path.stat().st_size
        if path == segments[-1]:
            with Store.open(directory) as store:
                size = min(size, store.end & control.LOW)
        _flip_somewhere(directory, content, path, chance.randrange(size * 8))


def test_a_flipped_bit_anywhere_is_never_served_and_can_be_repaired(directory: Path) -> None:
    _flip_often(directory, 60, random.randrange(1 << 30))


def test_a_flipped_bit_in_any_word_of_a_head_is_noticed(directory: Path) -> None:
    content = _make(directory)
    whole = directory.with_name("whole")
    shutil.copytree(directory, whole)
    head = 8 * (control.HEADS + control.HEAD * 3)  # of the stream of "audit"
    for bit in range(128):
        shutil.rmtree(directory)
        shutil.copytree(whole, directory)
        _flip(directory / control.NAME, 8 * head + bit)
        healthy = check(directory).healthy
        named, found = _try_reading(directory)
        assert (named, healthy) == (control.NAME, False) or found == _expect(content), bit


@pytest.mark.soak
def test_a_thousand_flipped_bits_are_never_served(directory: Path) -> None:
    _flip_often(directory, 1000, random.randrange(1 << 30))


def test_damage_is_named_with_segment_position_topic_and_offsets(directory: Path) -> None:
    content = _make(directory)
    path = segment_path(directory, 2)
    at = path.read_bytes().index(b"invoices-")
    value = path.read_bytes()[at:].split(b"-")[1]
    offset = content["invoices"].index(b"invoices-%s-0" % value)
    _flip(path, at * 8)
    with Store.open(directory) as store:
        topic = store.topic("invoices").streams[0]
        with pytest.raises(errors.StoreCorruptError) as caught:
            everything(store, topic)
        assert caught.value.segment == path.name
        assert 0 < caught.value.position < at
        assert f"'invoices'[0] offsets {offset} to {offset + 2}" in str(caught.value)
        assert values(store, store.topic("orders").streams[0]) == content["orders"]
        with pytest.raises(errors.StoreCorruptError):
            store.read(topic, offset, 1)
    (damage,) = check(directory).damages
    assert damage.file == path.name
    assert [(loss.topic, loss.first, loss.end) for loss in damage.losses] == [("invoices", offset, offset + 3)]


def test_checking_changes_nothing(directory: Path) -> None:
    _make(directory)
    _flip(segment_path(directory, 2), 3000 * 8)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    check(directory)
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert {name: after[name] for name in before} == before


def test_a_half_written_segment_is_named_and_repaired(directory: Path) -> None:
    content = _make(directory)
    path = segment_path(directory, 2)
    half = path.stat().st_size // 2
    with open(path, "r+b") as file:
        file.truncate(half)
    with pytest.raises(errors.StoreCorruptError, match=path.name):
        _read_all(directory)
    report = check(directory)
    assert report.lost > 0
    assert repair(directory).lost == report.lost
    after = _read_all(directory)
    assert sum(map(len, content.values())) - sum(map(len, after.values())) == report.lost
    assert check(directory).healthy


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_segment_is_reported(directory: Path, which: int) -> None:
    content = _make(directory)
    list_segments(directory)[which].path.unlink()
    with pytest.raises(errors.StoreError, match=r"missing|active segment"):
        _read_all(directory)
    report = check(directory)
    assert report.lost > 0
    repair(directory)
    after = _read_all(directory)
    assert sum(map(len, content.values())) - sum(map(len, after.values())) == report.lost
    assert check(directory).healthy


def test_a_lost_control_file_loses_nothing(directory: Path) -> None:
    content = _make(directory)
    (directory / control.NAME).unlink()
    assert not check(directory).healthy
    assert _read_all(directory) == _expect(content)


def test_a_catalog_beyond_help_gives_topics_the_names_of_their_streams(directory: Path) -> None:
    content = _make(directory)
    (directory / CATALOG).write_bytes(b"")
    with pytest.raises(errors.StoreCorruptError, match="catalog"):
        Store.open(directory)
    assert not repair(directory).healthy
    found = _read_all(directory)
    assert sorted(map(len, found.values())) == sorted(map(len, content.values()))
    assert all(name.startswith("recovered.") for name in found)


def test_a_disk_that_refuses_to_sync_stops_the_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _make(directory)
    with Store.open(directory) as store:
        stream = store.topic("orders").streams[0]

        def refuse(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.fdatasync", refuse)
        with pytest.raises(errors.StoreError, match="refused an fsync"):
            put(store, stream, b"unsure")
        monkeypatch.undo()
        with pytest.raises(errors.StoreError, match="repair"):
            put(store, stream, b"later")
        assert values(store, stream) == content["orders"]
    with pytest.raises(errors.StoreError, match="repair"):
        Store.open(directory)
    repair(directory)
    assert _read_all(directory)["orders"][: len(content["orders"])] == _expect(content)["orders"]


def test_a_store_in_use_is_not_repaired(directory: Path) -> None:
    _make(directory)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"from headwater.log.store import Store; s = Store.open({str(directory)!r}); "
         "print('open', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(errors.StoreError, match="stop them"):
            repair(directory)
    finally:
        holder.communicate(b"\n")


def test_what_is_repaired_survives_a_power_cut(directory: Path) -> None:
    _make(directory)
    _flip(segment_path(directory, 2), 3000 * 8)
    repair(directory)
    after = _read_all(directory)
    Store.open(directory, boot=b"another boot id.").close()
    (directory / control.NAME).unlink()
    assert _read_all(directory) == after
