"""What topics and groups are called on RabbitMQ."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from ...errors import TopicNameError
from ...topics import DEAD_SUFFIX, INTERNAL_PREFIX, is_internal

HUB: Final = "hw.topics"  # the exchange that every topic passes its messages on to; patterns are bound to it
QUEUE_PREFIX: Final = "hw.queue/"  # a topic of this kind is a queue itself, such as the one somebody takes answers from
REPLY_QUEUE: Final = "hw.reply."
READER_QUEUE: Final = "hw.reader."

_LONGEST: Final = 200  # AMQP takes 255, and the names of groups and of dead letters are longer than their topic's
_FORBIDDEN: Final = re.compile(r"[^a-zA-Z0-9\-_.:,/+ ]")  # pamqp refuses more than RabbitMQ would
_SEPARATOR: Final = ":"
_PATH_FIELD: Final = re.compile(r"\{\w+:path\}")
_FIELD: Final = re.compile(r"\{\w+\}")


def check_topic(name: str) -> None:
    """Raise TopicNameError for a name no exchange can have."""
    if not name or name != name.strip():
        raise TopicNameError(name, "a name is not empty, and has no blanks around it")
    if _FORBIDDEN.search(name):
        raise TopicNameError(name, "the client carries letters of English, digits, blanks and any of - _ . : , / +")
    if name.startswith("amq.") or name == HUB:
        raise TopicNameError(name, f"names that begin with amq. are RabbitMQ's own, and {HUB} is Headwater's")
    if len(name) > _LONGEST:
        raise TopicNameError(name, f"it has more than {_LONGEST} characters")


def keeps(topic: str, queue_type: str) -> bool:
    """Whether a stream keeps what is published to a topic, to be read again. Dead letters are always kept."""
    return topic.endswith(DEAD_SUFFIX) if is_internal(topic) else queue_type == "stream"


def group_queue(topic: str, group: str) -> str:
    """The queue of a group on a topic or pattern. What a name cannot carry is quoted, so that no two share one."""
    quoted = quote(group, safe="@ ").replace("%", "+").replace("~", "+7E")
    return f"{wildcard(topic).replace('*', '@')}{_SEPARATOR}{quoted}"


def topic_and_group(queue: str) -> tuple[str, str] | None:
    """The topic, or the binding key of a pattern, and the group whose queue this is, or None."""
    topic, separator, group = queue.rpartition(_SEPARATOR)
    if not separator or queue.startswith(INTERNAL_PREFIX):
        return None
    return topic.replace("@", "*"), unquote(group.replace("+", "%"))


def wildcard(pattern: str) -> str:
    """A pattern as a binding key: `orders.{region}.created` is `orders.*.created`, `{rest:path}` is `#`.

    It may take more than the pattern, which has the last word: a wildcard of AMQP stands for whole words.
    """
    words = _PATH_FIELD.sub("\0", pattern).split(".")
    return ".".join("#" if "\0" in word else "*" if _FIELD.search(word) else word for word in words)


def takes(key: str, topic: str) -> bool:
    """Whether a binding key has this topic's messages: `*` is one word, `#` any number of them."""
    return _takes(key.split("."), topic.split("."))


def _takes(key: list[str], words: list[str]) -> bool:
    if not key:
        return not words
    if key[0] == "#":
        return any(_takes(key[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and key[0] in ("*", words[0]) and _takes(key[1:], words[1:])
