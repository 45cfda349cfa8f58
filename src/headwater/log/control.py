"""What every process of a store shares: the control file, a memory map of 64-bit words.

One aligned store of the word COMMIT is a commit: it names which of two state slots counts. Everything else
in the file can be told from the journal again, and is, after the machine was restarted.

A *position* in the journal is `segment << 32 | byte`. Words that hold one outside a slot carry a parity bit,
so that a flipped bit is noticed and a store still is a single one.
"""

from __future__ import annotations

import mmap
import os
import uuid
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import Final

from ..errors import StoreCorruptError, StoreError, StoreVersionError

NAME: Final = "ctl"
VERSION: Final = 1

MAGIC_WORD, VERSION_WORD, BOOT, CAPACITY = 0, 1, 2, 4  # the boot id takes two words
COMMIT: Final = 5  # number of the last commit; its lowest bit names the slot that counts
APPLIED: Final = 6  # the last commit whose effects on the heads and cursors were seen through
OWNER: Final = 7  # process that took the lock last
SLOTS: Final = 8  # two slots of eight words
VISIBLE: Final = 24  # sealed position: what readers see ends here
DURABLE: Final = 25  # sealed position: what an fdatasync has covered ends here
UNAPPLIED: Final = 26  # sealed position: cursors that ride in frames from here on may not be on disk; 0: none
CATALOG: Final = 27  # changes with the catalog
SEGMENTS: Final = 28  # changes with the set of segment files
ALLOCATED: Final = 29  # bytes of the active segment that have their place on disk
PENDING: Final = 31  # sealed position: cursors from here on wait for a process that applies them; 0: none
FAILED: Final = 30  # REFUSED: an fdatasync failed, nothing since the last good one can be vouched for; else 0

# within a slot
NUMBER, END, FRAME, TIME, CHECK = 0, 1, 2, 3, 4

HEADS: Final = 512  # the first head, in words
HEAD: Final = 4  # words of a head: one for each stream
NEXT, TAIL, BYTES = 0, 1, 2  # next offset, position of the last frame, bytes ever appended
RETIRED: Final = (1 << 64) - 1  # as NEXT: the stream's topic was deleted

REFUSED: Final = int.from_bytes(b"refused", "little")

LOW: Final = (1 << 32) - 1
MASK: Final = (1 << 64) - 1

_MAGIC: Final = int.from_bytes(b"HWATERCT", "little")
_VERSIONED: Final = VERSION | (~VERSION & LOW) << 32
_GROWTH: Final = 4096  # streams


# The committed state: the commit's number, the end of the journal, the position of the last frame or 0 if
# the last commit held none, its time.
State = tuple[int, int, int, int]


def seal(position: int) -> int:
    """A position with its parity bit, as a word."""
    return position << 1 | (position.bit_count() & 1)


def unseal(word: int) -> int:
    """The position in a word."""
    return word >> 1


def boot_id() -> bytes:
    """16 bytes that change when the machine restarts: from then on the control file is not believed."""
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return os.urandom(16)  # never believed: every open looks at the journal itself


class Control:
    """The control file, mapped. `words` are its words; who stores what when is the journal's business."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._outgrown: list[tuple[mmap.mmap, memoryview[int]]] = []
        try:
            self._map()
        except BaseException:
            os.close(self._fd)
            raise

    def _map(self) -> None:
        size = os.fstat(self._fd).st_size
        if size < 8 * (HEADS + HEAD) or size % (8 * HEAD):
            raise self.damaged(size, "the file is cut short")
        self._mmap = mmap.mmap(self._fd, size)
        self.words: memoryview[int] = memoryview(self._mmap).cast("Q")
        self.capacity = (size // 8 - HEADS) // HEAD

    @classmethod
    def create(cls, path: Path, streams: int, boot: bytes, state: State) -> Control:
        """Write a new control file beside `path`; `publish` puts it into place once its heads are filled.

        Every byte has its place on disk: a store into a mapped hole of a full disk would be a SIGBUS.
        """
        beside = path.with_suffix(".new")
        size = 8 * (HEADS + HEAD * _rounded(streams))
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            allocate(fd, 0, size)
        finally:
            os.close(fd)
        control = cls(beside)
        words = control.words
        words[MAGIC_WORD], words[VERSION_WORD] = _MAGIC, _VERSIONED
        words[BOOT], words[BOOT + 1] = _boot_words(boot)
        control.commit(*state)
        words[APPLIED] = state[0]
        words[VISIBLE] = words[DURABLE] = seal(state[1])
        words[CATALOG] = words[SEGMENTS] = 1
        return control

    def publish(self, path: Path) -> None:
        """Put a created file into its place, at once and for good."""
        self._mmap.flush()
        os.fsync(self._fd)
        os.rename(self.path, path)
        self.path = path

    def close(self) -> None:
        """Unmap. Idempotent."""
        if self._fd >= 0:
            for mapped, words in (*self._outgrown, (self._mmap, self.words)):
                words.release()
                mapped.close()
            os.close(self._fd)
            self._fd = -1

    def join(self) -> None:
        """Show that a process uses the store, for as long as the file is open."""
        flock(self._fd, LOCK_SH | LOCK_NB)

    def claim(self) -> bool:
        """Have the store for oneself while the file is open; False if some process uses it."""
        try:
            flock(self._fd, LOCK_EX | LOCK_NB)
            return True
        except BlockingIOError:
            return False

    def abandon(self) -> None:
        """In a forked child: give up what was inherited, without a word to the parent."""
        os.close(self._fd)
        self._fd = -1

    def booted(self, boot: bytes) -> bool:
        """Whether this file was written since the machine started."""
        return (self.words[BOOT], self.words[BOOT + 1]) == _boot_words(boot)

    def check_version(self) -> None:
        """Raise StoreVersionError for a newer store, StoreCorruptError for something else entirely."""
        if self.words[MAGIC_WORD] != _MAGIC:
            raise self.damaged(0, "this is not a control file")
        word = self.words[VERSION_WORD]
        if word & LOW ^ word >> 32 != LOW:
            raise self.damaged(8 * VERSION_WORD, "the version does not make sense")
        if word & LOW > VERSION:
            raise StoreVersionError(
                self.path.parent,
                f"written by a newer Headwater (format {word & LOW}, this one knows {VERSION}): "
                f"upgrade Headwater, or use another directory",
            )

    def check(self) -> None:
        """Raise StoreCorruptError if a word does not make sense. Under the lock."""
        self.state()
        for word in (VISIBLE, DURABLE, UNAPPLIED, PENDING):
            if self.words[word].bit_count() & 1:
                raise self.damaged(8 * word, "a position does not make sense")
        end = self.end
        if not unseal(self.words[DURABLE]) <= end >= unseal(self.words[VISIBLE]):
            raise self.damaged(8 * DURABLE, "a position lies behind the end of the journal")
        if self.words[FAILED] not in (0, REFUSED):
            raise self.damaged(8 * FAILED, "a mark does not make sense")
        if self.words[FAILED]:
            raise StoreError(
                self.path.parent,
                "the disk refused an fsync: stop every process that uses this store, look at the disk, "
                "then run `headwater log repair`",
            )

    def damaged(self, position: int, why: str) -> StoreCorruptError:
        """The error for a damaged control file. It can be made anew from the journal."""
        return StoreCorruptError(self.path.parent, NAME, position, f"{why}; no message is lost")

    def state(self) -> State:
        """The committed state. Needs no lock: it is read again if a commit came in between."""
        words = self.words
        while True:
            number = words[COMMIT]
            at = SLOTS + 8 * (number & 1)
            found, end, frame, time, check = words[at : at + 5].tolist()
            if words[COMMIT] == number:
                break
        if found != number or check != number ^ end ^ frame ^ time ^ _MAGIC:
            raise self.damaged(8 * at, "the committed state does not make sense")
        return number, end, frame, time

    @property
    def end(self) -> int:
        """The position at which the committed journal ends."""
        return self.state()[1]

    def commit(self, number: int, end: int, frame: int, time: int) -> None:
        """Fill the slot that does not count, then make it count. Under the lock."""
        words = self.words
        at = SLOTS + 8 * (number & 1)
        words[at] = number
        words[at + END] = end
        words[at + FRAME] = frame
        words[at + TIME] = time
        words[at + CHECK] = number ^ end ^ frame ^ time ^ _MAGIC
        words[COMMIT] = number

    def forget_boot(self) -> None:
        """Have the next open believe only the journal."""
        self.words[BOOT] = self.words[BOOT + 1] = 0

    def bump(self, word: int) -> None:
        """Tell the other processes that the catalog or the segments changed. Under the lock."""
        self.words[word] = self.words[word] + 1 & MASK

    def reach(self, streams: int) -> None:
        """Have heads for this many streams, growing the file if nobody did. Growing is done under the lock.

        Raises OSError (ENOSPC) on a full disk, with nothing changed.
        """
        if streams <= self.capacity:
            return
        size = 8 * (HEADS + HEAD * _rounded(streams))
        now = os.fstat(self._fd).st_size
        if now < size:
            allocate(self._fd, now, size - now)
        self._outgrown.append((self._mmap, self.words))  # other threads may be using them; they are the same words
        self._map()


def allocate(fd: int, start: int, length: int) -> None:
    """Give a range of a file its place on disk, as zeros. Raises OSError (ENOSPC)."""
    os.posix_fallocate(fd, start, length)
    zeros = bytes(min(length, 1 << 16))
    for at in range(start, start + length, len(zeros)):
        os.pwrite(fd, zeros[: start + length - at], at)


def _rounded(streams: int) -> int:
    return max(1, -(-streams // _GROWTH)) * _GROWTH


def _boot_words(boot: bytes) -> tuple[int, int]:
    return int.from_bytes(boot[:8], "little"), int.from_bytes(boot[8:16], "little")
