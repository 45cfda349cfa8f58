"""Who should have which partition: balanced, and with as few moves as possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Wanted(NamedTuple):
    """A partition, who may have it (eldest first) and who has it now. An exclusive one goes to the eldest."""

    topic: str
    partition: int
    candidates: Sequence[str]
    owner: str = ""
    exclusive: bool = False


def balanced(wanted: Sequence[Wanted]) -> Mapping[tuple[str, int], str]:
    """An owner for each partition, or "" where nobody wants it.

    Owners keep what they have unless somebody has two fewer, first within the topic, then in all. A pure
    function of its arguments: whoever computes it gets the same.
    """
    owners: dict[tuple[str, int], str] = {}
    in_all: Counter[str] = Counter()
    in_topic: Counter[tuple[str, str]] = Counter()

    def give(item: Wanted, to: str) -> None:
        before = owners.get((item.topic, item.partition), "")
        if before:
            in_all[before] -= 1
            in_topic[before, item.topic] -= 1
        owners[item.topic, item.partition] = to
        in_all[to] += 1
        in_topic[to, item.topic] += 1

    def least(item: Wanted) -> str:
        return min(item.candidates, key=lambda who: (in_topic[who, item.topic], in_all[who]))

    shared = []
    for item in wanted:
        if not item.candidates:
            owners[item.topic, item.partition] = ""
        elif item.exclusive:
            give(item, item.candidates[0])
        else:
            shared.append(item)
    for item in shared:
        if item.owner in item.candidates:
            give(item, item.owner)
    for item in shared:
        if item.owner not in item.candidates:
            give(item, least(item))

    # Each move lowers the imbalance within a topic, or leaves it and lowers the one in all: this ends.
    moved = True
    while moved:
        moved = False
        for item in shared:
            owner, other = owners[item.topic, item.partition], least(item)
            surplus = in_topic[owner, item.topic] - in_topic[other, item.topic]
            if surplus >= 2 or (surplus == 1 and in_all[owner] - in_all[other] >= 2):
                give(item, other)
                moved = True
    return owners
