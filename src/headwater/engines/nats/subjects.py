"""Topics as NATS subjects, and the names of the streams and consumers that keep them."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

from ...errors import TopicNameError
from ...topics import is_pattern

INBOX: Final = "_INBOX."  # subjects of those who wait for an answer: never kept
RESERVED: Final = "$"  # the server's own subjects begin with it
LATER: Final = "hw.later."  # where delayed messages wait, each on a subject of its own
LONGEST: Final = 512  # bytes of a subject; a line of the protocol has 4096

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_BLANK: Final = re.compile(r"[\s\x00-\x1f\x7f]")


@lru_cache(maxsize=4096)
def check(name: str) -> None:
    """Raise TopicNameError for a name that is no subject."""
    if not name or _BLANK.search(name) or "{" in name or "}" in name:
        raise TopicNameError(name, "a name is not empty, and has neither braces nor blanks")
    tokens = name.split(".")
    if not all(tokens) or name.startswith(RESERVED) or "*" in name or ">" in name:
        raise TopicNameError(name, "levels between dots are not empty; * and > are wildcards, and $… is the server's")
    if len(name.encode()) > LONGEST:
        raise TopicNameError(name, f"it is longer than {LONGEST} bytes")


def subject_of(topic: str) -> str:
    """The subject that takes in all a topic stands for: fields become wildcards."""
    if not is_pattern(topic):
        return topic
    tokens: list[str] = []
    for token in topic.split("."):
        if ":path}" in token:
            return ".".join([*tokens, ">"])
        tokens.append("*" if is_pattern(token) else token)
    return ".".join(tokens)


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that matches `narrow` matches `wide`, too."""
    theirs = narrow.split(".")
    ours = wide.split(".")
    for index, token in enumerate(ours):
        if token == ">":
            return len(theirs) > index
        if index >= len(theirs) or theirs[index] == ">" or token not in ("*", theirs[index]):
            return False
    return len(ours) == len(theirs)


def stream_name(topic: str) -> str:
    """What the stream of a topic is called, as long as no other has that name."""
    return _UNSAFE.sub("_", topic)[:200]


def other_stream_name(topic: str) -> str:
    """What it is called if another has the name: two topics may have the same."""
    return f"{stream_name(topic)}-{_digest(topic)}"


def consumer_name(group: str, topic: str) -> str:
    """What the consumer of a group on one topic or pattern is called.

    A consumer has one filter: a second subscriber of the group with another topic must not find the first one's.
    """
    return f"{_UNSAFE.sub('_', group)[:100]}-{_digest(group, topic)}"


def schedules_of(subject: str) -> str:
    """The subjects on which the delayed messages of this one wait."""
    return f"{LATER}{subject}" if subject.endswith(">") else f"{LATER}{subject}.*"


def schedule_of(topic: str, mark: str) -> str:
    """The subject on which one delayed message waits: a later one on the same would replace it."""
    return f"{LATER}{topic}.{mark}"


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=5).hexdigest()
