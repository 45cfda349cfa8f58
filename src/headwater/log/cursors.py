"""How far a group has come on a partition: a watermark, and past it what was delivered and what is done.

A cursor file holds one page per partition that a member took at one time. An acknowledgement is a store
into mapped memory: it survives the death of the process at any instant, and `sync` brings it to the disk.

A page: a checksummed header that never changes, words that change by single aligned 8-byte stores (each
carries its own checksum), and a ring of one byte per offset past the watermark, with a parity bit.

A page belongs to one owner. The next owner copies it into a file of its own, so that what a former owner
still writes goes to a page nobody reads.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import StoreCorruptError, StoreError, StoreFullError, StoreVersionError

PAGE: Final = 16384
HEADER: Final = 128
WINDOW: Final = PAGE - HEADER  # offsets past the watermark that can be told apart
SWEEP: Final = 2048  # done offsets below the watermark are wiped from the ring this many at a time

_MAGIC: Final = b"HWCURSOR"
_VERSION: Final = 1
_STATIC: Final = struct.Struct("<8sIIQ")  # magic, version, crc32 of the name, generation
_CRC: Final = struct.Struct("<I")

# Words, as indexes into the page seen as 8-byte integers. Those below 8 are the static header.
_WATERMARK: Final = 8  # everything below is done
_SWEPT: Final = 9  # the ring holds offsets from here to here + WINDOW
_STAGED: Final = 10  # watermark of a transaction that is committed but perhaps not on disk
_STAGED_FRAME: Final = 11  # its frame
_STAGED_BOOT: Final = 12  # the boot in which it was staged
_RESET_FRAME: Final = 13  # transactions up to this frame were undone by a reset
_RETIRED: Final = 14  # another member has taken this page over

# A byte of the ring: a number in the low seven bits and their parity on top, so that one flipped bit shows.
_DONE_NUMBER: Final = 127
_MOST: Final = 126  # attempts counted; more show as this many


def _with_parity(number: int) -> int:
    return number | (number.bit_count() & 1) << 7


_FRESH: Final = 0
_DONE: Final = _with_parity(_DONE_NUMBER)
_ONCE: Final = _with_parity(1)
_NUMBER: Final = {_with_parity(number): number for number in range(128)}


_ALL_ONCE: Final = bytes([_ONCE]) * WINDOW
_ALL_DONE: Final = bytes([_DONE]) * WINDOW
_ALL_FRESH: Final = bytes(WINDOW)
_DONE_BYTE: Final = bytes([_DONE])
_GIVEN_BACK: Final = bytes(_FRESH if byte == _ONCE else byte for byte in range(256))

_PRIME: Final = 65521  # a flipped bit changes the number by a power of two, which no odd prime divides
MAX_OFFSET: Final = (1 << 48) - 1


def _sealed(number: int) -> int:
    return number << 16 | number % _PRIME


class CursorPage:
    """The position of one group on one partition.

    One owner at a time writes; anybody may read. Offsets below `watermark` are done for good; those from
    there up to `limit` are told apart: fresh, delivered (with the number of attempts), done. The watermark
    goes back only by `reset`.
    """

    __slots__ = ("_floor", "_ring", "_words", "index", "name", "path")

    def __init__(self, view: memoryview, path: Path, index: int, name: str) -> None:
        self._words = view.cast("Q")
        self._ring = view[HEADER:]
        self.path, self.index, self.name = path, index, name
        self._check_header(bytes(view[:HEADER]))
        self._floor = self._word(_SWEPT)

    def _check_header(self, header: bytes) -> None:
        magic, version, crc, _ = _STATIC.unpack_from(header)
        (checksum,) = _CRC.unpack_from(header, _STATIC.size)
        if checksum != zlib.crc32(header[: _STATIC.size]) or magic != _MAGIC:
            raise self._damaged("its header")
        if version > _VERSION:
            raise StoreVersionError(
                self.path,
                f"cursor format {version}, this Headwater knows up to {_VERSION}: upgrade to use this store",
            )
        if crc != zlib.crc32(self.name.encode()):
            raise self._damaged("it belongs to another partition")

    def _damaged(self, part: str, position: int = 0) -> StoreCorruptError:
        return StoreCorruptError(
            self.path.parent,
            self.path.name,
            self.index * PAGE + position,
            f"cursor of {self.name}: {part}; the messages are safe, `headwater groups reset` gives the group "
            f"a new position",
        )

    def _word(self, index: int) -> int:
        word: int = self._words[index]
        number = word >> 16
        if word & 0xFFFF != number % _PRIME:
            raise self._damaged("a position", index * 8)
        return number

    @property
    def generation(self) -> int:
        """The group's generation in which this page was made."""
        return int(self._words[2])

    @property
    def watermark(self) -> int:
        """The next offset that is not done."""
        word: int = self._words[_WATERMARK]
        number = word >> 16
        if word & 0xFFFF != number % _PRIME:
            raise self._damaged("its watermark", _WATERMARK * 8)
        return number

    @property
    def limit(self) -> int:
        """The first offset too far past the watermark to be delivered yet."""
        return self._floor + WINDOW

    @property
    def retired(self) -> bool:
        """Whether another member has taken this page over: nothing written here counts any more."""
        return bool(self._words[_RETIRED])

    def retire(self) -> None:
        """Mark the page as taken over. What its former owner writes from now on is lost on purpose."""
        self._words[_RETIRED] = 1

    def next_run(self, position: int, limit: int) -> tuple[int, int, int]:
        """What to deliver from `position` on: (first offset, how many, their attempt).

        Done messages are skipped, and a run is of one attempt. With none to deliver in reach the count is
        0, and the offset says up to where all is done.
        """
        end = min(position + limit, self._floor + WINDOW)
        if position >= end:
            return position, 0, 1
        ring = self._slice(position, end - position)
        if not ring.rstrip(b"\0"):
            return position, end - position, 1
        rest = ring.lstrip(_DONE_BYTE)
        first = end - len(rest)
        if not rest:
            return end, 0, 1
        run = len(rest) - len(rest.lstrip(rest[:1]))
        return first, run, self._attempts(first, rest[0]) + 1

    def _attempts(self, offset: int, byte: int) -> int:
        number = _NUMBER.get(byte)
        if number is None:
            raise self._damaged(f"the mark of offset {offset}", HEADER + offset % WINDOW)
        return number

    def done_ahead(self, end: int) -> int:
        """How many offsets past the watermark and below `end` are done."""
        first = self.watermark
        count = min(end, self._word(_SWEPT) + WINDOW) - first
        return self._slice(first, count).count(_DONE) if count > 0 else 0

    def deliver(self, first: int, count: int) -> None:
        """Note that these fresh offsets are delivered, before anybody handles them: a first attempt begins."""
        if count == 1:
            self._ring[first % WINDOW] = _ONCE
        else:
            self._fill(first, _ALL_ONCE[:count])

    def begin(self, offset: int, attempt: int) -> None:
        """Note that this attempt at an offset begins, so that the next one after a death is counted on."""
        if self.watermark <= offset < self._floor + WINDOW:
            start = offset % WINDOW
            if self._attempts(offset, self._ring[start]) < attempt:
                self._ring[start] = _with_parity(min(attempt, _MOST))

    def give_back(self, end: int) -> None:
        """Take back the delivery of what is not done below `end` and was not tried again: nobody died over it."""
        first = self.watermark
        if end > first:
            self._fill(first, self._slice(first, end - first).translate(_GIVEN_BACK))

    def ack(self, first: int, count: int = 1) -> None:
        """These offsets are done. Idempotent, in any order.

        Raises ValueError for an offset that cannot have been delivered.
        """
        watermark, end = self.watermark, first + count
        if end > self._floor + WINDOW:
            raise ValueError(f"offset {end - 1} of {self.name} was not delivered; done up to {watermark}")
        if first > watermark:
            if count == 1:
                self._ring[first % WINDOW] = _DONE
            else:
                self._fill(first, _ALL_DONE[:count])
        elif end > watermark:
            self._advance(end)

    def advance(self, to: int) -> None:
        """Everything below `to` is done. Never goes back."""
        if to > self.watermark:
            self._advance(to)

    def _advance(self, to: int) -> None:
        end = self._floor + WINDOW
        if to < end and self._ring[to % WINDOW] == _DONE:
            to = self._end_of_done(to, end)
        # The one store that is the acknowledgement. The ring is wiped afterwards and `_SWEPT` says how far,
        # so that a death in between leaves nothing a later lap of the ring could mistake.
        self._words[_WATERMARK] = to << 16 | to % _PRIME
        if to - self._floor >= SWEEP:
            self._sweep(to)

    def _end_of_done(self, first: int, end: int) -> int:
        while first < end:
            ring = self._slice(first, min(256, end - first))
            rest = ring.lstrip(_DONE_BYTE)
            first += len(ring) - len(rest)
            if rest:
                break
        return first

    def _sweep(self, to: int) -> None:
        self._fill(self._floor, _ALL_FRESH[: min(to - self._floor, WINDOW)])
        self._words[_SWEPT] = _sealed(to)
        self._floor = to

    def reset(self, to: int, frame: int = 0) -> None:
        """Begin again at `to`, forgetting what was delivered and done past it, and transactions up to `frame`."""
        self._words[_RESET_FRAME] = _sealed(frame)
        self._words[_STAGED_FRAME] = 0
        # Wipe first: a death in between redelivers instead of taking old marks for new ones.
        self._ring[:] = _ALL_FRESH
        if to > self.watermark:
            self._words[_WATERMARK] = _sealed(to)
            self._words[_SWEPT] = _sealed(to)
        else:
            self._words[_SWEPT] = _sealed(to)
            self._words[_WATERMARK] = _sealed(to)
        self._floor = to

    def cut(self, end: int) -> None:
        """Nothing from `end` on exists any more: forget what was delivered and done there.

        After a power loss a page may know of messages that the journal lost; their offsets will be given again.
        """
        if self.watermark > end:
            self._ring[:] = _ALL_FRESH
            self._words[_SWEPT] = self._words[_WATERMARK] = _sealed(end)
            self._floor = end
        elif end < self._floor + WINDOW:
            self._fill(end, _ALL_FRESH[: self._floor + WINDOW - end])

    def stage(self, to: int, frame: int, boot: int) -> None:
        """A transaction in this frame commits everything below `to`; it counts after `settle`. Idempotent.

        Its frame may not be on disk yet, while the kernel may write this page out at any moment: after a
        power loss the watermark must not be ahead of the journal.
        """
        if frame <= self._word(_RESET_FRAME):
            return
        if not self._words[_STAGED_FRAME] or to > self._word(_STAGED) or boot != self._word(_STAGED_BOOT):
            self._words[_STAGED_FRAME] = 0
            self._words[_STAGED] = _sealed(to)
            self._words[_STAGED_BOOT] = _sealed(boot)
        self._words[_STAGED_FRAME] = _sealed(frame)

    def staged(self, boot: int) -> tuple[int, int] | None:
        """(offset, frame) of a transaction that waits for `settle`; None without one of this boot."""
        if not self._words[_STAGED_FRAME] or self._word(_STAGED_BOOT) != boot:
            return None
        return self._word(_STAGED), self._word(_STAGED_FRAME)

    def settle(self, frame: int, boot: int) -> None:
        """All frames up to this one are as durable as promised: a transaction staged by then counts."""
        staged = self.staged(boot)
        if staged is not None and staged[1] <= frame:
            self.advance(staged[0])
            self._words[_STAGED_FRAME] = 0

    def _slice(self, first: int, count: int) -> bytes:
        start = first % WINDOW
        end = start + count
        if end <= WINDOW:
            return bytes(self._ring[start:end])
        return bytes(self._ring[start:]) + bytes(self._ring[: end - WINDOW])

    def _fill(self, first: int, marks: bytes) -> None:
        start = first % WINDOW
        end = start + len(marks)
        if end <= WINDOW:
            self._ring[start:end] = marks
        else:
            split = WINDOW - start
            self._ring[start:] = marks[:split]
            self._ring[: end - WINDOW] = marks[split:]

    def copied(self, generation: int) -> bytes:
        """The content of a page that takes this one over.

        The former owner may be alive and unaware, and write while this reads: read until two looks agree,
        else keep the watermark alone, which at worst delivers something again.
        """
        for _ in range(100):
            before = self._words[_WATERMARK], self._words[_SWEPT]
            words, ring = self._words[_WATERMARK:_RETIRED].tobytes(), bytes(self._ring)
            if (self._words[_WATERMARK], self._words[_SWEPT]) == before:
                floor = self._word(_SWEPT)
                watermark = self.watermark
                break
        else:
            return blank_page(self.name, generation, self.watermark)
        page = bytearray(_header(self.name, generation))
        page[_WATERMARK * 8 : _WATERMARK * 8 + len(words)] = words
        page[HEADER:] = _swept(ring, floor, watermark)
        page[_SWEPT * 8 : _SWEPT * 8 + 8] = _sealed(watermark).to_bytes(8, "little")
        return bytes(page)

    def close(self) -> None:
        """Let go of the mapped memory. Idempotent."""
        self._ring.release()
        self._words.release()


def _swept(ring: bytes, floor: int, watermark: int) -> bytes:
    """The ring with everything below the watermark wiped, as a death may have left it undone."""
    done = min(watermark - floor, WINDOW)
    start = floor % WINDOW
    swept = bytearray(ring)
    split = min(done, WINDOW - start)
    swept[start : start + split] = bytes(split)
    swept[: done - split] = bytes(done - split)
    return bytes(swept)


def _header(name: str, generation: int) -> bytes:
    static = _STATIC.pack(_MAGIC, _VERSION, zlib.crc32(name.encode()), generation)
    return (static + _CRC.pack(zlib.crc32(static))).ljust(PAGE, b"\0")


def blank_page(name: str, generation: int, watermark: int, reset_frame: int = 0) -> bytes:
    """The content of a page whose next message is at `watermark`; transactions up to `reset_frame` are undone."""
    page = bytearray(_header(name, generation))
    word = _sealed(watermark).to_bytes(8, "little")
    page[_WATERMARK * 8 : _WATERMARK * 8 + 16] = word + word
    page[_RESET_FRAME * 8 : _RESET_FRAME * 8 + 8] = _sealed(reset_frame).to_bytes(8, "little")
    return bytes(page)


class CursorFile:
    """A file of cursor pages, mapped. `names[i]` says which group and partition page `i` belongs to."""

    def __init__(self, path: Path) -> None:
        """Map an existing file. Raises StoreCorruptError if it is missing or cut."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise StoreCorruptError(path.parent, path.name, 0, "the file of cursors is missing") from None
        size = os.fstat(self._file).st_size
        if size == 0 or size % PAGE:
            os.close(self._file)
            raise StoreCorruptError(path.parent, path.name, size, "the file of cursors was cut")
        self._map = mmap.mmap(self._file, size)
        self._view = memoryview(self._map)
        self._pages: dict[int, CursorPage] = {}

    @classmethod
    def create(cls, path: Path, pages: Sequence[bytes]) -> CursorFile:
        """Write a new file, fully allocated and on disk, and map it. Raises StoreFullError."""
        content = b"".join(pages)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, len(content))
            if os.pwrite(descriptor, content, 0) != len(content):
                raise OSError("short write")
            os.fdatasync(descriptor)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StoreFullError(path, f"no room for a group's cursors ({error}): free some space") from error
        finally:
            os.close(descriptor)
        return cls(path)

    def page(self, index: int, name: str) -> CursorPage:
        """Page `index`, which must be the one of `name`. Raises StoreCorruptError if it is damaged."""
        page = self._pages.get(index)
        if page is None:
            view = self._view[index * PAGE : (index + 1) * PAGE]
            if len(view) < PAGE:
                raise StoreError(self.path, f"holds no page {index} for {name}")
            page = self._pages[index] = CursorPage(view, self.path, index, name)
        return page

    def sync(self) -> None:
        """Bring what was written to the disk. Blocks, without holding the interpreter's lock."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Unmap and close. Idempotent."""
        for page in self._pages.values():
            page.close()
        self._pages.clear()
        self._view.release()
        if not self._map.closed:
            self._map.close()
            os.close(self._file)
