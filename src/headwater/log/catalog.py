"""Which topics there are: their partitions' stream ids, how long they keep messages, where they begin.

The catalog is one small file, replaced as a whole under the store's lock and synced before anything in a new
topic can be acknowledged. It holds its content twice, each under a checksum: a flipped bit is found, and
`headwater log repair` has the other copy. A stream id is given once and never again, so a topic created
under an old name shows nothing of the old one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from ..errors import StoreCorruptError, StoreVersionError, TopicNotFoundError
from . import control as ctl
from .control import HEAD, HEADS, RETIRED, Control
from .directory import explained, sync_directory
from .lock import Lock

NAME: Final = "catalog"
VERSION: Final = 1


class TopicEntry(msgspec.Struct, frozen=True):
    """A topic. `streams[i]` carries partition i, whose messages below `starts[i]` are gone.

    `retention` is in seconds, `retention_bytes` counts all partitions together; None keeps for ever.
    """

    name: str
    streams: tuple[int, ...]
    starts: tuple[int, ...]
    retention: float | None = None
    retention_bytes: int | None = None


class TopicWanted(msgspec.Struct, frozen=True):
    """A topic to create."""

    name: str
    partitions: int
    retention: float | None = None
    retention_bytes: int | None = None


class Content(msgspec.Struct, frozen=True):
    """Everything the catalog file says. Stream ids from `free` on were never given."""

    free: int = 1
    topics: tuple[TopicEntry, ...] = ()
    holes: tuple[tuple[int, int, int], ...] = ()  # stream, first, end: offsets that a repair found lost


class Catalog:
    """The catalog as this process knows it, brought up to date when another process changed it."""

    def __init__(self, directory: Path, control: Control, lock: Lock, settle: Callable[[], None]) -> None:
        self._path, self._control, self._lock, self._settle = directory / NAME, control, lock, settle
        self._refreshing = threading.Lock()
        self._seen = -1
        self._content = Content()
        self._topics: dict[str, TopicEntry] = {}
        self._places: dict[int, tuple[str, int]] = {}

    def topics(self) -> dict[str, TopicEntry]:
        """All topics by name. Not to be changed."""
        self._refresh()
        return self._topics

    def topic(self, name: str) -> TopicEntry:
        """Raises TopicNotFoundError."""
        found = self.topics().get(name)
        if found is None:
            raise TopicNotFoundError(name)
        return found

    def place(self, stream: int) -> tuple[str, int] | None:
        """The topic and partition of a stream, None if its topic was deleted."""
        self._refresh()
        return self._places.get(stream)

    def start(self, stream: int) -> int:
        """The first offset of a stream that was not purged or expired. Raises KeyError for a deleted one."""
        self._refresh()
        name, partition = self._places[stream]
        return self._topics[name].starts[partition]

    def is_gone(self, stream: int, first: int, end: int) -> bool:
        """Whether these offsets are known to be gone: expired, purged, or found lost by a repair."""
        place = self.place(stream)
        if place is None or self._topics[place[0]].starts[place[1]] >= end:
            return True
        return any(s == stream and f <= first and end <= e for s, f, e in self._content.holes)

    def create(self, wanted: Sequence[TopicWanted]) -> list[TopicEntry]:
        """Make those that are missing; the others stay as they are. Raises StoreFullError."""
        have = self.topics()
        if any(topic.name not in have for topic in wanted):
            self.change(lambda content: _with_created(content, wanted))
        return [self.topic(topic.name) for topic in wanted]

    def alter(self, name: str, retention: float | None, retention_bytes: int | None) -> TopicEntry:
        """Set how long a topic keeps messages. Raises TopicNotFoundError."""
        self._replace(
            name,
            lambda topic: msgspec.structs.replace(topic, retention=retention, retention_bytes=retention_bytes),
        )
        return self.topic(name)

    def add_partitions(self, name: str, total: int) -> TopicEntry:
        """Have at least this many partitions. Raises TopicNotFoundError."""

        def grown(content: Content) -> Content:
            topic = _find(content, name)
            more = max(0, total - len(topic.streams))
            streams = (*topic.streams, *range(content.free, content.free + more))
            longer = msgspec.structs.replace(topic, streams=streams, starts=topic.starts + (0,) * more)
            return _with_topic(msgspec.structs.replace(content, free=content.free + more), longer)

        self.change(grown)
        return self.topic(name)

    def delete(self, name: str) -> None:
        """Forget a topic and all its messages. Raises TopicNotFoundError."""

        def without(content: Content) -> Content:
            gone = _find(content, name)
            return msgspec.structs.replace(content, topics=tuple(t for t in content.topics if t is not gone))

        self.change(without)

    def advance(self, starts: dict[int, int]) -> None:
        """Move the beginnings of streams forward; none moves back, unknown streams are left out."""

        def moved(topic: TopicEntry) -> TopicEntry:
            pairs = zip(topic.streams, topic.starts, strict=True)
            later = tuple(max(start, starts.get(stream, 0)) for stream, start in pairs)
            return topic if later == topic.starts else msgspec.structs.replace(topic, starts=later)

        if starts:
            self.change(lambda content: msgspec.structs.replace(content, topics=tuple(map(moved, content.topics))))

    def change(self, change: Callable[[Content], Content]) -> None:
        """Replace the catalog by what `change` makes of it, for all processes at once, and for good."""
        with self._lock:
            self._settle()
            before = read_catalog(self._path)
            content = change(before)
            with explained(self._path, "write the catalog"):
                self._control.reach(content.free)
                if content != before:
                    write_catalog(self._path, content)
            self._retire(content)
            self._control.bump(ctl.CATALOG)
        self._refresh()

    def _retire(self, content: Content) -> None:
        words = self._control.words
        live = {stream for topic in content.topics for stream in topic.streams}
        for stream in range(content.free):
            if stream not in live:
                words[HEADS + HEAD * stream] = RETIRED

    def _replace(self, name: str, replace: Callable[[TopicEntry], TopicEntry]) -> None:
        self.change(lambda content: _with_topic(content, replace(_find(content, name))))

    def _refresh(self) -> None:
        seen = self._control.words[ctl.CATALOG]
        if seen != self._seen:
            with self._refreshing:
                self._reload(seen)

    def _reload(self, seen: int) -> None:
        self._content = read_catalog(self._path)
        with explained(self._path, "map the control file"):
            self._control.reach(self._content.free)
        self._topics = {topic.name: topic for topic in self._content.topics}
        self._places = {
            stream: (topic.name, partition)
            for topic in self._content.topics
            for partition, stream in enumerate(topic.streams)
        }
        self._seen = seen


def read_catalog(path: Path) -> Content:
    """What the catalog file says. Raises StoreCorruptError, StoreVersionError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StoreCorruptError(path.parent, NAME, 0, "the topics' names and settings: the file is missing") from None
    good, position = read_copies(data)
    if position is not None:
        what = "the other copy is whole" if good else "both copies"
        raise StoreCorruptError(path.parent, NAME, position, f"the topics' names and settings; {what}")
    assert good is not None
    return decode_catalog(path, *good)


def decode_catalog(path: Path, body: bytes, version: int) -> Content:
    """What a whole copy says. Raises StoreVersionError."""
    if version > VERSION:
        raise StoreVersionError(
            path.parent,
            f"its catalog was written by a newer Headwater (format {version}, this one knows {VERSION}): "
            f"upgrade Headwater, or use another directory",
        )
    return msgspec.json.decode(body, type=Content)


def read_copies(data: bytes) -> tuple[tuple[bytes, int] | None, int | None]:
    """The first whole copy and its format, or None; and where the first damage is, or None."""
    half = len(data) // 2
    damage = None if data[:half] == data[half:] else next((i for i in range(half) if data[i] != data[half + i]), half)
    for copy, at in ((data[:half], 0), (data[half:], half)):
        head, _, body = copy.partition(b"\n")
        try:
            name, version, crc = head.decode().split()
            if name == "headwater-catalog" and int(crc, 16) == crc32(head[: -len(crc)] + body):
                return (body, int(version)), damage
        except ValueError:
            pass
        damage = at if damage is None else damage
    return None, damage or 0


def write_catalog(path: Path, content: Content) -> None:
    """Replace the catalog file: after a death or a power cut there is the old one or the new one."""
    body = msgspec.json.encode(content)
    head = f"headwater-catalog {VERSION} ".encode()
    copy = head + f"{crc32(head + body):08x}\n".encode() + body
    beside = path.with_suffix(".new")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        data = copy + copy
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(beside, path)
    sync_directory(path.parent)


def _find(content: Content, name: str) -> TopicEntry:
    for topic in content.topics:
        if topic.name == name:
            return topic
    raise TopicNotFoundError(name)


def _with_topic(content: Content, topic: TopicEntry) -> Content:
    topics = tuple(topic if old.name == topic.name else old for old in content.topics)
    return msgspec.structs.replace(content, topics=topics)


def _with_created(content: Content, wanted: Sequence[TopicWanted]) -> Content:
    have = {topic.name for topic in content.topics}
    topics, free = list(content.topics), content.free
    for topic in wanted:
        if topic.name not in have:
            have.add(topic.name)
            streams = tuple(range(free, free + topic.partitions))
            free += topic.partitions
            topics.append(
                TopicEntry(topic.name, streams, (0,) * topic.partitions, topic.retention, topic.retention_bytes)
            )
    return msgspec.structs.replace(content, free=free, topics=tuple(topics))
