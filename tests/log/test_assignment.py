"""Who should have which partition."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.log.assignment import Wanted, balanced


def test_partitions_are_shared_evenly() -> None:
    owners = balanced([Wanted("orders", n, ["a", "b", "c"]) for n in range(8)])
    assert sorted(Counter(owners.values()).values()) == [2, 3, 3]


def test_single_partition_topics_are_shared_too() -> None:
    owners = balanced([Wanted(f"topic-{n}", 0, ["a", "b"], owner="a") for n in range(10)])
    assert Counter(owners.values()) == {"a": 5, "b": 5}


def test_an_exclusive_topic_goes_to_the_eldest_whole() -> None:
    owners = balanced([Wanted("orders", n, ["old", "new"], "new", True) for n in range(4)])
    assert set(owners.values()) == {"old"}


def test_nobody_gets_what_nobody_wants() -> None:
    assert balanced([Wanted("orders", 0, [])]) == {("orders", 0): ""}


def test_a_member_that_leaves_moves_only_its_own() -> None:
    before = balanced([Wanted("orders", n, ["a", "b", "c"]) for n in range(9)])
    after = balanced([Wanted("orders", n, ["a", "b"], before["orders", n]) for n in range(9)])
    assert all(after[at] == owner for at, owner in before.items() if owner != "c")


def test_a_member_that_comes_takes_only_its_share() -> None:
    before = balanced([Wanted("orders", n, ["a", "b"]) for n in range(8)])
    after = balanced([Wanted("orders", n, ["a", "b", "c"], before["orders", n]) for n in range(8)])
    assert sum(after[at] != before[at] for at in before) == 2


@given(
    st.dictionaries(
        st.sampled_from(["orders", "bills", "files"]),
        st.tuples(st.integers(1, 12), st.sets(st.sampled_from("abcde"), min_size=1)),
    ),
    st.lists(st.sampled_from(["a", "b", "c", "d", "e", ""]), min_size=36, max_size=36),
)
@settings(max_examples=200, deadline=None)
def test_every_partition_has_one_willing_owner_and_no_topic_is_lopsided(
    topics: dict[str, tuple[int, set[str]]], owners: list[str]
) -> None:
    wanted = [
        Wanted(topic, partition, sorted(candidates), owners.pop())
        for topic, (partitions, candidates) in topics.items()
        for partition in range(partitions)
    ]
    result = balanced(wanted)
    assert result.keys() == {(item.topic, item.partition) for item in wanted}
    for topic, (_, candidates) in topics.items():
        counts = Counter(dict.fromkeys(candidates, 0))
        counts.update(owner for (name, _), owner in result.items() if name == topic)
        assert counts.keys() == candidates
        assert max(counts.values()) - min(counts.values()) <= 1
