"""What a frame is in bytes: one group commit over any streams, every part of it under a checksum.

    header   56 bytes; `crc` covers the rest of the header, the run table and the cursors
    runs     32 bytes each, sorted by stream: how many records, their first offset, where their body is,
             the body's crc, and where in this segment the stream's previous frame begins
    cursors  group positions that are committed together with the records
    bodies   per run: the lengths of all keys, headers and values, then their bytes

Header, runs and cursors together are the frame's *meta*. It depends on the place the frame gets, so it is
made under the store's lock; bodies are made, and their checksums taken, before. A run's body does not
depend on its place: a reader of one stream touches nothing of the others, and the cleaner moves bodies as
they are.

Numbers are little-endian; times are microseconds since the epoch.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, starmap
from struct import Struct, unpack_from
from typing import Final
from zlib import crc32

import msgspec

MAGIC: Final = 0x4D465748  # "HWFM"
MAX_FRAME: Final = 1 << 30  # bytes; a position within a segment has 32 bits

# magic, crc, meta length, length, segment, position, runs, cursors, time, number, durable
HEADER: Final = Struct("<8I3Q")
# stream, records, first offset, previous frame, start of body, crc of body, columns
RUN: Final = Struct("<IIQIIII")
_ONE_RUN: Final = HEADER.size + RUN.size  # the meta of a frame with one run and no cursors
CURSOR: Final = Struct("<IQH")  # stream, next offset, length of the group's name that follows

_CHECKED_FROM: Final = 8  # header.crc covers the meta from here on
_UNCHECKED: Final = Struct("<II")
_CHECKED: Final = Struct("<6I3Q")
_CHECKED_AND_RUN: Final = Struct("<6I3QIIQIIII")
_STREAM: Final = Struct("<I")

# How a column's lengths are written, two bits each for keys, headers and values.
_EMPTY, _SHORT, _LONG, _SOME = 0, 1, 2, 3  # _SOME: long, and some of the keys are None
_NO_KEY: Final = 0xFFFFFFFF


class Run(msgspec.Struct, frozen=True, gc=False):
    """Records to append to one stream, in order, as columns of the same length.

    `headers` are opaque bytes, one entry a record, b"" for none.
    """

    stream: int
    keys: Sequence[bytes | None]
    headers: Sequence[bytes]
    values: Sequence[bytes]


class CursorCommit(msgspec.Struct, frozen=True, gc=False):
    """A group has done everything below `next` on a stream."""

    group: str
    stream: int
    next: int


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """Consecutive records of one stream as columns; the first has offset `base`. `time` is in seconds."""

    base: int
    time: float
    keys: Sequence[bytes | None]
    headers: Sequence[bytes]
    values: Sequence[bytes]

    @property
    def offsets(self) -> range:
        """The offsets of the records."""
        return range(self.base, self.base + len(self.values))


class BadFrameError(Exception):
    """Bytes that are not the frame that should be there. `reason` says what is wrong with them."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"byte {position}: {reason}")
        self.position, self.reason = position, reason


class Header(msgspec.Struct, frozen=True, gc=False):
    """The fixed part of a frame."""

    magic: int
    crc: int
    meta_length: int
    length: int
    segment: int
    position: int
    runs: int
    cursors: int
    time: int
    number: int
    durable: int


class RunEntry(msgspec.Struct, frozen=True, gc=False):
    """Where and what one run is. `start` counts from the frame's first byte."""

    stream: int
    records: int
    base: int
    previous: int
    start: int
    crc: int
    columns: int


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A frame without its place: everything that can be done before the lock is taken."""

    streams: Sequence[int]
    counts: Sequence[int]
    starts: Sequence[int]
    sizes: Sequence[int]  # bytes of the bodies
    crcs: Sequence[int]
    columns: Sequence[int]
    body: bytes
    cursors: Sequence[CursorCommit]
    cursor_bytes: bytes
    meta_length: int
    length: int
    order: Sequence[int] | None  # where each of the caller's runs went, if they had to be sorted


def encode(runs: Sequence[Run], cursors: Sequence[CursorCommit] = ()) -> Draft:
    """Everything of a frame but its place. Raises ValueError for two runs of one stream or an empty run."""
    if len(runs) == 1 and not cursors:
        return _encode_run(runs[0])
    order: Sequence[int] | None = None
    if len(runs) > 1:
        runs, order = _sorted(runs)
    cursor_bytes = encode_cursors(cursors) if cursors else b""
    at = meta_length = HEADER.size + RUN.size * len(runs) + len(cursor_bytes)
    streams, counts, starts, sizes, crcs, columns, bodies = [], [], [], [], [], [], []
    for run in runs:
        kinds, body = encode_body(run.keys, run.headers, run.values)
        size = len(body)
        streams.append(run.stream)
        counts.append(len(run.values))
        starts.append(at)
        sizes.append(size)
        crcs.append(crc32(body))
        columns.append(kinds)
        bodies.append(body)
        at += size
    if at > MAX_FRAME:
        raise ValueError(f"one commit of {at} bytes is over the limit of {MAX_FRAME}: publish in smaller batches")
    body = bodies[0] if len(bodies) == 1 else b"".join(bodies)
    return Draft(streams, counts, starts, sizes, crcs, columns, body, cursors, cursor_bytes, meta_length, at, order)


def _encode_run(run: Run) -> Draft:
    """The commonest frame: one run and nothing else."""
    kinds, body = encode_body(run.keys, run.headers, run.values)
    size = len(body)
    length = _ONE_RUN + size
    if length > MAX_FRAME:
        raise ValueError(f"one commit of {length} bytes is over the limit of {MAX_FRAME}: publish in smaller batches")
    return Draft(
        (run.stream,), (len(run.values),), (_ONE_RUN,), (size,), (crc32(body),), (kinds,), body, (), b"", _ONE_RUN,
        length, None,
    )  # fmt: skip


def _sorted(runs: Sequence[Run]) -> tuple[Sequence[Run], Sequence[int]]:
    ranks = sorted(range(len(runs)), key=lambda i: runs[i].stream)
    order = [0] * len(ranks)
    for place, rank in enumerate(ranks):
        order[rank] = place
    runs = [runs[rank] for rank in ranks]
    if any(a.stream == b.stream for a, b in pairwise(runs)):
        raise ValueError("a frame holds one run of a stream: join the records into it")
    return runs, order


def stamp(
    draft: Draft,
    segment: int,
    position: int,
    bases: Sequence[int],
    previous: Sequence[int],
    time: int,
    number: int,
    durable: int,
) -> bytes:
    """The meta of a draft that found its place; its body follows as it is."""
    runs, cursors = len(bases), len(draft.cursors)
    if runs == 1 and not cursors:
        checked = _CHECKED_AND_RUN.pack(
            draft.meta_length, draft.length, segment, position, 1, 0, time, number, durable,
            draft.streams[0], draft.counts[0], bases[0], previous[0], draft.starts[0], draft.crcs[0],
            draft.columns[0],
        )  # fmt: skip
    else:
        fixed = _CHECKED.pack(draft.meta_length, draft.length, segment, position, runs, cursors, time, number, durable)
        table = map(RUN.pack, draft.streams, draft.counts, bases, previous, draft.starts, draft.crcs, draft.columns)
        checked = b"".join((fixed, *table, draft.cursor_bytes))
    return _UNCHECKED.pack(MAGIC, crc32(checked)) + checked


def encode_cursors(cursors: Sequence[CursorCommit]) -> bytes:
    """Cursor commits, one after the other."""
    parts: list[bytes] = []
    for cursor in cursors:
        group = cursor.group.encode()
        parts += CURSOR.pack(cursor.stream, cursor.next, len(group)), group
    return b"".join(parts)


def encode_body(keys: Sequence[bytes | None], headers: Sequence[bytes], values: Sequence[bytes]) -> tuple[int, bytes]:
    """A run's body, and how its columns are written. Raises ValueError for columns of unequal length."""
    count = len(values)
    if not count or len(keys) != count or len(headers) != count:
        raise ValueError(f"a run needs columns of one length: {len(keys)} keys, {len(headers)} headers, {count} values")
    if count == 1 and keys[0] is None and not headers[0] and 0 < len(values[0]) < 1 << 16:
        return _SHORT << 4, len(values[0]).to_bytes(2, "little") + values[0]  # as below, for the commonest record
    kinds = 0
    lengths: list[bytes] = []
    present: list[bytes] = []
    if None not in keys:
        kinds, column = _lengths(keys)  # type: ignore[arg-type]  # none of them is None
        lengths.append(column)
        present += keys  # type: ignore[arg-type]  # the same
    elif keys.count(None) != count:
        kinds = _SOME
        lengths.append(array("I", [_NO_KEY if key is None else len(key) for key in keys]).tobytes())
        present += filter(None, keys)
    for shift, items in ((2, headers), (4, values)):
        if any(items):
            kind, column = _lengths(items)
            kinds |= kind << shift
            lengths.append(column)
            present += items
    return kinds, b"".join(lengths + present)


def _lengths(items: Sequence[bytes]) -> tuple[int, bytes]:
    if len(items) == 1 and len(items[0]) < 1 << 16:
        return _SHORT, len(items[0]).to_bytes(2, "little")
    try:
        return _SHORT, array("H", map(len, items)).tobytes()
    except OverflowError:
        return _LONG, array("I", map(len, items)).tobytes()


def decode_body(
    body: bytes, count: int, columns: int
) -> tuple[Sequence[bytes | None], Sequence[bytes], Sequence[bytes]]:
    """The keys, headers and values of a run. The body's checksum was verified before."""
    key_kind, header_kind, value_kind = columns & 3, columns >> 2 & 3, columns >> 4 & 3
    at = 0
    key_sizes, at = _read_lengths(body, at, count, key_kind)
    header_sizes, at = _read_lengths(body, at, count, header_kind)
    value_sizes, at = _read_lengths(body, at, count, value_kind)
    keys: Sequence[bytes | None] = [None] * count
    headers: Sequence[bytes] = [b""] * count
    values: Sequence[bytes] = headers
    if key_kind == _SOME:
        cut, at = _cut(body, at, [0 if size == _NO_KEY else size for size in key_sizes])
        keys = [None if size == _NO_KEY else key for size, key in zip(key_sizes, cut, strict=True)]
    elif key_kind:
        keys, at = _cut(body, at, key_sizes)
    if header_kind:
        headers, at = _cut(body, at, header_sizes)
    if value_kind:
        values, at = _cut(body, at, value_sizes)
    return keys, headers, values


def _read_lengths(body: bytes, at: int, count: int, kind: int) -> tuple[Sequence[int], int]:
    if kind == _EMPTY:
        return (), at
    if kind == _SHORT:
        return unpack_from(f"<{count}H", body, at), at + 2 * count
    return unpack_from(f"<{count}I", body, at), at + 4 * count


def _cut(body: bytes, at: int, sizes: Sequence[int]) -> tuple[list[bytes], int]:
    if len(sizes) == 1:
        end = at + sizes[0]
        return [body[at:end]], end
    ends = list(accumulate(sizes, initial=at))
    return [body[start:end] for start, end in pairwise(ends)], ends[-1]


def read_header(buffer: bytes, at: int, segment: int, position: int) -> Header:
    """The header at `at`, which must claim to be this segment's frame at this position.

    Its checksum is verified by `verify_meta`, once the whole meta is at hand. Raises BadFrameError.
    """
    if at + HEADER.size > len(buffer):
        raise BadFrameError(position, "the file ends inside a frame's header")
    header = Header(*HEADER.unpack_from(buffer, at))
    if header.magic != MAGIC:
        raise BadFrameError(position, "no frame begins here")
    if header.segment != segment or header.position != position:
        raise BadFrameError(position, f"a frame of segment {header.segment}, byte {header.position} lies here")
    least = HEADER.size + RUN.size * header.runs + CURSOR.size * header.cursors
    if not least <= header.meta_length <= header.length <= MAX_FRAME:
        raise BadFrameError(position, "a frame's lengths contradict each other")
    return header


def verify_meta(buffer: bytes, at: int, header: Header) -> None:
    """Raise BadFrameError unless header, run table and cursors are as they were written."""
    end = at + header.meta_length
    if end > len(buffer):
        raise BadFrameError(header.position, "the file ends inside a frame")
    if crc32(memoryview(buffer)[at + _CHECKED_FROM : end]) != header.crc:
        raise BadFrameError(header.position, "the checksum of a frame's header does not match")


def read_run(buffer: bytes, at: int, index: int) -> RunEntry:
    """An entry of the run table of the frame at `at`."""
    return RunEntry(*RUN.unpack_from(buffer, at + HEADER.size + RUN.size * index))


def read_runs(buffer: bytes, at: int, header: Header) -> Iterator[RunEntry]:
    """The whole run table."""
    first = at + HEADER.size
    return starmap(RunEntry, RUN.iter_unpack(buffer[first : first + RUN.size * header.runs]))


def run_end(buffer: bytes, at: int, header: Header, index: int) -> int:
    """Where the body of a run ends, from the frame's first byte."""
    return read_run(buffer, at, index + 1).start if index + 1 < header.runs else header.length


def find_run(buffer: bytes, at: int, header: Header, stream: int) -> int:
    """The index of a stream's run, -1 if the frame holds none."""
    table = at + HEADER.size
    low, high = 0, header.runs
    while low < high:
        middle = (low + high) // 2
        found = _STREAM.unpack_from(buffer, table + RUN.size * middle)[0]
        if found == stream:
            return middle
        if found < stream:
            low = middle + 1
        else:
            high = middle
    return -1


def read_cursors(buffer: bytes, at: int, header: Header) -> list[CursorCommit]:
    """The cursor commits that ride in a frame."""
    found = []
    at += HEADER.size + RUN.size * header.runs
    for _ in range(header.cursors):
        stream, following, length = CURSOR.unpack_from(buffer, at)
        at += CURSOR.size
        found.append(CursorCommit(buffer[at : at + length].decode(), stream, following))
        at += length
    return found
