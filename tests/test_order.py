"""Which message may be next, under every order and any sequence of events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.message import Message
from headwater.order import line_up


def message(partition: int, offset: int, key: str | None = None) -> Message:
    return Message("t", b"", None if key is None else key.encode(), partition=partition, offset=offset)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2)),
        st.tuples(st.just("take"), st.integers(0, 5)),
        st.tuples(st.just("settle"), st.integers(0, 9)),
        st.tuples(st.just("park"), st.integers(0, 9)),
        st.tuples(st.just("unpark"), st.integers(0, 9)),
    ),
    max_size=60,
)


@pytest.mark.parametrize(("order_by", "one_lane"), [("key", False), ("partition", False), ("partition", True)])
@given(steps=steps)
@settings(max_examples=150, deadline=None)
def test_what_has_an_order_is_begun_in_that_order_and_nothing_is_lost(
    order_by: Any, one_lane: bool, steps: list[tuple[str, int]]
) -> None:
    lineup = line_up(order_by, one_lane=one_lane, partitioned=True)
    added: list[Message] = []
    running: list[Message] = []
    parked: list[Message] = []
    done: list[Message] = []
    begun: list[Message] = []

    def take() -> None:
        if lineup.ready and not (one_lane and running):
            one = lineup.ready.popleft()
            running.append(one)
            if one not in begun:
                begun.append(one)

    def settle(number: int) -> None:
        one = running.pop(number % len(running))
        done.append(one)
        lineup.settled(one)

    for step, number in steps:
        if step == "add":
            one = message(number, len(added), f"k{number}")
            added.append(one)
            lineup.add([one])
        elif step == "take":
            take()
        elif step == "settle" and running:
            settle(number)
        elif step == "park" and running:
            one = running.pop(number % len(running))
            parked.append(one)
            lineup.park(one)
        elif step == "unpark" and parked:
            lineup.unpark(parked.pop(number % len(parked)))
        in_work = [one.partition for one in running + parked]
        assert len(in_work) == len(set(in_work))
        waiting = [one for one in lineup if one not in running]
        assert len(waiting) + len(running) + len(parked) + len(done) == len(added)
    while len(done) < len(added):
        while parked:
            lineup.unpark(parked.pop())
        take()
        settle(0)
    for partition in range(3):
        offsets = [one.offset for one in begun if one.partition == partition]
        assert offsets == sorted(offsets)  # type: ignore[type-var]  # ints, all of them


@pytest.mark.parametrize("order_by", [None, "key", "partition", lambda m: m.key])
@pytest.mark.parametrize("one_lane", [False, True])
def test_dropping_a_partition_forgets_all_of_it_and_nothing_else(order_by: Any, one_lane: bool) -> None:
    lineup = line_up(order_by, one_lane=one_lane, partitioned=True)
    first, *others = [message(n % 2, n, f"k{n % 4}") for n in range(12)]
    lineup.add([first, *others])
    assert lineup.ready.popleft() is first
    lineup.park(first)
    dropped = lineup.drop(frozenset({("t", 1)}))
    assert {one.offset for one in dropped} == {1, 3, 5, 7, 9, 11}
    lineup.unpark(first)
    rest = []
    while lineup.ready:
        rest.append(lineup.ready.popleft())
        lineup.settled(rest[-1])
    assert sorted(one.offset or 0 for one in rest) == [0, 2, 4, 6, 8, 10]


def test_dropping_a_retried_message_lets_go_of_what_waits_behind_it_elsewhere() -> None:
    lineup = line_up(lambda m: "all", one_lane=True, partitioned=True)
    first, second = message(0, 0), message(1, 0)
    lineup.add([first, second])
    assert lineup.ready.popleft() is first
    lineup.park(first)
    assert not lineup.ready
    lineup.unpark(first)
    assert lineup.drop(frozenset({("t", 0)})) == [first]
    assert list(lineup.ready) == [second]
