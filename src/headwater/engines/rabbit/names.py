"""What topics and groups are called on RabbitMQ."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from ...errors import TopicNameError
from ...topics import INTERNAL_PREFIX

HUB: Final = "hw.topics"  # the exchange that every topic passes its messages on to; patterns are bound to it
QUEUE_PREFIX: Final = "hw.queue/"  # a topic of this kind is a queue itself, such as the one somebody takes answers from
REPLY_QUEUE: Final = "hw.reply."
READER_QUEUE: Final = "hw.reader."

_LONGEST: Final = 200  # bytes; AMQP takes 255, and the names of groups and of dead letters are longer than their topic's
_SEPARATOR: Final = ":"
_PATH_FIELD: Final = re.compile(r"\{\w+:path\}")
_FIELD: Final = re.compile(r"\{\w+\}")


def check_topic(name: str) -> None:
    """Raise TopicNameError for a name no exchange can have."""
    if not name or name != name.strip() or "{" in name or "}" in name:
        raise TopicNameError(name, "a name is not empty, and has neither braces nor blanks around it")
    if name.startswith("amq.") or name == HUB:
        raise TopicNameError(name, "names that begin with amq. are RabbitMQ's own, and hw.topics is Headwater's")
    if len(name.encode()) > _LONGEST:
        raise TopicNameError(name, f"it has more than {_LONGEST} bytes")


def group_queue(topic: str, group: str) -> str:
    """The queue of a group on a topic or pattern; the group is quoted, so that no two pairs share a queue."""
    return f"{wildcard(topic)}{_SEPARATOR}{quote(group, safe=' /@')}"


def topic_and_group(queue: str) -> tuple[str, str] | None:
    """The topic and the group whose queue this is, or None."""
    topic, separator, group = queue.rpartition(_SEPARATOR)
    return (topic, unquote(group)) if separator and not queue.startswith(INTERNAL_PREFIX) else None


def wildcard(pattern: str) -> str:
    """A pattern as a binding key: `orders.{region}.created` is `orders.*.created`, `{rest:path}` is `#`.

    It may take more than the pattern, which has the last word: a wildcard of AMQP stands for whole words.
    """
    words = _PATH_FIELD.sub("\0", pattern).split(".")
    return ".".join("#" if "\0" in word else "*" if _FIELD.search(word) else word for word in words)
