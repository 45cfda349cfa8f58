"""What a segment file is: a header that says where every stream stood, frames, and once sealed a footer.

The header's snapshot tells for any stream which offsets lie before this segment, so a search for an offset
opens a handful of headers. The footer says which streams have frames in here and where the last of each
begins; each run points to the stream's previous one. So nobody reads frames that are not his.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from . import frames
from .directory import SegmentName
from .frames import BadFrameError, Header, RunEntry

_MAGIC: Final = b"HWSEGM01"
# magic, crc, length, segment, streams, number, time, durable, unapplied, cleaned
_HEADER: Final = Struct("<8s4I5Q")
_HEADER_CHECKED_FROM: Final = 12
EMPTY_SIZE: Final = _HEADER.size  # bytes of a segment in which nothing ever was

_FOOTER_MAGIC: Final = 0x54465748  # "HWFT"
# magic, crc, length, segment, streams, time, number
_FOOTER: Final = Struct("<5I2Q")
_FOOTER_CHECKED_FROM: Final = 8
_TRAILER: Final = Struct("<II")  # footer's length, magic: the last bytes of a sealed segment

_SMALL, _LARGE = (
    1 << 12,
    1 << 18,
)  # bytes read ahead: from little for who follows the end to much for who catches up
_DIRECT: Final = 1 << 15  # bodies from here on are read by themselves


class Place(NamedTuple):
    """Where one stream stands: its next offset, and the bytes ever appended to it."""

    next: int
    size: int


_NOWHERE: Final = Place(0, 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where streams stand at one moment, sorted by stream. A stream that is not listed stands at 0."""

    streams: array[int] = field(default_factory=lambda: array("I"))
    nexts: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))

    def place(self, stream: int) -> Place:
        """Where a stream stands."""
        i = bisect_left(self.streams, stream)
        if i < len(self.streams) and self.streams[i] == stream:
            return Place(self.nexts[i], self.sizes[i])
        return _NOWHERE

    def add(self, stream: int, following: int, size: int) -> None:
        """Append a stream; they come in order."""
        self.streams.append(stream)
        self.nexts.append(following)
        self.sizes.append(size)

    def to_bytes(self) -> bytes:
        return self.streams.tobytes() + self.nexts.tobytes() + self.sizes.tobytes()

    @staticmethod
    def size(count: int) -> int:
        """Bytes of a snapshot of this many streams."""
        return 20 * count

    @classmethod
    def from_bytes(cls, data: bytes, at: int, count: int) -> Snapshot:
        snapshot = cls()
        snapshot.streams.frombytes(data[at : at + 4 * count])
        at += 4 * count
        snapshot.nexts.frombytes(data[at : at + 8 * count])
        at += 8 * count
        snapshot.sizes.frombytes(data[at : at + 8 * count])
        return snapshot


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """How a segment begins. `number` and `time` are those of the last commit before its first frame.

    `durable` and `unapplied` are as the control file had them then: what a recovery needs when that file is
    lost. `cleaned` says that the cleaner wrote this segment, as a whole and synced.
    """

    segment: int
    number: int
    time: int
    durable: int
    unapplied: int
    cleaned: bool
    snapshot: Snapshot
    length: int = 0  # bytes of the header: the first frame begins there

    def to_bytes(self) -> bytes:
        count = len(self.snapshot.streams)
        length = _HEADER.size + Snapshot.size(count)
        data = bytearray(
            _HEADER.pack(
                _MAGIC,
                0,
                length,
                self.segment,
                count,
                self.number,
                self.time,
                self.durable,
                self.unapplied,
                self.cleaned,
            )
            + self.snapshot.to_bytes()
        )
        data[8:12] = crc32(memoryview(data)[_HEADER_CHECKED_FROM:]).to_bytes(4, "little")
        return bytes(data)


@dataclass(frozen=True, slots=True)
class Footer:
    """How a sealed segment ends: for each stream in it, the byte of its last frame, and where it stands then.

    `time` and `number` are those of the last commit; `position` is where the frames end.
    """

    segment: int
    time: int
    number: int
    tails: array[int]
    snapshot: Snapshot
    position: int = 0

    def tail(self, stream: int) -> int:
        """The byte at which the last frame of a stream begins, 0 if it has none in here."""
        i = bisect_left(self.snapshot.streams, stream)
        found = i < len(self.tails) and self.snapshot.streams[i] == stream
        return self.tails[i] if found else 0

    def to_bytes(self) -> bytes:
        count = len(self.tails)
        length = _FOOTER.size + 4 * count + Snapshot.size(count) + _TRAILER.size
        data = bytearray(
            _FOOTER.pack(_FOOTER_MAGIC, 0, length, self.segment, count, self.time, self.number)
            + self.tails.tobytes()
            + self.snapshot.to_bytes()
            + _TRAILER.pack(length, _FOOTER_MAGIC)
        )
        data[4:8] = crc32(memoryview(data)[_FOOTER_CHECKED_FROM:]).to_bytes(4, "little")
        return bytes(data)


class Segment:
    """A segment file for reading. It stays readable, as it was when opened, after the file was replaced.

    Everything read is verified; what does not match raises BadFrameError. Not safe for several threads.
    """

    def __init__(self, name: SegmentName) -> None:
        self.fd = -1
        self.first, self.last, self.path = name
        self.fd = os.open(name.path, os.O_RDONLY | os.O_CLOEXEC)
        self._window = b""
        self._from = 0
        self._last: tuple[bytes, int, Header] | None = None  # the frame looked at last: it is asked for again soon
        self._ahead = _SMALL

    def close(self) -> None:
        """Idempotent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def is_at(self, path: Path | None) -> bool:
        """Whether this is what `path` holds now."""
        try:
            return path is not None and os.stat(path).st_ino == os.fstat(self.fd).st_ino
        except FileNotFoundError:
            return False

    @cached_property
    def header(self) -> SegmentHeader:
        """How it begins."""
        data = os.pread(self.fd, _HEADER.size, 0)
        if len(data) < _HEADER.size:
            raise BadFrameError(0, "the file ends inside the segment's header")
        magic, crc, length, segment, count, number, time, durable, unapplied, cleaned = _HEADER.unpack(data)
        if magic != _MAGIC or length != _HEADER.size + Snapshot.size(count):
            raise BadFrameError(0, "this is not the header of a segment")
        data = os.pread(self.fd, length, 0)
        if crc32(memoryview(data)[_HEADER_CHECKED_FROM:]) != crc or len(data) != length:
            raise BadFrameError(0, "the checksum of the segment's header does not match")
        if segment != self.first:
            raise BadFrameError(0, f"this is segment {segment} under a wrong name")
        snapshot = Snapshot.from_bytes(data, _HEADER.size, count)
        return SegmentHeader(segment, number, time, durable, unapplied, bool(cleaned), snapshot, length)

    @cached_property
    def footer(self) -> Footer:
        """How it ends. Only of a sealed segment."""
        end = os.fstat(self.fd).st_size
        data = os.pread(self.fd, _TRAILER.size, max(0, end - _TRAILER.size))
        if len(data) < _TRAILER.size:
            raise BadFrameError(end, "the file is cut short")
        length, magic = _TRAILER.unpack(data)
        if magic != _FOOTER_MAGIC or length > end:
            raise BadFrameError(end - _TRAILER.size, "the segment's footer is missing")
        return self.read_footer(end - length)

    def read_footer(self, position: int) -> Footer:
        """The footer at this byte."""
        data = os.pread(self.fd, _FOOTER.size, position)
        if len(data) < _FOOTER.size:
            raise BadFrameError(position, "the segment's footer is missing")
        magic, crc, length, segment, count, time, number = _FOOTER.unpack(data)
        sized = length == _FOOTER.size + 4 * count + Snapshot.size(count) + _TRAILER.size
        if magic != _FOOTER_MAGIC or segment != self.first or not sized:
            raise BadFrameError(position, "the segment's footer does not make sense")
        data = os.pread(self.fd, length, position)
        if len(data) != length or crc32(memoryview(data)[_FOOTER_CHECKED_FROM:]) != crc:
            raise BadFrameError(position, "the checksum of the segment's footer does not match")
        at = _FOOTER.size
        tails = array("I")
        tails.frombytes(data[at : at + 4 * count])
        return Footer(segment, time, number, tails, Snapshot.from_bytes(data, at + 4 * count, count), position)

    def frame(self, position: int, limit: int) -> tuple[bytes, int, Header]:
        """The frame at this byte: a buffer that holds its meta, where it begins in there, its header.

        Nothing is read from `limit` on, where frames may still be written.
        """
        last = self._last
        if last is not None and last[2].position == position:
            return last
        buffer, at = self._span(position, frames.HEADER.size, limit)
        header = frames.read_header(buffer, at, self.first, position)
        if position + header.length > limit:
            raise BadFrameError(position, "a frame reaches over the end of its segment")
        if at + header.meta_length > len(buffer):
            buffer, at = self._span(position, header.meta_length, limit)
        frames.verify_meta(buffer, at, header)
        self._last = buffer, at, header
        return self._last

    def body(self, buffer: bytes, at: int, header: Header, run: RunEntry, index: int, limit: int) -> bytes:
        """The body of a run, at `index` in a frame that `frame` gave."""
        length = frames.run_end(buffer, at, header, index) - run.start
        position = header.position + run.start
        if length >= _DIRECT:
            body = os.pread(self.fd, length, position)
        else:
            if at + run.start + length > len(buffer):
                buffer, begin = self._span(position, length, limit)
            else:
                begin = at + run.start
            body = buffer[begin : begin + length]
        if len(body) != length or crc32(body) != run.crc:
            raise BadFrameError(header.position, "the checksum of a frame's records does not match")
        return body

    def scan(self, start: int, limit: int) -> Iterator[tuple[bytes, int, Header]]:
        """The frames from `start` to `limit`, each as `frame` gives it."""
        position = start
        while position < limit:
            buffer, at, header = self.frame(position, limit)
            yield buffer, at, header
            position += header.length

    def walk(self, stream: int, position: int, limit: int) -> Iterator[tuple[Header, RunEntry, int]]:
        """A stream's frames from the one at `position` backwards: header, run, bytes of the run's body."""
        while position:
            buffer, at, header = self.frame(position, limit)
            index = frames.find_run(buffer, at, header, stream)
            if index < 0:
                raise BadFrameError(position, "a stream's frame does not hold it")
            run = frames.read_run(buffer, at, index)
            yield header, run, frames.run_end(buffer, at, header, index) - run.start
            position = run.previous

    def _span(self, position: int, length: int, limit: int) -> tuple[bytes, int]:
        at = position - self._from
        end = self._from + len(self._window)
        if at >= 0 and position + length <= end:
            return self._window, at
        near = self._from - _LARGE <= position <= end + _LARGE
        self._ahead = min(2 * self._ahead, _LARGE) if near else _SMALL
        first, behind = position, position + max(length, self._ahead)
        if position < self._from:  # walking backwards: what comes next lies before
            behind = position + max(length, _SMALL)
            first = max(0, min(position, behind - self._ahead))
        self._window = os.pread(self.fd, max(0, min(behind, limit) - first), first)
        self._from = first
        return self._window, position - first


def create_segment(path: Path, header: SegmentHeader, room: int) -> tuple[int, int]:
    """Write a new segment with room for frames, over what has its name. Gives descriptor and header's length.

    Raises OSError; the file is gone then.
    """
    data = header.to_bytes()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        if room:
            os.posix_fallocate(fd, 0, len(data) + room)
        write_all(fd, [data], 0)
    except BaseException:
        os.close(fd)
        path.unlink()
        raise
    return fd, len(data)


def write_all(fd: int, parts: Sequence[bytes], position: int) -> int:
    """Write all of it or raise OSError. Returns where it ends."""
    data = b"".join(parts)
    while data:
        written = os.pwrite(fd, data, position)
        data = data[written:]
        position += written
    return position


def seal_segment(fd: int, footer: Footer, position: int) -> None:
    """Write the footer where the frames end, and cut the file after it."""
    os.ftruncate(fd, write_all(fd, [footer.to_bytes()], position))
