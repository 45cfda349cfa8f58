"""What topics are called here and on the server, and what is subscribed to for a name with fields."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from ...errors import TopicNameError
from ...topics import INTERNAL_PREFIX, is_internal, is_pattern, match

_LONGEST: Final = 65_535  # bytes
_MARKS: Final = ("+", "#", "{", "}", "\0")


class Names:
    """Translates names.

    With `mapped` the levels of a name may be written with dots: `orders.eu` is `orders/eu` on the server. A name
    with a slash is the server's own and travels as it is, dots included.
    """

    def __init__(self, mapped: bool) -> None:
        self.mapped = mapped
        self.out = lru_cache(maxsize=4096)(self._out)

    def _out(self, name: str) -> str:
        """The topic on the server. Raises TopicNameError."""
        return self.native(self.checked(name))

    def checked(self, name: str) -> str:
        if not name or name != name.strip():
            raise TopicNameError(name, "a name is not empty, and has no blanks around it")
        for mark in _MARKS:
            if mark in name:
                raise TopicNameError(name, f"{mark!r} has a meaning of its own, a name cannot carry it")
        if name.startswith("$"):
            raise TopicNameError(name, "what begins with '$' belongs to the server")
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise TopicNameError(name, "it is no text that can be written as UTF-8") from error
        if size > _LONGEST:
            raise TopicNameError(f"{name[:40]}...", f"it has {size} bytes, at most {_LONGEST} are possible")
        return name

    def native(self, name: str) -> str:
        return name.replace(".", "/") if self._has_dots(name) else name

    def _has_dots(self, name: str) -> bool:
        return self.mapped and "/" not in name

    def filter_of(self, topic: str) -> str:
        """What to subscribe to: at least what this name or pattern means, where it says less than MQTT can."""
        if not is_pattern(topic):
            return self.native(topic)
        levels = []
        for level in self.native(topic).split("/"):
            if ":path}" in level:
                levels.append("#")
                break
            levels.append("+" if "{" in level else level)
        return "/".join(levels)

    def name_of(self, native: str, topics: tuple[str, ...]) -> str | None:
        """What readers of these names and patterns call a topic of the server; None if it is none of theirs."""
        for topic in topics:
            name = native.replace("/", ".") if self._has_dots(topic) else native
            if match(topic, name) is not None and not (is_pattern(topic) and self._is_internal(native)):
                return name
        return None

    def _is_internal(self, native: str) -> bool:
        return is_internal(native) or (self.mapped and is_internal(native.replace("/", ".")))

    def replies(self, mark: str) -> str:
        """Where the requester of this mark takes its answers, as the server calls it."""
        return self.native(f"{INTERNAL_PREFIX}replies.{mark}")
