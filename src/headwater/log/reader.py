"""Where a stream's records are, and getting them: one process's view of the journal, for reading.

For each (segment, stream) that is read an index of its frames is built by walking the stream's own frames
backwards from the last one, so a reader pays for its own topic only. Indexes and open segments are kept
within bounds, the oldest use goes first.

Every read verifies the checksums of what it returns. What does not match raises StoreCorruptError, again
and again, until the store is repaired: damage is never skipped.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from ..errors import StoreCorruptError, StoreError
from . import control as ctl
from . import frames
from .control import HEAD, HEADS, LOW, RETIRED, Control, unseal
from .directory import SegmentName, explain, explained, list_segments, segment_path
from .frames import BadFrameError, Chunk
from .segments import Segment, SegmentHeader

_T = TypeVar("_T")

_OPEN_SEGMENTS: Final = 48
_INDEXED_FRAMES: Final = 1 << 20  # over all indexes; 12 bytes each
_LOOKS: Final = 10
_HALF_READ: Final = 16  # decoded runs kept for readers that take less than a run at a time


class _MovedError(Exception):
    """A segment is no longer where it was: the cleaner joined it to another."""


class _Index:
    """The frames of one stream in one segment: where each begins, and the offset after its last record."""

    __slots__ = ("complete", "ends", "positions")

    def __init__(self) -> None:
        self.positions, self.ends = array("I"), array("Q")
        self.complete = False  # nothing will be added: the segment is sealed


class Reader:
    """Reads streams of one store, up to what readers may see. Safe for several threads."""

    def __init__(
        self,
        directory: Path,
        control: Control,
        describe: Callable[[int, int, int | None], str],
        is_gone: Callable[[int, int, int], bool],
    ) -> None:
        self._directory, self._control = directory, control
        self._describe, self._is_gone = describe, is_gone
        self._lock = threading.Lock()
        self._names: list[SegmentName] = []
        self._firsts: list[int] = []
        self._seen = -1
        self._segments: OrderedDict[int, Segment] = OrderedDict()
        self._indexes: OrderedDict[tuple[int, int], _Index] = OrderedDict()
        self._indexed = 0
        self._half_read: OrderedDict[int, tuple[tuple[int, int], Chunk]] = OrderedDict()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._forget()

    def refresh(self) -> None:
        """Let go of segments that the cleaner replaced, so that their space becomes free."""
        with self._lock:
            self._relist(0)

    # What there is

    def first(self, stream: int) -> int:
        """The first offset that the segments can still hold."""
        return self._retried(lambda: self._first(stream))

    def _first(self, stream: int) -> int:
        self._relist(0)
        return self._start(0, stream)

    def latest(self, stream: int) -> int:
        """The offset that follows the last record readers may see."""
        words = self._control.words
        visible = unseal(words[ctl.VISIBLE])
        following = words[HEADS + HEAD * stream]
        number, end, _, _ = self._control.state()
        if end == visible and words[ctl.APPLIED] == number:
            return 0 if following == RETIRED else following
        return self._retried(lambda: self._latest(stream, visible))

    def _latest(self, stream: int, visible: int) -> int:
        number = self._relist(visible)
        index = self._index(number, stream)
        seen = self._seen_of(index, number, visible)
        return index.ends[seen - 1] if seen else self._start(number, stream)

    def offset_at(self, stream: int, time: float) -> int:
        """The first offset whose record is of this time or later, `latest` if there is none."""
        visible = unseal(self._control.words[ctl.VISIBLE])
        found = self._retried(lambda: self._offset_at(stream, int(time * 1e6), visible))
        return self.latest(stream) if found is None else found

    def _offset_at(self, stream: int, moment: int, visible: int) -> int | None:
        last = self._relist(visible)
        number = max(0, self._bisect(last, lambda i: self._header(i, stream).time < moment))
        while number <= last:
            index = self._index(number, stream)
            low, high = 0, self._seen_of(index, number, visible)
            seen = high
            while low < high:
                middle = (low + high) // 2
                if self._frame(number, index, middle, stream)[2].time < moment:
                    low = middle + 1
                else:
                    high = middle
            if low < seen:
                buffer, at, header = self._frame(number, index, low, stream)
                return frames.read_run(buffer, at, frames.find_run(buffer, at, header, stream)).base
            number += 1
        return None

    # Reading

    def read(self, stream: int, offset: int, limit: int, max_bytes: int) -> list[Chunk]:
        """Records from `offset` on, as they were appended together: at most `limit`, about `max_bytes`.

        Begins at the next record that is there; the first frame is returned whatever its size.
        """
        if offset >= self._control.words[HEADS + HEAD * stream]:
            return []
        return self._retried(lambda: self._read(stream, offset, limit, max_bytes))

    def _read(self, stream: int, offset: int, limit: int, max_bytes: int) -> list[Chunk]:
        visible = unseal(self._control.words[ctl.VISIBLE])
        last = self._relist(visible)
        if (newest := self._newest(last, stream, offset, limit, visible)) is not None:
            return [newest]
        chunks: list[Chunk] = []
        number = self._holding(stream, offset, last)
        while number <= last:
            index = self._index(number, stream)
            seen = self._seen_of(index, number, visible)
            segment, end = self._segment(number), self._limit(number)
            for i in range(bisect_right(index.ends, offset), seen):
                position = index.positions[i]
                chunk = self._half(stream, number, position)
                if chunk is None:
                    try:
                        chunk = _decode(segment, position, stream, end)
                    except BadFrameError as error:
                        raise self._damaged_frame(number, error, stream, index, i) from error
                if offset < chunk.base:
                    self._check_gap(number, stream, offset, chunk.base)
                if offset > chunk.base or limit < len(chunk.values):
                    chunk = self._part(stream, number, position, chunk, offset, limit)
                chunks.append(chunk)
                count = len(chunk.values)
                offset, limit = chunk.base + count, limit - count
                max_bytes -= sum(map(len, chunk.values))
                if limit <= 0 or max_bytes <= 0:
                    return chunks
            number = max(number + 1, self._holding(stream, offset, last))
        if not chunks:
            self._check_gap(last, stream, offset, self._latest(stream, visible))
        return chunks

    def _newest(self, number: int, stream: int, offset: int, limit: int, visible: int) -> Chunk | None:
        """The stream's last frame, for a reader that has everything before it: found without an index.

        None for anyone else. Damage is left to those who can say what it affects.
        """
        words, at = self._control.words, HEADS + HEAD * stream
        tail = words[at + ctl.TAIL]
        if words[at] - offset > limit or not tail or tail >= visible or tail >> 32 != visible >> 32:
            return None  # not at the end, or the end is in another segment
        try:
            chunk = _decode(self._segment(number), tail & LOW, stream, visible & LOW)
        except BadFrameError:
            return None
        return chunk if chunk.base == offset and len(chunk.values) <= limit else None

    def _check_gap(self, number: int, stream: int, first: int, end: int) -> None:
        """Raise StoreCorruptError if offsets are not there and nobody knows why."""
        if first < end and not self._is_gone(stream, first, end):
            name = self._names[number].path.name
            what = f"records before this are missing; {self._describe(stream, first, end)}"
            raise StoreCorruptError(self._directory, name, 0, what)

    def _holding(self, stream: int, offset: int, last: int) -> int:
        """The only segment that can hold an offset of a stream: the last that began before it came."""
        if self._start(last, stream) <= offset:
            return last
        return max(0, self._bisect(last, lambda i: self._start(i, stream) <= offset))

    def _retried(self, look: Callable[[], _T]) -> _T:
        """Look again where a segment was replaced in the meantime."""
        with self._lock:
            for _ in range(_LOOKS):
                try:
                    return look()
                except _MovedError:
                    self._seen = -1
        raise StoreError(self._directory, "segments vanish while they are read: is something else deleting files here?")

    def _half(self, stream: int, number: int, position: int) -> Chunk | None:
        """A run that was decoded before and not taken as a whole."""
        kept = self._half_read.get(stream)
        return kept[1] if kept is not None and kept[0] == (self._names[number].first, position) else None

    def _part(self, stream: int, number: int, position: int, whole: Chunk, offset: int, limit: int) -> Chunk:
        low = max(0, offset - whole.base)
        high = low + limit
        if high < len(whole.values):
            self._half_read[stream] = (self._names[number].first, position), whole
            if len(self._half_read) > _HALF_READ:
                self._half_read.popitem(last=False)
        else:
            self._half_read.pop(stream, None)
        return Chunk(
            whole.base + low,
            whole.time,
            whole.keys[low:high],
            whole.headers[low:high],
            whole.values[low:high],
        )

    # Finding

    def _seen_of(self, index: _Index, number: int, visible: int) -> int:
        """How many of an index's frames begin before `visible`."""
        if self._names[number].last < visible >> 32:
            return len(index.positions)
        seen = len(index.positions)
        while seen and index.positions[seen - 1] >= visible & LOW:
            seen -= 1
        return seen

    def _index(self, number: int, stream: int) -> _Index:
        name = self._names[number]
        key = (name.first, stream)
        index = self._indexes.get(key)
        if index is None:
            index = self._indexes[key] = _Index()
        else:
            self._indexes.move_to_end(key)
        if not index.complete:
            self._extend(index, number, stream)
        return index

    def _extend(self, index: _Index, number: int, stream: int) -> None:
        """Add the frames behind those the index has, walking back from the stream's last frame."""
        active = self._control.end >> 32
        segment = self._names[number].first
        tail = self._control.words[HEADS + HEAD * stream + ctl.TAIL]
        sealed = self._names[number].last < active
        position = tail & LOW if tail >> 32 == segment else 0
        if sealed:
            position = self._footer_tail(number, stream)
        known = index.positions[-1] if index.positions else 0
        positions, ends = array("I"), array("Q")
        try:
            if position > known:
                for header, run, _ in self._segment(number).walk(stream, position, self._limit(number)):
                    positions.append(header.position)
                    ends.append(run.base + run.records)
                    if run.previous <= known:
                        break
        except BadFrameError as error:
            first = index.ends[-1] if index.ends else self._start(number, stream)
            raise self._damaged(number, error, stream, first, min(ends, default=None)) from error
        positions.reverse()
        ends.reverse()
        index.positions.extend(positions)
        index.ends.extend(ends)
        index.complete = sealed
        self._indexed += len(positions)
        while self._indexed > _INDEXED_FRAMES and len(self._indexes) > 1:
            _, dropped = self._indexes.popitem(last=False)
            self._indexed -= len(dropped.positions)

    def _frame(self, number: int, index: _Index, i: int, stream: int) -> tuple[bytes, int, frames.Header]:
        try:
            return self._segment(number).frame(index.positions[i], self._limit(number))
        except BadFrameError as error:
            raise self._damaged_frame(number, error, stream, index, i) from error

    def _damaged_frame(
        self, number: int, error: BadFrameError, stream: int, index: _Index, i: int
    ) -> StoreCorruptError:
        first = index.ends[i - 1] if i else self._start(number, stream)
        return self._damaged(number, error, stream, first, index.ends[i])

    def _bisect(self, last: int, before: Callable[[int], bool]) -> int:
        """The last segment for which `before` holds, -1 if there is none."""
        low, high = 0, last + 1
        while low < high:
            middle = (low + high) // 2
            if before(middle):
                low = middle + 1
            else:
                high = middle
        return low - 1

    # Segments

    def _start(self, number: int, stream: int) -> int:
        """The offset at which a stream stood when a segment began."""
        return self._header(number, stream).snapshot.place(stream).next

    def _header(self, number: int, stream: int) -> SegmentHeader:
        try:
            return self._segment(number).header
        except BadFrameError as error:
            raise self._damaged(number, error, stream, None, None) from error

    def _footer_tail(self, number: int, stream: int) -> int:
        try:
            return self._segment(number).footer.tail(stream)
        except BadFrameError as error:
            raise self._damaged(number, error, stream, self._start(number, stream), None) from error

    def _limit(self, number: int) -> int:
        """The byte at which the frames of a segment end; those from there on may still be written."""
        end = self._control.end
        segment = self._segment(number)
        return end & LOW if segment.last >= end >> 32 else segment.footer.position

    def _segment(self, number: int) -> Segment:
        name = self._names[number]
        segment = self._segments.get(name.first)
        if segment is None:
            try:
                segment = Segment(name)
            except FileNotFoundError:
                raise _MovedError from None
            except OSError as error:
                raise explain(name.path, "read this segment", error) from error
            self._segments[name.first] = segment
            if len(self._segments) > _OPEN_SEGMENTS:
                self._drop(next(iter(self._segments)))
        else:
            self._segments.move_to_end(name.first)
        return segment

    def _relist(self, visible: int) -> int:
        """Know the segments there are; the number of the one in which `visible` lies."""
        if self._control.words[ctl.SEGMENTS] != self._seen or visible >> 32 > self._names[-1].last:
            self._read_names()
        return bisect_right(self._firsts, visible >> 32) - 1

    def _read_names(self) -> None:
        """List the segments; again if a roll or a cleaning came in between and a name may have escaped."""
        words = self._control.words
        while True:
            seen, active = words[ctl.SEGMENTS], self._control.end >> 32
            with explained(self._directory, "list the segments"):
                names = list_segments(self._directory)
            if words[ctl.SEGMENTS] == seen and self._control.end >> 32 == active:
                break
        if not any(name.first <= active <= name.last for name in names):
            missing = segment_path(self._directory, active).name
            raise StoreCorruptError(self._directory, missing, 0, "the active segment is missing")
        self._seen = seen
        self._names = [name for name in names if name.first <= active]
        self._firsts = [name.first for name in self._names]
        same = {name.first: name.path for name in self._names}
        for first, segment in list(self._segments.items()):
            if not segment.is_at(same.get(first)):
                self._drop(first)
                self._half_read.clear()

    def _drop(self, first: int) -> None:
        self._segments.pop(first).close()
        for key in [key for key in self._indexes if key[0] == first]:
            self._indexed -= len(self._indexes.pop(key).positions)

    def _forget(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()
        self._indexes.clear()
        self._half_read.clear()
        self._indexed = 0
        self._seen = -1
        self._names, self._firsts = [], []

    def _damaged(
        self, number: int, error: BadFrameError, stream: int, first: int | None, end: int | None
    ) -> StoreCorruptError:
        affected = f"{error.reason}; {self._describe(stream, first or 0, end)}"
        return StoreCorruptError(self._directory, self._names[number].path.name, error.position, affected)


def _decode(segment: Segment, position: int, stream: int, limit: int) -> Chunk:
    """A stream's run in the frame at this byte."""
    buffer, at, header = segment.frame(position, limit)
    index = frames.find_run(buffer, at, header, stream)
    if index < 0:
        raise BadFrameError(position, "a stream's frame does not hold it")
    run = frames.read_run(buffer, at, index)
    body = segment.body(buffer, at, header, run, index, limit)
    return Chunk(run.base, header.time / 1e6, *frames.decode_body(body, run.records, run.columns))
