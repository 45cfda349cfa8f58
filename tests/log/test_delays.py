"""Messages for later, seen from the process that moves them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headwater.errors import PartitionLostError
from headwater.log import delays
from headwater.log.delays import TOPIC, Delayed, Delays, encode_delayed
from headwater.log.store import Run, Store


class Desk:
    """A store with a topic of delays, and what was moved to the target."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path, create=True, durability="process")
        self.waiting, self.marks = self.store.create_topic(TOPIC, 2).streams
        self.target = self.store.create_topic("orders", 1).streams[0]
        self.lease: Any = SimpleNamespace(live=True, page=SimpleNamespace(retired=False))

    def elect(self) -> Delays:
        elected = Delays(self.store, self.lease, self._sort, durable=False)
        elected.load()
        return elected

    def _sort(self, messages: Sequence[Delayed]) -> Sequence[Run]:
        count = len(messages)
        return [Run(self.target, [None] * count, [b""] * count, [m.body for m in messages])] if count else []

    def wait(self, *messages: tuple[float, object]) -> None:
        values = [encode_delayed(due, Delayed("orders", None, None, b"", str(body).encode())) for due, body in messages]
        nothing: list[bytes | None] = [None] * len(values)
        self.store.append([Run(self.waiting, nothing, [b""] * len(values), values)])

    def moved(self) -> list[str]:
        return [record.value.decode() for record in self.store.read(self.target, 0, 10**6, 1 << 30)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "store")
    yield desk
    desk.store.close()


def move_all(elected: Delays, now: float) -> int:
    frames = 0
    while elected.move(now) is not None:
        frames += 1
    return frames


def test_what_is_due_is_moved_in_the_order_of_its_time(desk: Desk) -> None:
    desk.wait((3.0, "c"), (1.0, "a"), (2.0, "b"), (9.0, "later"))
    elected = desk.elect()
    assert elected.next_due == 1.0
    assert elected.move(0.5) is None
    move_all(elected, 5.0)
    assert desk.moved() == ["a", "b", "c"]
    assert elected.next_due == 9.0


def test_the_next_elected_goes_on_where_the_last_one_was(desk: Desk) -> None:
    desk.wait(*((float(n), n) for n in range(1000)))
    move_all(desk.elect(), 499.5)
    elected = desk.elect()
    assert elected.next_due == 500.0
    move_all(elected, 2000.0)
    assert sorted(map(int, desk.moved())) == list(range(1000))
    assert desk.elect().next_due is None


def test_what_comes_meanwhile_is_taken_in(desk: Desk) -> None:
    elected = desk.elect()
    assert elected.next_due is None
    desk.wait((5.0, "x"))
    elected.look()
    assert elected.next_due == 5.0


def test_one_that_is_no_longer_elected_moves_nothing(desk: Desk) -> None:
    desk.wait((1.0, "a"))
    elected = desk.elect()
    desk.lease.page.retired = True
    with pytest.raises(PartitionLostError):
        elected.move(2.0)
    assert not desk.moved()


def test_more_may_wait_than_is_known_by_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delays, "INDEXED", 100)
    dues = [random.choice([1.0, 2.0, random.random() * 50]) for _ in range(2500)]
    for n in range(0, 2500, 500):
        desk.wait(*((due, f"{n + i}") for i, due in enumerate(dues[n : n + 500])))
    elected = desk.elect()
    for now in range(60):
        elected.look()
        move_all(elected, float(now))
        assert len(elected._index) <= 101
        expected = sorted(str(n) for n, due in enumerate(dues) if due <= now)
        assert sorted(desk.moved()) == expected


def test_a_message_for_next_year_does_not_pin_todays(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delays, "_SLACK", 50)
    monkeypatch.setattr(delays, "_CHECKPOINT", 4)
    desk.wait((1e9, "next year"))
    elected = desk.elect()
    for n in range(40):
        desk.wait(*((float(n), f"{n}-{i}") for i in range(20)))
        elected.look()
        move_all(elected, float(n))
    assert len(elected._moved) < 200
    assert desk.store.latest(desk.waiting) - desk.store.earliest(desk.waiting) < 300
    assert desk.store.latest(desk.marks) - desk.store.earliest(desk.marks) < 20
    again = desk.elect()
    assert again.next_due == 1e9
    move_all(again, 2e9)
    assert len(desk.moved()) == len(set(desk.moved())) == 801


@pytest.mark.parametrize("step", range(0, 60, 7))
def test_a_death_between_any_two_frames_loses_and_doubles_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(delays, "_SLACK", 10)
    monkeypatch.setattr(delays, "_CHECKPOINT", 3)
    monkeypatch.setattr(delays, "BATCH", 8)
    desk.wait(*((float(n % 50), n) for n in range(300)))
    append, left = desk.store.append, step

    def dying(runs: Sequence[Run], cursors: Any = (), guard: Callable[[], None] | None = None) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        committed = append(runs, cursors, guard)
        if left == 1:
            left = 0
            raise KeyboardInterrupt
        return committed

    for _ in range(3):
        left = step
        desk.store.append = dying  # type: ignore[method-assign]
        try:
            move_all(desk.elect(), 25.0)
        except KeyboardInterrupt:
            pass
        desk.store.append = append  # type: ignore[method-assign]
    move_all(desk.elect(), 100.0)
    assert sorted(map(int, desk.moved())) == list(range(300))


@pytest.mark.soak
def test_a_million_may_wait(desk: Desk) -> None:
    import resource

    for n in range(0, 1_000_000, 1000):
        desk.wait(*(((n + i) * 7919 % 1_000_000, n + i) for i in range(1000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    elected = desk.elect()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    move_all(elected, 9_999.0)
    assert sorted(map(int, desk.moved())) == sorted(n for n in range(1_000_000) if n * 7919 % 1_000_000 < 10_000)
