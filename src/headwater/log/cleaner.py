"""How space becomes free beside running readers and writers, and though a process may die at any step.

Sealed segments that hold nothing alive are removed. Those that are mostly dead, or have become small, are
rewritten: the runs that are alive are copied as they are into a new file, neighbours into one. The new file
is complete and on disk before its name replaces the old ones, all at once: a file named after a range of
segments supersedes those within the range. Offsets, times and order stay. Readers that have the old files
open go on reading them.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final

from . import control as ctl
from . import frames
from .control import Control, unseal
from .directory import SegmentName, explained, list_superseded, segment_path, sync_directory
from .frames import BadFrameError, Draft, Header, RunEntry
from .lock import Lock
from .retention import Tally
from .segments import Footer, Segment, SegmentHeader, Snapshot, write_all

LOCK_NAME: Final = "cleaning"
NEW_NAME: Final = "cleaned.new"
_BUFFER: Final = 1 << 20

Keep = Callable[[RunEntry], bool]


@dataclass(frozen=True, slots=True)
class CleanReport:
    """What one cleaning did. `freed` is in bytes; `damaged` names segments that were left as they are.

    `busy`: another process was cleaning, and nothing was done here.
    """

    busy: bool = False
    expired: int = 0  # streams whose beginning moved
    removed: int = 0  # segments
    rewritten: int = 0  # segments
    freed: int = 0
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: SegmentName
    size: int
    live: int  # bytes, 0 if nothing in it is alive

    def worthwhile(self) -> bool:
        return self.live < self.size // 2


class Cleaner:
    """Cleans one store. `starts` gives the streams that exist and where each begins."""

    def __init__(
        self, directory: Path, control: Control, lock: Lock, segment_bytes: int, starts: dict[int, int]
    ) -> None:
        self._directory, self._control, self._lock = directory, control, lock
        self._segment_bytes, self._starts = segment_bytes, starts

    def alive(self, run: RunEntry) -> bool:
        """Whether anything in a run can still be read."""
        return run.base + run.records > self._starts.get(run.stream, run.base + run.records)

    def clean(self) -> CleanReport:
        """Remove and rewrite what is worth it."""
        self._tidy()
        removed = rewritten = freed = 0
        damaged: list[str] = []
        groups, hurt = self._groups()
        damaged += hurt
        for group in groups:
            before = sum(candidate.name.path.stat().st_size for candidate in group)
            try:
                left = self._replace([candidate.name for candidate in group], any(c.live for c in group))
            except BadFrameError:
                damaged += [candidate.name.path.name for candidate in group]
                continue
            freed += before - left
            removed += 0 if left else len(group)
            rewritten += len(group) if left else 0
        return CleanReport(removed=removed, rewritten=rewritten, freed=freed, damaged=tuple(damaged))

    def _tidy(self) -> None:
        """Finish what a cleaner that died had begun."""
        (self._directory / NEW_NAME).unlink(missing_ok=True)
        for name in list_superseded(self._directory):
            name.path.unlink(missing_ok=True)

    def _groups(self) -> tuple[list[list[_Candidate]], list[str]]:
        """Neighbours to be made one: dead ones, mostly dead ones, small ones."""
        tally = Tally(self._directory, self._control)
        groups: list[list[_Candidate]] = []
        group: list[_Candidate] = []
        damaged = []
        for name in tally.names:
            if name.last >= self._boundary():
                break
            try:
                candidate = self._candidate(name, tally)
            except BadFrameError:
                damaged.append(name.path.name)
                groups.append(group)
                group = []
                continue
            if not candidate.live:
                groups.append([candidate])
                continue
            if group and sum(c.live for c in group) + candidate.live > self._segment_bytes:
                groups.append(group)
                group = []
            if candidate.worthwhile() or candidate.live <= self._segment_bytes // 4:
                group.append(candidate)
            elif group:
                groups.append(group)
                group = []
        groups.append(group)
        return [g for g in groups if len(g) > 1 or (g and (not g[0].live or g[0].worthwhile()))], damaged

    def _boundary(self) -> int:
        """The first segment that must stay as it is: it may be needed to recover, or is written to."""
        words = self._control.words
        boundary = unseal(words[ctl.DURABLE]) >> 32
        unapplied = unseal(words[ctl.UNAPPLIED]) >> 32
        return min(boundary, unapplied) if unapplied else boundary

    def _candidate(self, name: SegmentName, tally: Tally) -> _Candidate:
        with closing(Segment(name)) as segment:
            sizes = tally.sizes(segment)
        live = [size for stream, (size, end) in sizes.items() if end > self._starts.get(stream, end)]
        return _Candidate(name, sum(size for size, _ in sizes.values()), max(sum(live), len(live)))

    def _replace(self, names: Sequence[SegmentName], live: bool) -> int:
        """Put a rewritten segment in place of these, or remove them; the bytes that are left."""
        left = 0
        if live:
            new = self._directory / NEW_NAME
            left = rewrite(names, new, self.alive)
            os.rename(new, segment_path(self._directory, names[0].first, names[-1].last))
            sync_directory(self._directory)
        with self._lock:
            self._control.bump(ctl.SEGMENTS)
        for name in names:
            if not live or len(names) > 1:
                name.path.unlink(missing_ok=True)
        with self._lock:
            self._control.bump(ctl.SEGMENTS)
        return left


def rewrite(names: Sequence[SegmentName], new: Path, keep: Keep) -> int:
    """Copy the runs that `keep` wants from some segments into one new file, and sync it; its bytes.

    Raises BadFrameError for damage in what is kept, StoreFullError.
    """
    with explained(new, "rewrite segments"):
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            with closing(Segment(names[0])) as first:
                copy = Copy(fd, first.header)
            for name in names:
                with closing(Segment(name)) as segment:
                    for found in segment.scan(segment.header.length, segment.footer.position):
                        copy.take(segment, found, keep)
            size = copy.finish()
            os.fsync(fd)
            return size
        finally:
            os.close(fd)


class Copy:
    """A segment that is written anew from frames of others."""

    def __init__(self, fd: int, header: SegmentHeader) -> None:
        self._fd, self._segment = fd, header.segment
        self._header = replace(header, cleaned=True)
        self._parts = [self._header.to_bytes()]
        self._written, self._buffered = 0, len(self._parts[0])
        self._tails: dict[int, int] = {}
        self._ends: dict[int, tuple[int, int]] = {}
        self._time, self._number = self._header.time, self._header.number

    def take(self, segment: Segment, found: tuple[bytes, int, Header], keep: Keep) -> None:
        """Append what is to be kept of a frame."""
        buffer, at, header = found
        self._time, self._number = header.time, header.number
        kept = [
            (run, segment.body(buffer, at, header, run, index, header.position + header.length))
            for index, run in enumerate(frames.read_runs(buffer, at, header))
            if keep(run)
        ]
        if kept:
            self._add(header, kept)

    def finish(self) -> int:
        """Write the footer; the size of the file."""
        position = self._written + self._buffered
        footer = Footer(self._segment, self._time, self._number, array("I"), Snapshot(), position)
        for stream, tail in sorted(self._tails.items()):
            footer.tails.append(tail)
            footer.snapshot.add(stream, *self._ends[stream])
        self._parts.append(footer.to_bytes())
        self._flush()
        return self._written

    def _add(self, header: Header, kept: Sequence[tuple[RunEntry, bytes]]) -> None:
        runs = [run for run, _ in kept]
        sizes = [len(body) for _, body in kept]
        meta_length = frames.HEADER.size + frames.RUN.size * len(kept)
        starts = [meta_length + sum(sizes[:i]) for i in range(len(sizes))]
        body = b"".join(body for _, body in kept)
        draft = Draft(
            [run.stream for run in runs], [run.records for run in runs], starts, sizes,
            [run.crc for run in runs], [run.columns for run in runs], body, (), b"",
            meta_length, meta_length + len(body), None,
        )  # fmt: skip
        position = self._written + self._buffered
        previous = [self._tails.get(run.stream, 0) for run in runs]
        bases = [run.base for run in runs]
        meta = frames.stamp(draft, self._segment, position, bases, previous, header.time, header.number, header.durable)
        for run, size in zip(runs, sizes, strict=True):
            self._tails[run.stream] = position
            before = self._ends[run.stream][1] if run.stream in self._ends else self._begin(run.stream)
            self._ends[run.stream] = run.base + run.records, before + size
        self._parts += meta, body
        self._buffered += draft.length
        if self._buffered > _BUFFER:
            self._flush()

    def _begin(self, stream: int) -> int:
        return self._header.snapshot.place(stream).size

    def _flush(self) -> None:
        self._written = write_all(self._fd, self._parts, self._written)
        self._parts, self._buffered = [], 0


class CleaningLock:
    """Lets one process clean at a time; `taken` says whether this is the one."""

    def __init__(self, directory: Path, wait: bool = False) -> None:
        self._path, self._how = directory / LOCK_NAME, LOCK_EX if wait else LOCK_EX | LOCK_NB

    def __enter__(self) -> bool:
        with explained(self._path, "open the cleaner's lock"):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            flock(self._fd, self._how)
            return True
        except BlockingIOError:
            return False

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
