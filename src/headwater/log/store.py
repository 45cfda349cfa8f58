"""The store as its users see it: open a directory, append, read, manage topics.

A store is one directory. Any number of processes may have it open; each sees what the others append.
All methods may be called from any thread, and those that say so block. A `Store` does not survive a fork:
the child opens its own.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn

import msgspec

from ..errors import StoreError, StoreNotFoundError, TopicNotFoundError
from . import control as ctl
from . import frames, recovery, retention
from .catalog import Catalog, TopicEntry, TopicWanted
from .cleaner import Cleaner, CleaningLock, CleanReport
from .control import LOW, Control, unseal
from .directory import explained, prepare
from .disk import Disk
from .frames import Chunk, CursorCommit, Run
from .journal import ApplyCursors, Committed, Durability, Journal, RetiredStreamError
from .lock import NAME as LOCK_NAME
from .lock import Lock
from .reader import Reader
from .retention import Tally

__all__ = [
    "Chunk",
    "CleanReport",
    "Committed",
    "CursorCommit",
    "Record",
    "Run",
    "Store",
    "TopicEntry",
    "TopicWanted",
]

SEGMENT_BYTES: Final = 64 << 20

_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record as stored. `time` is in seconds since the epoch, never less than that of the one before."""

    offset: int
    time: float
    key: bytes | None
    headers: bytes
    value: bytes


class Store:
    """An open store. Made by `Store.open`."""

    def __init__(self, directory: Path, control: Control, lock: Lock, journal: Journal) -> None:
        self.path = directory
        self._clock, self._segment_bytes = journal.clock, journal.segment_bytes
        self._control, self._lock, self._journal = control, lock, journal
        self._disk = Disk(directory, control, lock)
        self._catalog = Catalog(directory, control, lock, journal.settle)
        self._reader = Reader(directory, control, self._describe, self._catalog.is_gone)
        _open_stores.add(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        create: bool = False,
        durability: Durability = "fsync",
        segment_bytes: int = SEGMENT_BYTES,
        lock_timeout: float = 5.0,
        clock: Callable[[], float] = time.time,
        apply_cursors: ApplyCursors | None = None,
        boot: bytes | None = None,
    ) -> Store:
        """Open the store in a directory; with `create`, make it if it is not there. Blocks.

        With durability "fsync", `append` needs `sync` before anybody sees or is promised anything; with
        "process", readers see a frame as soon as it is appended, and it survives the death of processes,
        not of the machine.

        `apply_cursors` is called with the cursor commits of a frame and its number: under the lock, right
        after the commit, and again, in order, for what may not have been seen through when a process or the
        machine died. It must be idempotent, quick, and must not use the store. Cursors met by a process that
        gives none wait for one that does. `boot` names the machine's run, for tests that cut the power.

        Raises StoreNotFoundError (and creates nothing), StoreVersionError, StoreCorruptError,
        StoreBusyError, StoreFullError, or StoreError naming the file and what to do.
        """
        directory = Path(path)
        prepare(directory, create)
        boot = ctl.boot_id() if boot is None else boot
        control: Control | None = None
        with explained(directory / LOCK_NAME, "open the lock file"):
            lock = Lock(directory / LOCK_NAME, lock_timeout, lambda: _owner(directory))
        try:
            with lock, explained(directory, "open the store"):
                control = _control(directory, create, boot)
                journal = Journal(directory, control, lock, durability, segment_bytes, clock, apply_cursors)
                journal.settle()
                control.join()
            store = cls(directory, control, lock, journal)
            store._catalog.topics()
            if store.end > store.visible_end:
                store.sync(store.end)  # what a process that died had committed: nobody else may come to do it
            return store
        except BaseException:
            lock.close()
            if control is not None:
                control.close()
            raise

    def close(self) -> None:
        """Let go of all files; no other thread may be using the store. Flushes nothing. Idempotent."""
        if self in _open_stores:
            _open_stores.discard(self)
            self._journal.close()
            self._reader.close()
            self._lock.close()
            self._control.close()
            self._abandon("this store was closed")

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _abandon(self, why: str) -> None:
        """Have every further use say why it cannot be."""
        gone: Any = _Gone(self.path, why)
        self._journal = self._disk = self._reader = self._catalog = self._lock = self._control = gone

    # Appending

    def append(
        self,
        runs: Sequence[Run],
        cursors: Sequence[CursorCommit] = (),
        guard: Callable[[], None] | None = None,
    ) -> Committed:
        """Commit these records and cursors: all or nothing, in this order, offsets dense per stream.

        `guard` is called under the lock, before anything is written: what it raises stops the commit.
        Blocks for microseconds. With durability "fsync", call `sync(committed.end)` before acknowledging.
        Raises TopicNotFoundError for a deleted topic's stream, StoreFullError with nothing written,
        StoreBusyError, ValueError for two runs of one stream.
        """
        draft = frames.encode(runs, cursors)
        try:
            return self._journal.append(draft, guard)
        except RetiredStreamError as error:
            raise TopicNotFoundError(f"stream {error.stream}", "it was deleted") from error

    def sync(self, upto: int) -> None:
        """Return when everything before the position `upto` is on disk and readers see it.

        Blocks for as long as the disk takes; callers at the same time share one fsync. Raises StoreError.
        """
        self._disk.sync(upto)

    @contextmanager
    def fence(self) -> Iterator[None]:
        """No frame is committed while this is held, and all that were are seen through. Blocks, briefly."""
        with self._lock:
            self._journal.settle()
            yield

    @property
    def number(self) -> int:
        """The number of the last commit."""
        return self._control.state()[0]

    def note_applied(self, position: int) -> None:
        """Say that all effects of cursor commits before this position are on disk."""
        self._journal.note_applied(position)

    # Reading

    @property
    def visible_end(self) -> int:
        """The position up to which readers see the journal; when it changes there is something new."""
        return unseal(self._control.words[ctl.VISIBLE])

    @property
    def end(self) -> int:
        """The position up to which the journal is committed, visible or not."""
        return self._control.end

    def read_columns(self, stream: int, offset: int, limit: int, max_bytes: int = 1 << 20) -> list[Chunk]:
        """Records from `offset` on as columns, one chunk per append: at most `limit`, about `max_bytes`.

        What expired or was purged is skipped, so the first offset may be above `offset`; () at the end.
        Raises StoreCorruptError for damage, TopicNotFoundError for a deleted topic's stream.
        """
        if limit <= 0:
            return []
        return self._reader.read(stream, max(offset, self._start(stream)), limit, max_bytes)

    def read(self, stream: int, offset: int, limit: int, max_bytes: int = 1 << 20) -> list[Record]:
        """The same as records."""
        return [
            Record(offset, chunk.time, key, headers, value)
            for chunk in self.read_columns(stream, offset, limit, max_bytes)
            for offset, key, headers, value in zip(chunk.offsets, chunk.keys, chunk.headers, chunk.values, strict=True)
        ]

    def earliest(self, stream: int) -> int:
        """The first offset that is kept, `latest` if nothing is."""
        return max(self._start(stream), self._reader.first(stream))

    def latest(self, stream: int) -> int:
        """The offset that the next record to become visible will get."""
        self._start(stream)
        return self._reader.latest(stream)

    def committed(self, stream: int) -> int:
        """The offset that follows the last record, visible or not: below it there may be something to read.

        One load, for those who look at many streams; a deleted topic's streams look endless.
        """
        return self._control.words[ctl.HEADS + ctl.HEAD * stream]

    def offset_at(self, stream: int, time: float) -> int:
        """The first kept offset whose record is of `time` (seconds) or later, else `latest`."""
        return max(self.earliest(stream), self._reader.offset_at(stream, time))

    def _start(self, stream: int) -> int:
        try:
            start = self._catalog.start(stream)
            self._journal.verify(stream)
            return start
        except KeyError:
            raise TopicNotFoundError(f"stream {stream}", "it was deleted") from None

    # Topics

    def topics(self) -> dict[str, TopicEntry]:
        """All topics by name, as this moment has them. Cheap while nothing changes."""
        return dict(self._catalog.topics())

    def topic(self, name: str) -> TopicEntry:
        """Raises TopicNotFoundError."""
        return self._catalog.topic(name)

    def create_topic(
        self, name: str, partitions: int, retention: float | None = None, retention_bytes: int | None = None
    ) -> TopicEntry:
        """Have a topic; one that exists is left as it is. `retention` in seconds. Blocks for a few fsyncs."""
        return self.create_topics([TopicWanted(name, partitions, retention, retention_bytes)])[0]

    def create_topics(self, wanted: Iterable[TopicWanted]) -> list[TopicEntry]:
        """Have these topics, in one step. Several processes may do so at once."""
        return self._catalog.create(list(wanted))

    def alter_topic(self, name: str, retention: float | None, retention_bytes: int | None) -> TopicEntry:
        """Set both retentions; None keeps for ever. Raises TopicNotFoundError."""
        return self._catalog.alter(name, retention, retention_bytes)

    def add_partitions(self, name: str, total: int) -> TopicEntry:
        """Have at least `total` partitions. Raises TopicNotFoundError."""
        return self._catalog.add_partitions(name, total)

    def delete_topic(self, name: str) -> None:
        """Forget a topic: its messages are gone for all processes now, their space with the next clean."""
        self._catalog.delete(name)

    def purge(self, starts: dict[int, int]) -> None:
        """Make the records of streams below these offsets unreadable, for good: stream → first offset kept.

        Blocks for a few fsyncs whatever their number; offsets above `latest` mean `latest`.
        """
        self._catalog.advance({stream: min(start, self.latest(stream)) for stream, start in starts.items()})

    @property
    def catalog_generation(self) -> int:
        """Changes when any process changes the topics; one load."""
        return self._control.words[ctl.CATALOG]

    # Room

    def clean(self) -> CleanReport:
        """Apply retention and free the space of what expired, was purged or deleted. Blocks: use a thread.

        Safe beside readers and writers in any process, and against a death at any step. One process cleans
        at a time; for the others the report says `busy`. Also brings a "process" store onto the disk.
        Raises StoreFullError, StoreCorruptError.
        """
        self._reader.refresh()
        with CleaningLock(self.path) as taken:
            if not taken:
                return CleanReport(busy=True)
            self.sync(self.end)
            topics = self._catalog.topics().values()
            tally = Tally(self.path, self._control)
            gone = retention.expired(topics, tally, self._reader, self._control, self._clock())
            self._catalog.advance(gone)
            starts = {
                stream: start
                for topic in self._catalog.topics().values()
                for stream, start in zip(topic.streams, topic.starts, strict=True)
            }
            if self._journal.roll_if_dead(starts):
                self.sync(self.end)
            cleaner = Cleaner(self.path, self._control, self._lock, self._segment_bytes, starts)
            return replace(cleaner.clean(), expired=len(gone))

    def sizes(self) -> dict[int, int]:
        """About how many bytes each stream's kept records take on disk."""
        return retention.measure(self._catalog.topics().values(), Tally(self.path, self._control))

    def _describe(self, stream: int, first: int, end: int | None) -> str:
        place = self._catalog.place(stream)
        where = f"{place[0]!r}[{place[1]}]" if place else f"stream {stream}"
        return f"{where} offsets {first} to {end - 1}" if end is not None else f"{where} from offset {first} on"


class _Gone:
    """Stands in for the parts of a store that cannot be used any more."""

    def __init__(self, path: Path, why: str) -> None:
        self._error = path, why

    def __getattr__(self, name: str) -> NoReturn:
        raise StoreError(*self._error)


def _control(directory: Path, create: bool, boot: bytes) -> Control:
    """The control file, made or made anew where it must be. Under the lock."""
    path = directory / ctl.NAME
    if not path.exists():
        if recovery.is_worthwhile(directory):
            recovery.recover(directory, boot)
        elif create:
            recovery.create(directory, boot)
        else:
            raise StoreNotFoundError(directory)
    control = Control(path)
    try:
        control.check_version()
        if not control.booted(boot):
            control.close()
            recovery.recover(directory, boot)
            control = Control(path)
        control.check()
    except BaseException:
        control.close()
        raise
    return control


def _owner(directory: Path) -> int | None:
    """The process that took the lock last, if the control file can tell."""
    try:
        control = Control(directory / ctl.NAME)
    except (OSError, StoreError):
        return None
    try:
        return control.words[ctl.OWNER] & LOW or None
    finally:
        control.close()


def _forget_inherited() -> None:
    """In a forked child: close what was inherited, so that nothing stays locked when the parent dies."""
    for store in list(_open_stores):
        store._lock.close()
        store._control.abandon()
        store._abandon("this store was opened before a fork: open it again in this process")
    _open_stores.clear()


os.register_at_fork(after_in_child=_forget_inherited)
