"""The keys and channels that Headwater keeps for itself on a Redis server. Topics begin with none of them."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "hw:"
ANSWERS: Final = "hw.replies."  # topics of requesters: channels, although other topics are streams

FREE: Final = "hw.free"  # a consumer that nobody is: what it has was given back, anybody may take it at once
NEW_TOPICS: Final = "hw:bell:topics"  # a channel that hears of each topic somebody begins to write
DELAYS: Final = "hw:delayed"  # the topics that have delayed messages; the channel that hears of earlier ones
SETTINGS: Final = "hw:topics"  # how long each topic that does not keep all keeps its messages
CLEANING: Final = "hw:cleaning"  # held by whoever trims topics


def bell(group: str) -> str:
    """The channel on which the members of a group hear that something is free."""
    return f"hw:bell:{group}"


def delayed(topic: str) -> str:
    """The sorted set of the delayed messages of a topic: in a cluster, beside it."""
    return f"hw:delayed:{{{topic}}}"


def lock(group: str, topics: tuple[str, ...]) -> str:
    """What the active member of an exclusive group holds."""
    return f"hw:lock:{group}:{','.join(sorted(topics))}"


def patterns(group: str) -> str:
    """The patterns of which a group has resolved where it begins."""
    return f"hw:patterns:{group}"
