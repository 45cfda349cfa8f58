"""How a frame is committed: the one place that changes the journal while the store is in use.

Under the lock: if the last owner died between its commit and its effects, see them through from its frame;
write the frame at the committed end; fill the idle state slot; store its number - that store is the commit;
then move the heads of the streams, and readers' view. A death before the commit leaves bytes that the next
frame overwrites; a death after it is seen through by whoever comes next.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import msgspec

from ..errors import StoreCorruptError
from . import control as ctl
from . import frames
from .control import HEAD, HEADS, LOW, RETIRED, Control, State, seal, unseal
from .directory import SegmentName, explain, explained, list_segments, segment_path
from .frames import BadFrameError, CursorCommit, Draft
from .lock import Lock
from .segments import Footer, Segment, SegmentHeader, Snapshot, create_segment, seal_segment, write_all

Durability = Literal["fsync", "process"]
ApplyCursors = Callable[[Sequence[CursorCommit], int], None]

_CHUNK: Final = 4 << 20  # bytes of a segment that get their place on disk at once


class Committed(msgspec.Struct, frozen=True, gc=False):
    """An accepted append: the first offset of each run as given, the time in seconds, where the frame ends.

    Hand `end` to `sync` before acknowledging anything to anybody.
    """

    bases: Sequence[int]
    time: float
    end: int


class RetiredStreamError(Exception):
    """An append to a stream whose topic was deleted, or that never was."""

    def __init__(self, stream: int) -> None:
        super().__init__(f"stream {stream} is gone")
        self.stream = stream


class Journal:
    """The journal of one store, for writing. Safe for several threads and processes."""

    def __init__(
        self,
        directory: Path,
        control: Control,
        lock: Lock,
        durability: Durability,
        segment_bytes: int,
        clock: Callable[[], float],
        apply_cursors: ApplyCursors | None,
    ) -> None:
        self.directory, self.control, self.lock = directory, control, lock
        self._process_only = durability == "process"
        self.segment_bytes, self.clock, self._apply_cursors = segment_bytes, clock, apply_cursors
        self._pid = os.getpid()
        self._segment, self._fd = -1, -1  # the segment written to
        self._last: State = (-1, 0, 0, 0)  # the last state whose effects were seen through
        self._reader: Segment | None = None  # the same one, for verifying
        self._verified: set[int] = set()  # streams whose head was found to agree with the journal

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd, self._segment = self._fd, -1, -1
        if fd >= 0:
            os.close(fd)

    # Appending

    def append(self, draft: Draft, guard: Callable[[], None] | None = None) -> Committed:
        """Commit a frame: all of it or nothing. Survives the death of this process at any moment.

        Raises StoreFullError with nothing written, StoreBusyError, RetiredStreamError, and what `guard` raises
        when it is asked under the lock.
        """
        now = int(self.clock() * 1e6)
        with self.lock:
            words = self.control.words
            words[ctl.OWNER] = self._pid
            if words[ctl.COMMIT] != self._last[0] or words[ctl.FAILED]:
                self._catch_up()
            if guard is not None:
                guard()
            number, end, frame, last = self._last
            if now < last:
                now = last
            bases, previous = self._places(draft, end >> 32)
            if (end & LOW) + draft.length > self.segment_bytes and frame:
                number, end, _, _ = self.roll()
                previous = [0] * len(bases)
            number += 1
            segment, position = end >> 32, end & LOW
            durable = unseal(words[ctl.DURABLE])
            meta = frames.stamp(draft, segment, position, bases, previous, now, number, durable)
            self._write(segment, position, meta, draft)
            behind = end + draft.length
            self.control.commit(number, behind, end, now)
            self._apply(zip(draft.streams, draft.counts, bases, draft.sizes, strict=True), end, number, draft.cursors)
            self._last = number, behind, end, now
            if self._process_only:
                words[ctl.VISIBLE] = seal(behind)
        if draft.order is not None:
            bases = [bases[place] for place in draft.order]
        return Committed(bases, now / 1e6, behind)

    def _catch_up(self) -> None:
        """Know the state that another process left. Under the lock."""
        self.settle()
        if self.control.words[ctl.FAILED]:
            self.control.check()
        self._last = self.control.state()

    def _places(self, draft: Draft, segment: int) -> tuple[list[int], list[int]]:
        words, verified = self.control.words, self._verified
        bases, previous = [], []
        for stream in draft.streams:
            if stream not in verified:
                self._verify_head(stream)
                verified.add(stream)
            at = HEADS + HEAD * stream
            base, tail = words[at], words[at + ctl.TAIL]
            if base == RETIRED:
                raise RetiredStreamError(stream)
            bases.append(base)
            previous.append(tail & LOW if tail >> 32 == segment else 0)
        return bases, previous

    def _write(self, segment: int, position: int, meta: bytes, draft: Draft) -> None:
        if segment != self._segment:
            self._open(segment)
        words, end = self.control.words, position + draft.length
        try:
            if end > words[ctl.ALLOCATED]:
                self._allocate(end)
            written = os.pwritev(self._fd, (meta, draft.body), position)
            if written != draft.length:
                write_all(self._fd, [(meta + draft.body)[written:]], position + written)  # or say why not
        except OSError as error:
            path = segment_path(self.directory, segment)
            raise explain(path, "write this message", error) from error

    def _allocate(self, end: int) -> None:
        words = self.control.words
        start = words[ctl.ALLOCATED]
        if start > end:
            start = end
        try:
            os.posix_fallocate(self._fd, start, max(end - start, _CHUNK))
            words[ctl.ALLOCATED] = max(end, start + _CHUNK)
        except OSError:
            os.posix_fallocate(self._fd, start, end - start)  # just what is needed, or there is no room
            words[ctl.ALLOCATED] = end

    def _open(self, segment: int) -> None:
        self.close()
        path = segment_path(self.directory, segment)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise explain(path, "write to the active segment", error) from error
        self._segment = segment

    def _apply(
        self,
        runs: Iterable[tuple[int, int, int, int]],
        frame: int,
        number: int,
        cursors: Sequence[CursorCommit],
    ) -> None:
        words = self.control.words
        for stream, count, base, size in runs:
            at = HEADS + HEAD * stream
            words[at + ctl.BYTES] += size
            words[at + ctl.TAIL] = frame
            words[at] = base + count
        if cursors:
            if not words[ctl.UNAPPLIED]:
                words[ctl.UNAPPLIED] = seal(frame)
            if self._apply_cursors is not None:
                self._apply_cursors(cursors, number)
            elif not words[ctl.PENDING]:
                words[ctl.PENDING] = seal(frame)
        words[ctl.APPLIED] = number

    # Seeing things through

    def settle(self) -> None:
        """See through what the last owner of the lock had committed and not yet applied. Under the lock."""
        words = self.control.words
        if words[ctl.APPLIED] != words[ctl.COMMIT]:
            self._redo(words[ctl.COMMIT])
        if words[ctl.PENDING] and self._apply_cursors is not None:
            self._replay(unseal(words[ctl.PENDING]), self._apply_cursors)
            words[ctl.PENDING] = 0

    def _redo(self, number: int) -> None:
        words = self.control.words
        _, end, frame, _ = self.control.state()
        if frame:
            try:
                buffer, at, header = self._active(frame >> 32).frame(frame & LOW, end & LOW)
            except BadFrameError as error:
                raise self._damaged(error, "the last frame of the journal") from error
            due = [
                (run.stream, run.records, run.base, frames.run_end(buffer, at, header, index) - run.start)
                for index, run in enumerate(frames.read_runs(buffer, at, header))
                if words[HEADS + HEAD * run.stream] == run.base
            ]
            self._apply(due, frame, number, frames.read_cursors(buffer, at, header))
        words[ctl.APPLIED] = number
        self.control.bump(ctl.SEGMENTS)
        if self._process_only:
            words[ctl.VISIBLE] = seal(end)

    def _replay(self, position: int, apply_cursors: ApplyCursors) -> None:
        """Apply the cursors of all frames from this position on."""
        end = self.control.end
        for name in list_segments(self.directory):
            if not position >> 32 <= name.last <= end >> 32:
                continue
            with explained(name.path, "read the cursors in it"), closing(Segment(name)) as segment:
                try:
                    start = position & LOW if name.first == position >> 32 else segment.header.length
                    limit = end & LOW if name.last == end >> 32 else segment.footer.position
                    for buffer, at, header in segment.scan(start, limit):
                        if header.cursors:
                            apply_cursors(frames.read_cursors(buffer, at, header), header.number)
                except BadFrameError as error:
                    what = f"{error.reason}; cursors that were committed together with messages"
                    raise StoreCorruptError(self.directory, name.path.name, error.position, what) from error

    def verify(self, stream: int) -> None:
        """Raise StoreCorruptError unless the control file is right about a stream. Looks once a stream."""
        if stream not in self._verified:
            with self.lock:
                self.settle()
                self._verify_head(stream)
                self._verified.add(stream)

    def _verify_head(self, stream: int) -> None:
        """Raise StoreCorruptError unless a stream's head agrees with the journal. Under the lock."""
        words = self.control.words
        if stream >= self.control.capacity:
            raise RetiredStreamError(stream)
        at = HEADS + HEAD * stream
        following, tail = words[at], words[at + ctl.TAIL]
        end = self.control.end
        if following == RETIRED:
            return
        segment = self._active(end >> 32)
        try:
            if tail >> 32 == end >> 32:
                buffer, begin, header = segment.frame(tail & LOW, end & LOW)
                index = frames.find_run(buffer, begin, header, stream)
                run = frames.read_run(buffer, begin, index) if index >= 0 else None
                agreed = run is not None and run.base + run.records == following
            else:
                agreed = segment.header.snapshot.place(stream).next == following
        except BadFrameError as error:
            if _lies_within_a_frame(segment, tail & LOW, end & LOW):
                raise self.control.damaged(8 * at, f"the head of stream {stream} points nowhere") from error
            raise self._damaged(error, f"stream {stream} from offset {following} on") from error
        if not agreed:
            raise self.control.damaged(8 * at, f"the head of stream {stream} does not agree with the journal")

    def _active(self, number: int) -> Segment:
        if self._reader is None or self._reader.first != number:
            path = segment_path(self.directory, number)
            with explained(path, "read the active segment"):
                self._reader = Segment(SegmentName(number, number, path))
        return self._reader

    def _damaged(self, error: BadFrameError, what: str) -> StoreCorruptError:
        name = segment_path(self.directory, self.control.end >> 32).name
        return StoreCorruptError(self.directory, name, error.position, f"{error.reason}; {what}")

    # Rolling

    def roll(self) -> State:
        """Seal the active segment and begin a new one. Under the lock, settled. Raises StoreFullError."""
        words = self.control.words
        number, end, _, time = self.control.state()
        segment, position = end >> 32, end & LOW
        header = SegmentHeader(
            segment + 1, number + 1, time, unseal(words[ctl.DURABLE]), unseal(words[ctl.UNAPPLIED]), False,
            self.snapshot(),
        )  # fmt: skip
        path = segment_path(self.directory, segment + 1)
        room = min(_CHUNK, self.segment_bytes)
        try:
            fd, length = create_segment(path, header, room)
            if segment != self._segment:
                self._open(segment)
            seal_segment(self._fd, self._footer(segment, position, time, number), position)
        except OSError as error:
            raise explain(path, "begin a new segment", error) from error
        self.close()
        self._segment, self._fd = segment + 1, fd
        words[ctl.ALLOCATED] = length + room
        state = number + 1, (segment + 1) << 32 | length, 0, time
        self.control.commit(*state)
        words[ctl.APPLIED] = number + 1
        self.control.bump(ctl.SEGMENTS)
        return state

    def roll_if_dead(self, starts: Mapping[int, int]) -> bool:
        """Begin a new segment if the active one holds frames, and nothing in them can be read any more.

        `starts` gives the streams that exist and where each begins.
        """
        with self.lock:
            self.settle()
            _, end, frame, _ = self.control.state()
            alive = (
                stream for stream, following in self._in_active(end >> 32) if following > starts.get(stream, following)
            )
            if not frame or next(alive, None) is not None:
                return False
            self.roll()
            return True

    def _in_active(self, segment: int) -> list[tuple[int, int]]:
        nexts, tails, _ = self._heads()
        return [
            (stream, following)
            for stream, (following, tail) in enumerate(zip(nexts, tails, strict=True))
            if tail >> 32 == segment and following != RETIRED
        ]

    def snapshot(self) -> Snapshot:
        """Where all live streams stand. Under the lock, settled."""
        nexts, _, sizes = self._heads()
        live = [stream for stream, following in enumerate(nexts) if 0 < following < RETIRED]
        return _snapshot(live, nexts, sizes)

    def _footer(self, segment: int, position: int, time: int, number: int) -> Footer:
        """The footer of the active segment: a stream is in there if its last frame is.

        A deleted topic's streams are left out: nobody reads them any more.
        """
        nexts, tails, sizes = self._heads()
        held = [s for s, tail in enumerate(tails) if tail >> 32 == segment and nexts[s] != RETIRED]
        ends = array("I", [tails[stream] & LOW for stream in held])
        return Footer(segment, time, number, ends, _snapshot(held, nexts, sizes), position)

    def _heads(self) -> tuple[list[int], list[int], list[int]]:
        words = self.control.words[HEADS:].tolist()
        return words[::HEAD], words[ctl.TAIL :: HEAD], words[ctl.BYTES :: HEAD]

    def note_applied(self, position: int) -> None:
        """Say that the effects of all cursors before this position are on disk."""
        with self.lock:
            self.settle()
            words = self.control.words
            if words[ctl.UNAPPLIED] and unseal(words[ctl.UNAPPLIED]) < position:
                words[ctl.UNAPPLIED] = 0 if position >= self.control.end else seal(position)


def _snapshot(streams: list[int], nexts: list[int], sizes: list[int]) -> Snapshot:
    return Snapshot(
        array("I", streams), array("Q", [nexts[s] for s in streams]), array("Q", [sizes[s] for s in streams])
    )


def _lies_within_a_frame(segment: Segment, position: int, end: int) -> bool:
    """Whether a position is none at which a frame begins, as far as the segment is whole."""
    try:
        if position < segment.header.length or position >= end:
            return True
        return any(
            header.position < position < header.position + header.length
            for _, _, header in segment.scan(segment.header.length, end)
        )
    except BadFrameError:
        return False
