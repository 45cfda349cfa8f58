"""What has expired: by age, from the times of frames; by size, counting back from the newest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from . import control as ctl
from .catalog import TopicEntry
from .control import HEAD, HEADS, LOW, Control
from .directory import list_segments
from .reader import Reader
from .segments import Place, Segment


class Tally:
    """Bytes of streams, segment by segment."""

    def __init__(self, directory: Path, control: Control) -> None:
        self._control = control
        self._active = control.end >> 32
        self._end = control.end & LOW
        self.names = [name for name in list_segments(directory) if name.first <= self._active]

    def sizes(self, segment: Segment) -> dict[int, tuple[int, int]]:
        """For each stream with records in a segment: bytes of them, and the offset after the last."""
        begins = segment.header.snapshot
        if segment.last >= self._active:
            return self._active_sizes(segment)
        ends = segment.footer.snapshot
        return {
            stream: (size - begins.place(stream).size, following)
            for stream, following, size in zip(ends.streams, ends.nexts, ends.sizes, strict=True)
        }

    def tail(self, segment: Segment, stream: int) -> int:
        """The byte of a stream's last frame in a segment, 0 if there is none."""
        if segment.last < self._active:
            return segment.footer.tail(stream)
        tail = self._control.words[HEADS + HEAD * stream + ctl.TAIL]
        return tail & LOW if tail >> 32 == segment.first and tail & LOW < self._end else 0

    def limit(self, segment: Segment) -> int:
        """The byte at which a segment's frames end."""
        return self._end if segment.last >= self._active else segment.footer.position

    def _active_sizes(self, segment: Segment) -> dict[int, tuple[int, int]]:
        heads = self._control.words[HEADS:].tolist()
        begins = segment.header.snapshot
        found = {}
        columns = zip(heads[::HEAD], heads[ctl.TAIL :: HEAD], heads[ctl.BYTES :: HEAD], strict=True)
        for stream, (following, tail, size) in enumerate(columns):
            if tail >> 32 == segment.first:
                found[stream] = max(0, size - begins.place(stream).size), following
        return found


def expired(topics: Iterable[TopicEntry], tally: Tally, reader: Reader, control: Control, now: float) -> dict[int, int]:
    """Where the streams of topics with a retention begin now: stream → first offset that has not expired.

    Only streams whose beginning moves are told. `now` is in seconds since the epoch.
    """
    starts: dict[int, int] = {}
    words = control.words
    for topic in topics:
        filled = [
            (stream, start)
            for stream, start in zip(topic.streams, topic.starts, strict=True)
            if words[HEADS + HEAD * stream] > start
        ]
        if topic.retention is not None:
            for stream, start in filled:
                later = reader.offset_at(stream, now - topic.retention)
                if later > start:
                    starts[stream] = later
        if topic.retention_bytes is not None and filled:
            kept = _newest([stream for stream, _ in filled], topic.retention_bytes, tally)
            for stream, start in filled:
                if kept.get(stream, 0) > max(start, starts.get(stream, 0)):
                    starts[stream] = kept[stream]
    return starts


def _newest(streams: Sequence[int], limit: int, tally: Tally) -> dict[int, int]:
    """The first offsets of the newest records that fit into `limit` bytes; the very newest always does."""
    total = 0
    for name in reversed(tally.names):
        with closing(Segment(name)) as segment:
            sizes = tally.sizes(segment)
            here = [stream for stream in streams if stream in sizes]
            size = sum(sizes[stream][0] for stream in here)
            if total + size <= limit:
                total += size
                continue
            return _cut(segment, streams, here, limit - total, total == 0, tally)
    return {}


def _cut(
    segment: Segment, streams: Sequence[int], here: Sequence[int], room: int, newest: bool, tally: Tally
) -> dict[int, int]:
    begins: dict[int, Place] = {stream: segment.header.snapshot.place(stream) for stream in streams}
    starts = {stream: place.next for stream, place in begins.items()}
    runs = sorted(
        (header.position, stream, run.base + run.records, size)
        for stream in here
        for header, run, size in segment.walk(stream, tally.tail(segment, stream), tally.limit(segment))
    )
    while runs:
        _, stream, end, size = runs.pop()
        if size > room and not newest:
            starts[stream] = max(starts[stream], end)
            room = 0
        room, newest = room - size, False
    return starts


def measure(topics: Iterable[TopicEntry], tally: Tally) -> dict[int, int]:
    """About how many bytes the kept records of each stream take, by whole segments."""
    starts = {s: start for topic in topics for s, start in zip(topic.streams, topic.starts, strict=True)}
    found = dict.fromkeys(starts, 0)
    for name in tally.names:
        with closing(Segment(name)) as segment:
            for stream, (size, end) in tally.sizes(segment).items():
                if end > starts.get(stream, end):
                    found[stream] += size
    return found
