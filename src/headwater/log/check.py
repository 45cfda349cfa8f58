"""What is damaged in a store, what that loses, and removing the damage without touching the rest.

`check` reads every byte that counts and changes nothing. `repair` writes damaged segments anew without what
does not hold, makes the control file anew and restores the catalog; everything else stays readable at the
offset it had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ..errors import StoreBusyError, StoreCorruptError, StoreError, StoreNotFoundError
from . import control as ctl
from . import frames, recovery
from .catalog import NAME as CATALOG_NAME
from .catalog import Content, TopicEntry, decode_catalog, read_copies, write_catalog
from .cleaner import NEW_NAME, CleaningLock, Copy
from .control import HEAD, HEADS, LOW, RETIRED, Control
from .directory import SegmentName, explained, holds_store, list_segments, segment_path, sync_directory
from .frames import BadFrameError, Header
from .lock import NAME as LOCK_NAME
from .lock import Lock
from .recovery import Heads
from .segments import Segment, SegmentHeader, Snapshot


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets from `first` up to, not including, `end` that cannot be read."""

    topic: str
    partition: int
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """One place where a file is not what was written. Without `losses` a repair loses nothing."""

    file: str
    position: int
    reason: str
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found, or what a repair removed."""

    path: Path
    segments: int
    frames: int
    records: int
    damages: tuple[Damage, ...] = ()

    @property
    def healthy(self) -> bool:
        return not self.damages

    @property
    def lost(self) -> int:
        """How many records cannot be read."""
        return sum(loss.end - loss.first for damage in self.damages for loss in damage.losses)


def check(path: str | os.PathLike[str], lock_timeout: float = 5.0) -> Report:
    """Read the whole store and say what is damaged. Changes nothing; others may go on using the store.

    Raises StoreNotFoundError, StoreVersionError, StoreBusyError.
    """
    directory = Path(path)
    if not holds_store(directory):
        raise StoreNotFoundError(directory)
    with CleaningLock(directory, wait=True), closing(_lock(directory, lock_timeout)) as lock:
        return _survey(directory, lock).report()


def repair(path: str | os.PathLike[str], lock_timeout: float = 5.0) -> Report:
    """Remove the damage that `check` reports; the report says what was lost by it.

    No process may have the store open. A death on the way leaves a store that can be repaired again. Raises
    StoreNotFoundError, StoreVersionError, StoreFullError, StoreError while the store is in use.
    """
    directory = Path(path)
    if not holds_store(directory):
        raise StoreNotFoundError(directory)
    with CleaningLock(directory, wait=True), closing(_lock(directory, lock_timeout)) as lock:
        control = _control(directory)
        try:
            if control is not None and not control.claim():
                raise StoreError(directory, "other processes have this store open: stop them, then repair it")
            survey = _survey(directory, lock)
            with lock, explained(directory, "repair the store"):
                if not survey.report().healthy or control is None or control.words[ctl.FAILED]:
                    _repair(survey)
            return survey.report()
        finally:
            if control is not None:
                control.close()


def _lock(directory: Path, timeout: float) -> Lock:
    with explained(directory / LOCK_NAME, "open the lock file"):
        return Lock(directory / LOCK_NAME, timeout, lambda: None)


def _control(directory: Path) -> Control | None:
    try:
        control = Control(directory / ctl.NAME)
    except (FileNotFoundError, StoreCorruptError):
        return None
    try:
        control.check_version()
    except StoreCorruptError:
        pass
    except BaseException:
        control.close()
        raise
    return control


@dataclass
class _Part:
    """One segment as it was found. `header` is made up from its neighbours where its own is damaged."""

    name: SegmentName
    header: SegmentHeader
    end: int  # where its frames end
    whole: bool = True
    good: list[int] = field(default_factory=list)  # positions of frames with anything whole in them
    bad_runs: set[tuple[int, int]] = field(default_factory=set)  # (position, stream)


@dataclass
class _Survey:
    """Everything that was seen on a walk through the whole store."""

    directory: Path
    content: Content
    heads: Heads
    parts: list[_Part] = field(default_factory=list)
    damages: list[tuple[str, int, str]] = field(default_factory=list)
    losses: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)  # damage → stream, first, end
    frames: int = 0
    records: int = 0
    time: int = 0
    number: int = 0

    def hurt(self, file: str, position: int, reason: str) -> None:
        self.damages.append((file, position, reason))

    def arrive(self, file: str, stream: int, offset: int) -> None:
        """A stream goes on at `offset`: what lies between where it stood and here is lost."""
        stood = self.heads.places.get(stream, (0, 0))[0]
        if offset <= stood:
            return
        start = self.starts.get(stream)
        first = stood if start is None else max(stood, start)
        hole = any(s == stream and f <= first and offset <= e for s, f, e in self.content.holes)
        if start is None or first >= offset or hole:
            return
        if not self.damages or self.damages[-1][0] in (ctl.NAME, CATALOG_NAME):
            self.hurt(file, 0, "records that should be before this are missing")
        self.losses.setdefault(len(self.damages) - 1, []).append((stream, first, offset))

    @property
    def starts(self) -> dict[int, int]:
        if self._starts is None:
            self._starts = {
                stream: start
                for topic in self.content.topics
                for stream, start in zip(topic.streams, topic.starts, strict=True)
            }
        return self._starts

    _starts: dict[int, int] | None = None

    def report(self) -> Report:
        places = {
            stream: (topic.name, partition)
            for topic in self.content.topics
            for partition, stream in enumerate(topic.streams)
        }
        damages = tuple(
            Damage(
                file,
                position,
                reason,
                tuple(
                    Loss(*places[stream], first, end)
                    for stream, first, end in sorted(self.losses.get(index, ()))
                    if stream in places
                ),
            )
            for index, (file, position, reason) in enumerate(self.damages)
        )
        return Report(self.directory, len(self.parts), self.frames, self.records, damages)


def _survey(directory: Path, lock: Lock) -> _Survey:
    survey = _Survey(directory, Content(), Heads(Snapshot()))
    names = list_segments(directory)
    _look_at_catalog(survey, names)
    with lock:
        control = _control(directory)
        end = _look_at_control(survey, control)
    if end is not None:
        names = [name for name in names if name.first <= end >> 32]
    gone = end is not None and (not names or names[-1].last < end >> 32)
    for name in names:
        is_active = name is names[-1] and not gone
        _look_at_segment(survey, name, is_active, end & LOW if end is not None and is_active else None)
    if control is not None:
        if end is not None and control.booted(ctl.boot_id()):
            if gone:
                survey.hurt(segment_path(directory, end >> 32).name, 0, "the active segment is missing")
            _look_at_heads(survey, control, end >> 32)
        control.close()
    return survey


def _look_at_catalog(survey: _Survey, names: list[SegmentName]) -> None:
    path = survey.directory / CATALOG_NAME
    data = path.read_bytes() if path.exists() else b""
    good, position = read_copies(data)
    if good is not None:
        survey.content = decode_catalog(path, *good)
        if position is not None:
            survey.hurt(CATALOG_NAME, position, "one of its two copies is damaged, the other is whole")
        return
    survey.hurt(CATALOG_NAME, position or 0, "both copies are damaged: topics get the names of their streams")
    survey.content = _guessed(names)


def _guessed(names: list[SegmentName]) -> Content:
    streams: set[int] = set()
    for name in names:
        with closing(Segment(name)) as segment:
            for header in recovery.frames_behind(name, 0):
                data = os.pread(segment.fd, header.meta_length, header.position)
                streams.update(run.stream for run in frames.read_runs(data, 0, header))
    topics = tuple(TopicEntry(f"recovered.stream-{stream}", (stream,), (0,)) for stream in sorted(streams))
    return Content(max(streams, default=0) + 1, topics)


def _look_at_control(survey: _Survey, control: Control | None) -> int | None:
    """Where the journal ends, if the control file can say so."""
    if control is None:
        survey.hurt(ctl.NAME, 0, "it is missing or cut short; it can be made anew")
        return None
    try:
        control.check_version()
        control.check()
        return control.end if control.booted(ctl.boot_id()) else None
    except StoreCorruptError as error:
        survey.hurt(ctl.NAME, error.position, error.affected)
    except StoreBusyError:
        raise
    except StoreError as error:
        survey.hurt(ctl.NAME, 8 * ctl.FAILED, error.reason)
    return None


def _look_at_segment(survey: _Survey, name: SegmentName, is_active: bool, end: int | None) -> None:
    file = name.path.name
    with closing(Segment(name)) as segment:
        part = _begin_part(survey, segment)
        survey.parts.append(part)
        size = os.fstat(segment.fd).st_size
        sealed_end = None
        if not is_active:
            try:
                sealed_end = segment.footer.position
            except BadFrameError as error:
                part.whole = False
                survey.hurt(file, error.position, error.reason)
        limit = end if end is not None else sealed_end if sealed_end is not None else size
        torn = is_active and end is None
        part.end = _look_at_frames(survey, part, segment, limit, torn)


def _begin_part(survey: _Survey, segment: Segment) -> _Part:
    name = SegmentName(segment.first, segment.last, segment.path)
    try:
        header = segment.header
    except BadFrameError as error:
        survey.hurt(name.path.name, error.position, error.reason)
        snapshot = survey.heads.snapshot()
        header = SegmentHeader(name.first, survey.number, survey.time, 0, 0, True, snapshot)
        first = next(recovery.frames_behind(name, 0), None)
        begin = first.position if first is not None else os.fstat(segment.fd).st_size
        return _Part(name, _with_length(header, begin), begin, whole=False)
    for stream, following in zip(header.snapshot.streams, header.snapshot.nexts, strict=True):
        survey.arrive(name.path.name, stream, following)
    survey.heads.raise_to(header.snapshot)
    survey.time, survey.number = max(survey.time, header.time), max(survey.number, header.number)
    return _Part(name, header, header.length)


def _with_length(header: SegmentHeader, length: int) -> SegmentHeader:
    return SegmentHeader(
        header.segment, header.number, header.time, header.durable, header.unapplied, header.cleaned,
        header.snapshot, length,
    )  # fmt: skip


def _look_at_frames(survey: _Survey, part: _Part, segment: Segment, limit: int, torn: bool) -> int:
    """Walk the frames, looking for the next whole one behind each that is not; where they end."""
    position = part.header.length
    while position < limit:
        try:
            buffer, at, header = segment.frame(position, limit)
        except BadFrameError as error:
            later = _next_whole(part.name, position, limit)
            if later is None and torn:
                return position  # a torn tail: nobody was promised it
            if later is None and recovery.is_sealed_at(segment, position):
                return position
            part.whole = False
            survey.hurt(part.name.path.name, position, error.reason)
            if later is None:
                return position
            position = later
            continue
        _look_at_frame(survey, part, segment, buffer, at, header)
        position += header.length
    return position


def _look_at_frame(survey: _Survey, part: _Part, segment: Segment, buffer: bytes, at: int, header: Header) -> None:
    file = part.name.path.name
    survey.frames += 1
    survey.time, survey.number = max(survey.time, header.time), max(survey.number, header.number)
    part.good.append(header.position)
    for index, run in enumerate(frames.read_runs(buffer, at, header)):
        survey.arrive(file, run.stream, run.base)
        try:
            segment.body(buffer, at, header, index, header.position + header.length)
            survey.records += run.records
        except BadFrameError as error:
            part.whole = False
            part.bad_runs.add((header.position, run.stream))
            survey.hurt(file, header.position, error.reason)
            first = max(run.base, survey.starts.get(run.stream, 0))
            if first < run.base + run.records:
                lost = run.stream, first, run.base + run.records
                survey.losses.setdefault(len(survey.damages) - 1, []).append(lost)
    survey.heads.follow(buffer, at, header)


def _next_whole(name: SegmentName, position: int, limit: int) -> int | None:
    for header in recovery.frames_behind(name, position):
        if header.position > position and header.position + header.length <= limit:
            return header.position
    return None


def _look_at_heads(survey: _Survey, control: Control, active: int) -> None:
    """What the control file knows of the streams beyond the last frame that was whole."""
    words = control.words
    for stream in survey.starts:
        if stream >= control.capacity:
            survey.hurt(ctl.NAME, 0, "it has no place for all streams; it can be made anew")
            return
        at = HEADS + HEAD * stream
        following, tail = words[at], words[at + ctl.TAIL]
        stood, size = survey.heads.places.get(stream, (0, 0))
        if following == stood:
            continue
        part = survey.parts[-1] if survey.parts and survey.parts[-1].name.last == active else None
        in_damage = tail >> 32 == active and (part is None or not part.whole and (tail & LOW) not in part.good)
        if in_damage and stood < following < RETIRED:
            survey.arrive(segment_path(survey.directory, active).name, stream, following)
            survey.heads.places[stream] = following, size
        else:
            survey.hurt(ctl.NAME, 8 * at, f"the head of stream {stream} does not agree with the journal")


def _repair(survey: _Survey) -> None:
    directory = survey.directory
    holes = [loss for losses in survey.losses.values() for loss in losses]
    content = msgspec.structs.replace(survey.content, holes=(*survey.content.holes, *holes))
    write_catalog(directory / CATALOG_NAME, content)
    for part in survey.parts:
        if not part.whole:
            _salvage(directory, part)
    if survey.parts and survey.parts[-1].whole:
        recovery.seal_as_found(survey.parts[-1].name, survey.parts[-1].end)
    following = max((name.last for name in list_segments(directory)), default=0) + 1
    header = SegmentHeader(
        following, survey.number + 1, survey.time, following << 32, 0, False, survey.heads.snapshot()
    )
    recovery.begin(directory, header, ctl.boot_id(), content)


def _salvage(directory: Path, part: _Part) -> None:
    """Write a segment anew without what does not hold."""
    new = directory / NEW_NAME
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        with closing(Segment(part.name)) as segment:
            copy = Copy(fd, part.header)
            for found in _whole_frames(part, segment):
                position = found[2].position
                bad = {stream for place, stream in part.bad_runs if place == position}
                copy.take(segment, found, lambda run, bad=bad: run.stream not in bad)  # type: ignore[misc]  # bound at once
            copy.finish()
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, part.name.path)
    sync_directory(directory)


def _whole_frames(part: _Part, segment: Segment) -> Iterator[tuple[bytes, int, Header]]:
    for position in part.good:
        yield segment.frame(position, os.fstat(segment.fd).st_size)
