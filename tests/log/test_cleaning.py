import multiprocessing
import random
import shutil
import threading
from pathlib import Path

import pytest
from crashing import Countdown, die_at

from conftest import Opener, everything, fill, put, values
from headwater import errors
from headwater.log.check import check
from headwater.log.directory import list_segments
from headwater.log.store import CursorCommit, Run, Store


def _size(directory: Path) -> int:
    return sum(name.path.stat().st_size for name in list_segments(directory))


def _mixed(store: Store, eternal: int, expiring: int, rounds: int) -> list[bytes]:
    """An eternal topic with a little in every segment, beside one with a lot."""
    made = []
    for i in range(rounds):
        made.append(b"eternal-%d" % i)
        put(store, eternal, made[-1])
        fill(store, expiring, 20, size=400)
    return made


def test_records_expire_by_age(opened: Opener) -> None:
    now = 1000.0
    store = opened(clock=lambda: now)
    stream = store.create_topic("orders", 1, retention=60.0).streams[0]
    fill(store, stream, 1000)
    now = 1050.0
    fill(store, stream, 10)
    assert store.clean().expired == 0
    now = 1061.0
    assert store.clean().expired == 1
    assert store.earliest(stream) == 1000
    assert len(values(store, stream)) == 10
    now = 2000.0
    report = store.clean()
    assert report.expired == 1
    assert store.earliest(stream) == store.latest(stream) == 1010
    assert put(store, stream, b"next") == [1010]
    assert len(list_segments(store.path)) == 1


def test_records_expire_by_size_oldest_first_over_all_partitions(opened: Opener) -> None:
    store = opened()
    first, second = store.create_topic("orders", 2, retention_bytes=200_000).streams
    fill(store, first, 300, size=400)
    fill(store, second, 300, size=400)
    fill(store, first, 150, size=400)
    store.clean()
    assert len(values(store, second)) == 300
    assert 180 <= len(values(store, first)) <= 200
    assert 190_000 < sum(map(len, values(store, first) + values(store, second))) <= 200_000


def test_the_newest_record_outlives_any_size(opened: Opener) -> None:
    store = opened()
    stream = store.create_topic("orders", 1, retention_bytes=10).streams[0]
    put(store, stream, b"old" * 100)
    put(store, stream, b"new" * 100)
    store.clean()
    assert values(store, stream) == [b"new" * 100]


def test_an_eternal_topic_does_not_pin_expired_data_of_another(opened: Opener, directory: Path) -> None:
    store = opened()
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=50_000).streams[0]
    made = _mixed(store, eternal, expiring, 200)
    before = _size(directory)
    latest = store.latest(expiring)
    report = store.clean()
    assert report.rewritten > 0
    assert report.freed > before * 0.8
    assert _size(directory) < before * 0.2
    assert [(r.offset, r.value) for r in everything(store, eternal)] == list(enumerate(made))
    assert store.latest(expiring) == latest
    for other in (opened(), opened(boot=b"another boot id.")):
        assert values(other, eternal) == made
        assert values(other, expiring) == values(store, expiring)
        assert other.offset_at(eternal, everything(store, eternal)[77].time) <= 77
    assert check(directory).healthy


def test_cleaning_again_and_again_joins_small_segments_and_then_rests(opened: Opener, directory: Path) -> None:
    store = opened()
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=10_000).streams[0]
    made: list[bytes] = []
    for _ in range(5):
        made += _mixed(store, eternal, expiring, 40)
        store.clean()
    assert len(list_segments(directory)) <= 4
    store.clean()
    report = store.clean()
    assert (report.removed, report.rewritten, report.freed) == (0, 0, 0)
    assert values(store, eternal) == made


def test_deleted_and_purged_topics_give_their_space_back(opened: Opener, directory: Path) -> None:
    store = opened()
    kept, gone = store.create_topic("kept", 1).streams[0], store.create_topic("gone", 1).streams[0]
    put(store, kept, b"v")
    fill(store, gone, 5000)
    store.purge({kept: 1})
    store.delete_topic("gone")
    store.clean()
    assert len(list_segments(directory)) == 1
    assert store.latest(kept) == store.earliest(kept) == 1
    assert put(store, kept, b"w") == [1]


def test_readers_of_every_process_go_on_through_a_cleaning(opened: Opener, directory: Path) -> None:
    store, other = opened(), opened()
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=10_000).streams[0]
    made = _mixed(store, eternal, expiring, 60)
    stop = threading.Event()
    passes: list[int] = []
    failed: list[BaseException] = []

    def read(reader: Store) -> None:
        try:
            while not stop.is_set() or not passes:
                found = [record.value for record in everything(reader, eternal, limit=7)]
                assert found[: len(made)] == made
                passes.append(len(found))
        except BaseException as error:
            failed.append(error)

    readers = [threading.Thread(target=read, args=(reader,)) for reader in (store, other)]
    for reader in readers:
        reader.start()
    for _ in range(3):
        _mixed(store, eternal, expiring, 4)
        store.clean()
    stop.set()
    for reader in readers:
        reader.join()
    assert not failed
    assert passes


def test_a_reader_in_the_middle_of_a_stream_goes_on_where_it_was(opened: Opener) -> None:
    store, other = opened(), opened()
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=10_000).streams[0]
    made = _mixed(store, eternal, expiring, 100)
    assert [record.value for record in other.read(eternal, 0, 50)] == made[:50]
    store.clean()
    assert [(r.offset, r.value) for r in other.read(eternal, 50, 50)] == list(enumerate(made))[50:]


def _kill_cleaner(directory: Path, step: int) -> bool:
    def life(countdown: Countdown) -> None:
        with Store.open(directory, segment_bytes=1 << 13) as own:
            countdown.arm(own)
            own.clean()

    return die_at(step, life)


def test_a_cleaner_killed_at_any_step_loses_nothing(opened: Opener, directory: Path) -> None:
    store = opened(segment_bytes=1 << 13)
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=1000).streams[0]
    made = _mixed(store, eternal, expiring, 8)
    store.close()
    whole = directory.with_name("whole")
    shutil.copytree(directory, whole)
    step = 0
    while _kill_cleaner(directory, step):
        with Store.open(directory) as again:
            assert values(again, eternal) == made
            assert put(again, eternal, b"next") == [len(made)]
            again.clean()
            assert values(again, eternal) == [*made, b"next"]
        shutil.rmtree(directory)
        shutil.copytree(whole, directory)
        if step % 3 == 0:  # the power goes, too
            _kill_cleaner(directory, step)
            with Store.open(directory, boot=b"another boot id.") as again:
                assert values(again, eternal) == made
            shutil.rmtree(directory)
            shutil.copytree(whole, directory)
        step += 1
    assert step > 10
    assert _size(directory) < 20_000


def test_one_process_cleans_at_a_time(opened: Opener, directory: Path) -> None:
    store = opened()
    context = multiprocessing.get_context("fork")
    cleaning, done = context.Event(), context.Event()

    def clean() -> None:
        from headwater.log.cleaner import CleaningLock

        with CleaningLock(directory):
            cleaning.set()
            done.wait()

    process = context.Process(target=clean)
    process.start()
    cleaning.wait()
    assert store.clean().busy
    done.set()
    process.join()
    assert not store.clean().busy


def test_frames_whose_cursors_may_be_needed_are_kept(opened: Opener, directory: Path) -> None:
    store = opened()
    stream = store.create_topic("orders", 1, retention_bytes=1).streams[0]
    done = store.append([], [CursorCommit("g", stream, 7)])
    fill(store, stream, 3000)
    store.clean()
    seen: list[int] = []
    opened(boot=b"another boot id.", apply_cursors=lambda cursors, _: seen.extend(c.next for c in cursors))
    assert seen == [7]
    assert done.end > 0


def test_damage_is_left_for_the_repair(opened: Opener, directory: Path) -> None:
    store = opened()
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=1000).streams[0]
    made = _mixed(store, eternal, expiring, 40)
    path = list_segments(directory)[1].path
    data = bytearray(path.read_bytes())
    data[data.index(b"eternal-")] ^= 1
    path.write_bytes(data)
    report = store.clean()
    assert path.name in report.damaged
    with pytest.raises(errors.StoreCorruptError):
        everything(opened(), eternal)
    assert made


@pytest.mark.soak
def test_writers_readers_and_cleaners_together(opened: Opener, directory: Path) -> None:
    store = opened(durability="process")
    eternal = store.create_topic("eternal", 1).streams[0]
    expiring = store.create_topic("expiring", 1, retention_bytes=100_000).streams[0]
    context = multiprocessing.get_context("fork")

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        with Store.open(directory, durability="process", segment_bytes=1 << 16) as own:
            for i in range(3000):
                runs = [Run(expiring, [None] * 5, [b""] * 5, [b"x" * 300] * 5)]
                if i % 5 == 0:
                    runs.append(Run(eternal, [None], [b""], [b"%d-%d" % (seed, i // 5)]))
                own.append(runs)
                if chance.random() < 0.02:
                    own.clean()

    processes = [context.Process(target=churn, args=(seed,)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = values(store, eternal)
    assert sorted(found) == sorted(b"%d-%d" % (seed, i) for seed in range(4) for i in range(600))
    assert [r.offset for r in everything(store, eternal)] == list(range(2400))
    assert check(directory).healthy
