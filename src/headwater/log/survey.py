"""What a walk through a whole store finds: every byte that counts is read, and nothing changed."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..errors import StoreCorruptError, StoreError
from . import control as ctl
from . import frames, recovery
from .catalog import NAME as CATALOG_NAME
from .catalog import Content, TopicEntry, decode_catalog, read_copies
from .control import HEAD, HEADS, LOW, RETIRED, Control
from .directory import SegmentName, list_segments, segment_path
from .frames import BadFrameError, Header
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


@dataclass
class Part:
    """One segment as it was found. `header` is made up from its neighbours where its own is damaged."""

    name: SegmentName
    header: SegmentHeader
    end: int  # where its frames end
    whole: bool = True
    good: list[int] = field(default_factory=list)  # positions of frames with anything whole in them
    bad_runs: set[tuple[int, int]] = field(default_factory=set)  # (position, stream)


@dataclass
class Survey:
    """Everything that was seen on a walk through the whole store."""

    directory: Path
    content: Content
    heads: Heads
    parts: list[Part] = field(default_factory=list)
    damages: list[tuple[str, int, str]] = field(default_factory=list)
    losses: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)  # damage → stream, first, end
    frames: int = 0
    records: int = 0
    time: int = 0
    number: int = 0

    @property
    def unapplied(self) -> int:
        """From where on cursors may not have been applied for good, 0 for nowhere."""
        return self.parts[-1].header.unapplied or self.heads.cursors if self.parts else 0

    def hurt(self, file: str, position: int, reason: str) -> None:
        """Note a place that does not hold."""
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

    @cached_property
    def starts(self) -> dict[int, int]:
        """Where the streams that exist begin."""
        return {
            stream: start
            for topic in self.content.topics
            for stream, start in zip(topic.streams, topic.starts, strict=True)
        }

    def report(self) -> Report:
        """What was found, in terms of topics."""
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


def survey_store(directory: Path, lock: Lock) -> Survey:
    """Walk through the store. Nobody may clean it meanwhile. Raises StoreVersionError, StoreBusyError."""
    survey = Survey(directory, Content(), Heads(Snapshot()))
    with lock:
        known = _look_at_control(survey)
    names = list_segments(directory)
    _look_at_catalog(survey, names)
    active = known.end >> 32 if known is not None else max((name.last for name in names), default=0)
    names = [name for name in names if name.first <= active]
    for name in names:
        limit = known.end & LOW if known is not None and name.last == active else None
        _look_at_segment(survey, name, name.last == active, limit)
    if known is not None:
        if not names or names[-1].last < active:
            survey.hurt(segment_path(directory, active).name, 0, "the active segment is missing")
        _look_at_heads(survey, known.heads, active)
    return survey


def _look_at_catalog(survey: Survey, names: list[SegmentName]) -> None:
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


@dataclass(frozen=True, slots=True)
class _Known:
    """What the control file says while nobody writes: where the journal ends, and the words of the heads."""

    end: int
    heads: list[int]


def _look_at_control(survey: Survey) -> _Known | None:
    """What the control file says, if it can be believed."""
    control = read_control(survey.directory)
    if control is None:
        survey.hurt(ctl.NAME, 0, "it is missing or cut short; it can be made anew")
        return None
    with closing(control):
        try:
            control.check_version()
            control.check()
        except StoreCorruptError as error:
            survey.hurt(ctl.NAME, error.position, error.affected)
            return None
        except StoreError as error:
            survey.hurt(ctl.NAME, 8 * ctl.FAILED, error.reason)
            return None
        words = control.words
        if not control.booted(ctl.boot_id()):
            return None
        settled = words[ctl.APPLIED] == words[ctl.COMMIT]
        return _Known(control.end, words[HEADS:].tolist() if settled else [])


def _look_at_segment(survey: Survey, name: SegmentName, is_active: bool, end: int | None) -> None:
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


def _begin_part(survey: Survey, segment: Segment) -> Part:
    name = SegmentName(segment.first, segment.last, segment.path)
    survey.heads.tails.clear()
    try:
        header = segment.header
    except BadFrameError as error:
        survey.hurt(name.path.name, error.position, error.reason)
        snapshot = survey.heads.snapshot()
        header = SegmentHeader(name.first, survey.number, survey.time, 0, 0, True, snapshot)
        first = next(recovery.frames_behind(name, 0), None)
        begin = first.position if first is not None else os.fstat(segment.fd).st_size
        return Part(name, replace(header, length=begin), begin, whole=False)
    for stream, following in zip(header.snapshot.streams, header.snapshot.nexts, strict=True):
        survey.arrive(name.path.name, stream, following)
    survey.heads.raise_to(header.snapshot)
    survey.time, survey.number = max(survey.time, header.time), max(survey.number, header.number)
    return Part(name, header, header.length)


def _look_at_frames(survey: Survey, part: Part, segment: Segment, limit: int, torn: bool) -> int:
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


def _look_at_frame(survey: Survey, part: Part, segment: Segment, buffer: bytes, at: int, header: Header) -> None:
    file = part.name.path.name
    survey.frames += 1
    survey.time, survey.number = max(survey.time, header.time), max(survey.number, header.number)
    part.good.append(header.position)
    for index, run in enumerate(frames.read_runs(buffer, at, header)):
        survey.arrive(file, run.stream, run.base)
        try:
            segment.body(buffer, at, header, run, index, header.position + header.length)
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


def _look_at_heads(survey: Survey, heads: list[int], active: int) -> None:
    """What the control file knows of the streams beyond the last frame that was whole."""
    for stream in survey.starts:
        at = HEAD * stream
        if at >= len(heads):
            continue  # made after the control file was looked at, or its last owner died: nothing to compare
        following, tail = heads[at], heads[at + ctl.TAIL]
        stood, size = survey.heads.places.get(stream, (0, 0))
        pointed = tail & LOW if tail >> 32 == active else None
        if following == stood and pointed == survey.heads.tails.get(stream):
            continue
        part = survey.parts[-1] if survey.parts and survey.parts[-1].name.last == active else None
        in_damage = tail >> 32 == active and (part is None or (not part.whole and (tail & LOW) not in part.good))
        if in_damage and stood < following < RETIRED:
            survey.arrive(segment_path(survey.directory, active).name, stream, following)
            survey.heads.places[stream] = following, size
        else:
            survey.hurt(ctl.NAME, 8 * (HEADS + at), f"the head of stream {stream} does not agree with the journal")


def read_control(directory: Path) -> Control | None:
    """The control file, be it damaged, or None. Raises StoreVersionError."""
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
