import multiprocessing
import os
import subprocess
import threading
from pathlib import Path

import pytest

from conftest import Opener, clock_from, everything, fill, put, values
from headwater import errors
from headwater.log import control
from headwater.log import directory as directories
from headwater.log.store import CursorCommit, Run, Store, TopicWanted


def test_what_was_appended_is_read_back_in_order(opened: Opener) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    made = fill(store, stream, 2000, batch=7)
    assert values(store, stream) == made
    assert [record.offset for record in everything(store, stream, limit=3)] == list(range(2000))
    assert len(directories.list_segments(store.path)) > 3


def test_keys_headers_and_empty_values_are_kept_apart(opened: Opener) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    done = store.append([Run(stream, [None, b"", b"k"], [b"", b"h", b""], [b"", b"v", b""])])
    store.sync(done.end)
    found = [(r.key, r.headers, r.value) for r in store.read(stream, 0, 10)]
    assert found == [(None, b"", b""), (b"", b"h", b"v"), (b"k", b"", b"")]


def test_a_frame_over_several_streams_gives_each_its_own_offsets(opened: Opener) -> None:
    store = opened()
    first, second, third = store.create_topic("orders", 3).streams
    put(store, second, b"before")
    done = store.append([Run(s, [None], [b""], [b"%d" % s]) for s in (third, first, second)])
    store.sync(done.end)
    assert list(done.bases) == [0, 0, 1]
    assert [values(store, s)[-1] for s in (third, first, second)] == [b"%d" % s for s in (third, first, second)]


def test_nothing_is_seen_before_it_is_on_disk(opened: Opener) -> None:
    store, other = opened(), opened()
    stream = store.create_topic("orders", 1).streams[0]
    put(store, stream, b"synced")
    done = store.append([Run(stream, [None], [b""], [b"not yet"])])
    assert values(store, stream) == [b"synced"]
    assert store.latest(stream) == 1
    assert other.latest(stream) == 1
    before = store.visible_end
    store.sync(done.end)
    assert store.visible_end > before
    assert store.latest(stream) == 2
    assert values(store, stream) == [b"synced", b"not yet"]


def test_without_fsync_it_is_seen_at_once(opened: Opener) -> None:
    store = opened(durability="process")
    stream = store.create_topic("orders", 1).streams[0]
    other = opened()
    for i in range(2000):
        store.append([Run(stream, [None], [b""], [b"%d" % i * 20])])
        assert other.latest(stream) == i + 1
        assert other.read(stream, i, 10)[0].value == b"%d" % i * 20


def test_reading_stops_at_the_limits_it_was_given(opened: Opener) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    fill(store, stream, 100, size=80, batch=10)
    assert len(store.read(stream, 5, 12)) == 12
    assert store.read(stream, 5, 0) == []
    assert 1 <= len(store.read(stream, 0, 100, max_bytes=1)) <= 10
    assert store.read(stream, 100, 5) == []
    assert store.read(stream, 10_000, 5) == []


def test_time_finds_the_first_record_at_or_after_it(opened: Opener) -> None:
    store = opened(clock=clock_from(1000.0, 1.0))
    stream = store.create_topic("orders", 1).streams[0]
    fill(store, stream, 2000, batch=1)
    times = [record.time for record in everything(store, stream)]
    assert times == [1000.0 + i for i in range(2000)]
    assert store.offset_at(stream, 0) == 0
    for offset in (0, 1, 999, 1999):
        assert store.offset_at(stream, 1000.0 + offset) == offset
        assert store.offset_at(stream, 999.5 + offset) == offset
    assert store.offset_at(stream, 9999.0) == 2000


def test_time_never_runs_backwards(opened: Opener) -> None:
    clocks = iter([2000.0, 1000.0, 1500.0, 2500.0])
    store = opened(clock=lambda: next(clocks))
    stream = store.create_topic("orders", 1).streams[0]
    for _ in range(4):
        put(store, stream, b"v")
    assert [record.time for record in everything(store, stream)] == [2000.0, 2000.0, 2000.0, 2500.0]


def test_a_reader_of_one_topic_does_not_read_the_frames_of_another(opened: Opener) -> None:
    store = opened(durability="process", segment_bytes=1 << 20)
    busy, rare = store.create_topic("busy", 1).streams[0], store.create_topic("rare", 1).streams[0]
    put(store, rare, b"first")
    fill(store, busy, 20_000, batch=100)
    put(store, rare, b"last")
    assert [record.value for record in store.read(rare, 0, 10)] == [b"first", b"last"]
    indexed = {stream for _, stream in store._reader._indexes}
    assert indexed == {rare}


# Opening


def test_reading_a_directory_without_a_store_creates_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "deep" / "er"):
        with pytest.raises(errors.StoreNotFoundError):
            Store.open(path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(errors.StoreError, match="file"):
            Store.open(path, create=True)


def test_a_newer_store_is_left_alone(opened: Opener, directory: Path) -> None:
    store = opened()
    newer = control.VERSION + 1
    store._control.words[control.VERSION_WORD] = newer | (~newer & control.LOW) << 32
    store.close()
    with pytest.raises(errors.StoreVersionError, match="upgrade Headwater"):
        Store.open(directory)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_filesystems_that_cannot_share_memory_are_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(directories, "filesystem", lambda _: kind)
    with pytest.raises(errors.StoreError, match=kind):
        Store.open(directory, create=True)


def test_the_kind_of_filesystem_is_known() -> None:
    assert directories.filesystem(Path("/proc")) == "proc"


@pytest.mark.skipif(os.getuid() != 0, reason="mounting takes root")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        Store.open(place / "store", create=True).close()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        with pytest.raises(errors.StoreError, match="read-only"):
            Store.open(place / "store")
        with pytest.raises(errors.StoreError, match=r"read-only|writ"):
            Store.open(place / "another", create=True)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_closed_store_says_so(opened: Opener) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    store.close()
    store.close()
    with pytest.raises(errors.StoreError, match="closed"):
        put(store, stream, b"v")
    with pytest.raises(errors.StoreError, match="closed"):
        store.read(stream, 0, 1)


def test_a_forked_child_opens_its_own(opened: Opener, directory: Path) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]

    def child(found: "multiprocessing.Queue[object]") -> None:
        try:
            put(store, stream, b"inherited")
        except errors.StoreError as error:
            found.put(str(error))
        with Store.open(directory) as own:
            put(own, stream, b"of the child")
        found.put("done")

    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue[object] = context.Queue()
    process = context.Process(target=child, args=(found,))
    with store._lock:  # even a lock that is held while forking stays the parent's alone
        process.start()
        assert "fork" in str(found.get(timeout=10))
    assert found.get(timeout=10) == "done"
    process.join()
    put(store, stream, b"of the parent")
    assert values(store, stream) == [b"of the child", b"of the parent"]


# Topics


def test_creating_a_topic_twice_keeps_the_first(opened: Opener) -> None:
    store, other = opened(), opened()
    made = store.create_topic("orders", 3, retention=60.0)
    assert other.create_topic("orders", 5) == made
    assert other.topic("orders").retention == 60.0
    with pytest.raises(errors.TopicNotFoundError):
        other.topic("invoices")


def test_several_processes_create_the_same_topics_at_once(opened: Opener, directory: Path) -> None:
    opened()
    context = multiprocessing.get_context("fork")

    def create() -> None:
        with Store.open(directory) as own:
            for i in range(10):
                put(own, own.create_topic(f"topic-{i}", 2).streams[0], b"v")

    processes = [context.Process(target=create) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = opened()
    topics = store.topics()
    streams = [stream for topic in topics.values() for stream in topic.streams]
    assert len(topics) == 10
    assert len(set(streams)) == 20
    assert all(store.latest(topic.streams[0]) == 3 for topic in topics.values())


def test_other_processes_see_topics_change(opened: Opener) -> None:
    store, other = opened(), opened()
    other.topics()
    store.create_topic("orders", 1)
    assert other.topic("orders").streams == store.topic("orders").streams
    store.add_partitions("orders", 4)
    assert len(other.topic("orders").streams) == 4
    store.alter_topic("orders", 5.0, 1000)
    assert (other.topic("orders").retention, other.topic("orders").retention_bytes) == (5.0, 1000)
    before = other.catalog_generation
    store.delete_topic("orders")
    assert other.catalog_generation != before
    assert other.topics() == {}


def test_a_topic_created_again_shows_nothing_of_the_old_one(opened: Opener) -> None:
    store, other = opened(), opened()
    old = store.create_topic("orders", 1).streams[0]
    put(store, old, b"old")
    other.latest(old)
    store.delete_topic("orders")
    for gone in (store, other):
        with pytest.raises(errors.TopicNotFoundError):
            put(gone, old, b"late")
        with pytest.raises(errors.TopicNotFoundError):
            gone.read(old, 0, 1)
    new = store.create_topic("orders", 1).streams[0]
    assert values(other, new) == []
    assert put(other, new, b"new") == [0]
    assert values(opened(boot=b"another boot ..."), new) == [b"new"]


def test_purged_records_are_gone_for_everybody(opened: Opener) -> None:
    store, other = opened(), opened()
    stream = store.create_topic("orders", 1).streams[0]
    fill(store, stream, 100)
    store.purge({stream: 40})
    store.purge({stream: 10})
    assert other.earliest(stream) == 40
    assert other.read(stream, 0, 1)[0].offset == 40
    store.purge({stream: 10_000})
    assert other.earliest(stream) == other.latest(stream) == 100
    assert put(other, stream, b"next") == [100]


def test_thousands_of_partitions_open_at_once(opened: Opener) -> None:
    store = opened(durability="process", segment_bytes=1 << 20)
    topics = store.create_topics([TopicWanted(f"topic-{i}", 8) for i in range(1000)])
    for topic in topics:
        store.append([Run(stream, [None], [b""], [b"v" * 100]) for stream in topic.streams])
    other = opened()
    assert all(other.latest(stream) == 1 for topic in topics for stream in topic.streams)
    recovered = opened(boot=b"another boot ...")
    assert values(recovered, topics[999].streams[7]) == [b"v" * 100]


# Cursors


def test_cursors_are_handed_over_with_the_frame_they_rode_in(opened: Opener) -> None:
    seen: list[tuple[list[CursorCommit], int]] = []
    store = opened(apply_cursors=lambda cursors, number: seen.append((list(cursors), number)))
    stream = store.create_topic("orders", 1).streams[0]
    store.append([Run(stream, [None], [b""], [b"v"])], [CursorCommit("billing", stream, 5)])
    done = store.append([], [CursorCommit("billing", stream, 6)])
    assert [cursors[0].next for cursors, _ in seen] == [5, 6]
    assert seen[0][1] < seen[1][1]
    store.note_applied(done.end)
    assert store._control.words[control.UNAPPLIED] == 0


# Threads


def test_threads_share_a_store(opened: Opener) -> None:
    store = opened()
    stream = store.create_topic("orders", 1).streams[0]
    offsets: list[int] = []

    def write() -> None:
        for i in range(30):
            offsets.extend(put(store, stream, b"%d" % i, b"x"))
            store.read(stream, 0, 100)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(offsets) == list(range(240))
