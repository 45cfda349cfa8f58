"""What was committed, told from the segments alone: after a power cut, or when the control file is lost.

The journal is believed frame by frame, by checksum, from the last place known to be on disk. What follows
the first frame that does not hold is the torn tail of writes nobody was promised; it is cut off, and a new
segment begun, so that its bytes can never be taken for frames. But each frame says how far the disk was
known to be good when it was committed: if a later one vouches for the place that does not hold, this is not
a torn tail but damage, and it is reported instead of cut off.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from ..errors import StoreCorruptError
from . import control as ctl
from . import frames, groups
from .catalog import NAME as CATALOG_NAME
from .catalog import Content, read_catalog, write_catalog
from .control import HEAD, HEADS, RETIRED, Control, seal, unseal
from .directory import SegmentName, list_segments, segment_path, sync_directory
from .frames import BadFrameError, Header
from .segments import EMPTY_SIZE, Footer, Segment, SegmentHeader, Snapshot, create_segment, seal_segment

_SIGN: Final = frames.MAGIC.to_bytes(4, "little")


class Heads:
    """Where every stream stands, followed frame by frame."""

    def __init__(self, snapshot: Snapshot) -> None:
        columns = zip(snapshot.streams, snapshot.nexts, snapshot.sizes, strict=True)
        self.places = {stream: (following, size) for stream, following, size in columns}
        self.tails: dict[int, int] = {}
        self.cursors = 0  # position of the first frame with cursors

    def follow(self, buffer: bytes, at: int, header: Header) -> None:
        if header.cursors and not self.cursors:
            self.cursors = header.segment << 32 | header.position
        for index, run in enumerate(frames.read_runs(buffer, at, header)):
            _, size = self.places.get(run.stream, (0, 0))
            size += frames.run_end(buffer, at, header, index) - run.start
            self.places[run.stream] = run.base + run.records, size
            self.tails[run.stream] = header.position

    def raise_to(self, snapshot: Snapshot) -> None:
        """Offsets that a later segment knows to be taken stay taken."""
        for stream, following, size in zip(snapshot.streams, snapshot.nexts, snapshot.sizes, strict=True):
            have, counted = self.places.get(stream, (0, 0))
            self.places[stream] = max(have, following), max(counted, size)

    def snapshot(self) -> Snapshot:
        snapshot = Snapshot()
        for stream, (following, size) in sorted(self.places.items()):
            snapshot.add(stream, following, size)
        return snapshot

    def footer(self, segment: int, time: int, number: int) -> Footer:
        footer = Footer(segment, time, number, array("I"), Snapshot())
        for stream, tail in sorted(self.tails.items()):
            footer.tails.append(tail)
            footer.snapshot.add(stream, *self.places[stream])
        return footer


def is_worthwhile(directory: Path) -> bool:
    """Whether segments or a catalog hold anything; if not, the making of a store was interrupted."""
    if any(name.path.stat().st_size > EMPTY_SIZE for name in list_segments(directory)):
        return True
    path = directory / CATALOG_NAME
    return path.exists() and read_catalog(path) != Content()


def create(directory: Path, boot: bytes) -> None:
    """Make an empty store. Under the lock. A death on the way leaves nothing that counts as one."""
    write_catalog(directory / CATALOG_NAME, Content())
    begin(directory, SegmentHeader(1, 0, 0, 1 << 32, 0, False, Snapshot()), boot, Content())


def recover(directory: Path, boot: bytes) -> None:
    """Make a control file that says what the segments hold, and begin a new segment. Under the lock.

    A death on the way leaves what was there. Raises StoreCorruptError for damage in what was known to be on
    disk, with nothing changed.
    """
    content = read_catalog(directory / CATALOG_NAME)
    old = _old_durable(directory)
    names = list_segments(directory)
    headed = [(name, header) for name in names if (header := _header(name)) is not None]
    if not names:
        raise StoreCorruptError(directory, segment_path(directory, 1).name, 0, "all segments are missing")
    if not headed:
        raise StoreCorruptError(directory, names[0].path.name, 0, "the headers of all segments are damaged")
    durable = max(old, headed[-1][1].durable)
    chain = _chain(names, durable)
    following, heads, time = _walk(directory, chain, durable)
    unapplied = headed[-1][1].unapplied or heads.cursors
    last = max(name.last for name in names)
    header = SegmentHeader(last + 1, following, time, (last + 1) << 32, unapplied, False, heads.snapshot())
    groups.cut(directory, {stream: following for stream, (following, _) in heads.places.items()})
    begin(directory, header, boot, content)


def begin(directory: Path, header: SegmentHeader, boot: bytes, content: Content) -> None:
    """Make the segment with this header the active one, under a new control file. Under the lock."""
    fd, length = create_segment(segment_path(directory, header.segment), header, 0)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    state = header.number, header.segment << 32 | length, 0, header.time
    control = Control.create(directory / ctl.NAME, content.free, boot, state)
    try:
        words = control.words
        words[ctl.ALLOCATED] = length
        words[ctl.UNAPPLIED] = words[ctl.PENDING] = seal(header.unapplied)
        snapshot = header.snapshot
        live = {stream for topic in content.topics for stream in topic.streams}
        for stream, following, size in zip(snapshot.streams, snapshot.nexts, snapshot.sizes, strict=True):
            control.reach(stream + 1)
            words = control.words
            words[HEADS + HEAD * stream] = following
            words[HEADS + HEAD * stream + ctl.BYTES] = size
        for stream in range(content.free):
            if stream not in live:
                words[HEADS + HEAD * stream] = RETIRED
        control.publish(directory / ctl.NAME)
    finally:
        control.close()
    sync_directory(directory)


def _old_durable(directory: Path) -> int:
    """How far the lost control file knew the disk to be good: 0 unless what it says makes sense."""
    try:
        control = Control(directory / ctl.NAME)
    except (OSError, StoreCorruptError):
        return 0
    try:
        control.check_version()
        word = control.words[ctl.DURABLE]
        return 0 if word.bit_count() & 1 else unseal(word)
    except StoreCorruptError:
        return 0
    finally:
        control.close()


def _header(name: SegmentName) -> SegmentHeader | None:
    try:
        return Segment(name).header
    except BadFrameError:
        return None


def _chain(names: list[SegmentName], durable: int) -> list[SegmentName]:
    """The segments that have to be looked at: those that may hold what is not known to be on disk."""
    first = durable >> 32
    for i, name in enumerate(names):
        header = _header(name)
        if header is not None and header.cleaned:
            first = max(first, names[min(i + 1, len(names) - 1)].first)
    return [name for name in names if name.last >= first]


def _walk(directory: Path, chain: list[SegmentName], durable: int) -> tuple[int, Heads, int]:
    """Follow the frames through a chain of segments, cut off what does not hold, seal what does.

    Gives the next commit's number, where all streams stand, and the last time.
    """
    heads: Heads | None = None
    number = time = 0
    torn: tuple[SegmentName, int, str] | None = None
    plan: list[tuple[SegmentName, int, Footer]] = []
    dropped: list[SegmentName] = []
    for name in chain:
        segment = Segment(name)
        try:
            header = segment.header
        except BadFrameError as error:
            torn = torn or (name, error.position, error.reason)
            dropped.append(name)
            continue
        if torn is None and heads is not None and header.number != number + 1:
            torn = name, 0, "it does not continue the segment before"
        if torn is not None:
            dropped.append(name)
            continue
        if heads is None:
            heads = Heads(header.snapshot)
        heads.raise_to(header.snapshot)
        heads.tails.clear()
        number, time = header.number, max(time, header.time)
        position = header.length
        end = os.fstat(segment.fd).st_size
        try:
            for buffer, at, found in segment.scan(position, end):
                if found.number != number + 1:
                    raise BadFrameError(position, f"commit {found.number} lies where {number + 1} should be")
                for index, run in enumerate(frames.read_runs(buffer, at, found)):
                    segment.body(buffer, at, found, run, index, end)
                heads.follow(buffer, at, found)
                number, time = found.number, max(time, found.time)
                position += found.length
        except BadFrameError as error:
            if not is_sealed_at(segment, position):
                torn = name, error.position, error.reason
        plan.append((name, position, heads.footer(name.first, time, number)))
    if torn is not None and heads is None:
        raise StoreCorruptError(directory, torn[0].path.name, torn[1], f"{torn[2]}; the whole journal from here on")
    if torn is not None:
        _refuse_damage(directory, torn, durable, [name for name in chain if name.first >= torn[0].first])
    assert heads is not None
    for name, position, footer in plan:
        end_segment(name, position, footer)
    for name in dropped:
        name.path.unlink()
    return number + 1, heads, time


def seal_as_found(name: SegmentName, end: int) -> None:
    """End a segment whose frames are whole where they end, whether it was sealed before or not."""
    with closing(Segment(name)) as segment:
        header = segment.header
        heads, time, number = Heads(header.snapshot), header.time, header.number
        for buffer, at, found in segment.scan(header.length, end):
            heads.follow(buffer, at, found)
            time, number = found.time, found.number
    end_segment(name, end, heads.footer(name.first, time, number))


def is_sealed_at(segment: Segment, position: int) -> bool:
    """Whether a whole footer is at this byte."""
    try:
        return segment.read_footer(position).position == position
    except BadFrameError:
        return False


def end_segment(name: SegmentName, position: int, footer: Footer) -> None:
    """End a segment at this byte, for good."""
    fd = os.open(name.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        seal_segment(fd, footer, position)
        os.fsync(fd)
    finally:
        os.close(fd)


def _refuse_damage(
    directory: Path, torn: tuple[SegmentName, int, str], durable: int, behind: list[SegmentName]
) -> None:
    """Raise StoreCorruptError if the place that does not hold was known to be on disk."""
    name, position, reason = torn
    place = name.first << 32 | position
    for later in behind:
        start = position if later is name else 0
        durable = max([durable, *(header.durable for header in frames_behind(later, start))])
    if durable > place:
        raise StoreCorruptError(directory, name.path.name, position, f"{reason}; messages that were acknowledged")


def frames_behind(name: SegmentName, start: int) -> Iterator[Header]:
    """Every whole frame behind a place, wherever it begins."""
    data = name.path.read_bytes()
    at = data.find(_SIGN, start)
    while at >= 0:
        try:
            header = frames.read_header(data, at, name.first, at)
            frames.verify_meta(data, at, header)
            yield header
        except BadFrameError:
            pass
        at = data.find(_SIGN, at + 1)
