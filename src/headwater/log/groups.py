"""A group's state on disk: who its members are, who has which partition, and where each one's cursor is.

The state is one small file, replaced atomically under the group's lock (see `terms`), with a generation that
only grows. Every step here blocks for a moment (an fsync), so that the event loop leaves it to a thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, unquote

import msgspec

from ..errors import (
    GroupNotFoundError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreVersionError,
)
from ..topics import match
from .assignment import Wanted, balanced
from .cursors import CursorFile, CursorPage, blank_page
from .frames import CursorCommit
from .roster import LEASE, SLOTS, Entry, Roster
from .terms import STATE, TermEndedError, current_term, has_state, state_path

FOLDER: Final = "groups"
_MEMBERS: Final = "members"
_CURSORS: Final = ".cursors"
_VERSION: Final = 1

TopicPartition = tuple[str, int]


class Catalogue(Protocol):
    """What a group needs to know about the topics of its store."""

    def streams(self) -> Mapping[str, Sequence[int]]:
        """The stream of each partition, per topic."""
        ...

    def earliest(self, stream: int) -> int:
        """The first offset that is kept."""
        ...

    def fence(self) -> AbstractContextManager[object]:
        """No frame is committed while this is held."""
        ...

    def harden(self) -> tuple[int, int]:
        """Make all committed frames as durable as promised; (the last one, this boot)."""
        ...

    @property
    def version(self) -> int:
        """Changes with the topics and their partitions. One load."""
        ...


class Place(msgspec.Struct, array_like=True):
    """One partition: its stream, the page of its cursor, who should have it and who has it."""

    stream: int
    file: str
    page: int
    owner: str = ""
    holder: str = ""


class Member(msgspec.Struct, array_like=True):
    """What a member subscribes to. `joined` is the generation in which it came."""

    slot: int
    topics: tuple[str, ...]
    exclusive: bool
    joined: int


class State(msgspec.Struct):
    """All of a group but its cursors."""

    name: str
    version: int = _VERSION
    generation: int = 0
    resolved: set[str] = msgspec.field(default_factory=set)  # topics and patterns whose start is decided
    members: dict[str, Member] = msgspec.field(default_factory=dict)
    places: dict[str, list[Place]] = msgspec.field(default_factory=dict)

    def held_by(self, member: str) -> set[TopicPartition]:
        """The partitions this member has."""
        return {at for at, place in self.all_places() if place.holder == member}

    def owned_by(self, member: str) -> set[TopicPartition]:
        """The partitions this member should have."""
        return {at for at, place in self.all_places() if place.owner == member}

    def all_places(self) -> Iterator[tuple[TopicPartition, Place]]:
        """Every partition the group has a position on."""
        for topic, places in self.places.items():
            for partition, place in enumerate(places):
                yield (topic, partition), place

    def files(self) -> set[str]:
        """The cursor files in use."""
        return {place.file for _, place in self.all_places()}

    def assign(self) -> None:
        """Decide anew who should have what."""
        owners = balanced(
            [
                Wanted(topic, partition, candidates, place.owner, exclusive)
                for topic, places in self.places.items()
                for candidates, exclusive in [self._candidates(topic)]
                for partition, place in enumerate(places)
            ]
        )
        for at, place in self.all_places():
            place.owner = owners[at]

    def _candidates(self, topic: str) -> tuple[list[str], bool]:
        eldest_first = sorted(self.members.items(), key=lambda item: (item[1].joined, item[0]))
        found = [(name, member) for name, member in eldest_first if wants(member.topics, topic)]
        return [name for name, _ in found], any(member.exclusive for _, member in found)


def wants(topics: Sequence[str], topic: str) -> bool:
    """Whether one of these names or patterns stands for this topic."""
    return any(match(pattern, topic) is not None for pattern in topics)


def cursor_name(group: str, topic: str, partition: int, stream: int) -> str:
    """What a cursor page is of: written into it, and named in errors."""
    return f"group {group!r} on {topic!r}[{partition}] (stream {stream})"


def folder_of(root: Path, group: str) -> Path:
    """The folder of a group: its name, or a digest of one too long for a file name."""
    name = quote(group, safe=" @:+,=").replace(".", "%2E")
    if len(name) > 200:
        name = f"%{hashlib.sha256(group.encode()).hexdigest()}"
    return root / FOLDER / name


class Group:
    """The files of one group, opened by one member or by an observer."""

    def __init__(
        self, root: Path, name: str, catalogue: Catalogue, *, create: bool = False, lease: float = LEASE
    ) -> None:
        """Raises GroupNotFoundError unless it exists or is to be created."""
        self.name = name
        self.folder = folder_of(root, name)
        self.catalogue = catalogue
        if create:
            self.folder.mkdir(parents=True, exist_ok=True)
        elif not has_state(self.folder):
            raise GroupNotFoundError(name)
        self.roster = Roster(self.folder / _MEMBERS, create=True, lease=lease)
        self._files: dict[str, CursorFile] = {}
        self._term = 0

    def close(self) -> None:
        """Give everything back. Idempotent."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self.roster.close()

    def load(self) -> State:
        """The state as last written. Raises StoreCorruptError if its checksum does not match."""
        return read_state(self.folder, self.name)

    def save(self, state: State) -> None:
        """Replace the state, on disk before this returns, and announce its generation.

        Raises TermEndedError if others went on without this process, StoreFullError.
        """
        state.generation += 1
        content = msgspec.json.encode(state)
        draft = self.folder / f"{self._term}.new"
        try:
            with open(draft, "wb") as file:
                file.write(zlib.crc32(content).to_bytes(4, "little") + content)
                file.flush()
                os.fdatasync(file.fileno())
            os.replace(draft, state_path(self.folder, self._term))
            _sync_folder(self.folder)
        except OSError as error:
            raise StoreFullError(self.folder, f"group {self.name!r} was left as it was ({error})") from error
        unused = self._unused(state)
        # Listed before this look: if this term has ended, what a later one made is not in the list.
        if current_term(self.folder) != self._term:
            raise TermEndedError(self.folder)
        self.roster.announce(state.generation)
        for path in unused:
            path.unlink(missing_ok=True)  # a former owner may still have it mapped, which harms nobody

    def _unused(self, state: State) -> list[Path]:
        used = {*state.files(), state_path(self.folder, self._term).name}
        files = (path for path in self.folder.iterdir() if path.name.startswith(STATE) or path.suffix == _CURSORS)
        return [path for path in files if path.name not in used]

    def close_files(self, used: set[str]) -> None:
        """Unmap all cursor files but these."""
        for name in self._files.keys() - used:
            self._files.pop(name).close()

    @contextmanager
    def changing(self) -> Iterator[State]:
        """The state under the group's lock; write it with `save`."""
        with self.roster.locked() as self._term:
            yield self.load()

    def page(self, topic: str, partition: int, place: Place) -> CursorPage:
        """The cursor of a partition."""
        file = self._files.get(place.file)
        if file is None:
            file = self._files[place.file] = CursorFile(self.folder / place.file)
        return file.page(place.page, cursor_name(self.name, topic, partition, place.stream))

    def write_pages(self, state: State, pages: Mapping[TopicPartition, bytes]) -> CursorFile:
        """Put these cursors into a new file, and have the state point to it."""
        name = f"{os.urandom(8).hex()}{_CURSORS}"
        file = self._files[name] = CursorFile.create(self.folder / name, list(pages.values()))
        for index, (topic, partition) in enumerate(pages):
            place = state.places[topic][partition]
            place.file, place.page = name, index
        return file

    def sync(self) -> None:
        """Bring acknowledgements to the disk. Blocks."""
        for file in list(self._files.values()):
            file.sync()

    # What may have changed around the group

    def living(self, state: State) -> list[Entry]:
        """The members that live and whose loop turns."""
        return [
            self.roster.entry(member.slot)
            for name, member in state.members.items()
            if self.roster.is_alive(name, member.slot)
        ]

    def is_lived_in(self) -> bool:
        """Whether any process holds a place in the group, whatever its state says."""
        return any(self.roster.is_held(slot) for slot in range(1, SLOTS + 1))

    def bury(self, state: State) -> bool:
        """Strike members that died or hang; what they held is free at once. Whether there were any."""
        dead = {name for name, member in state.members.items() if not self.roster.is_alive(name, member.slot)}
        for name in dead:
            del state.members[name]
        for _, place in state.all_places():
            if place.holder in dead:
                place.holder = ""
        return bool(dead)

    def catch_up(self, state: State, starts: Callable[[str, int, int], int] | None = None) -> bool:
        """Take in new topics and partitions, and strike deleted ones. Whether there were any.

        `starts` gives (topic, partition, stream) its first offset; without it they start at the earliest.
        """
        streams = self.catalogue.streams()
        wanted = {pattern for member in state.members.values() for pattern in member.topics}
        gone = [
            topic
            for topic, places in state.places.items()
            if [place.stream for place in places] != list(streams.get(topic, ()))[: len(places)]
        ]
        for topic in gone:
            del state.places[topic]
        pages: dict[TopicPartition, bytes] = {}
        for topic in streams:
            if wants(tuple(wanted), topic):
                pages.update(self._new_places(state, topic, streams[topic], starts))
        if pages:
            self.write_pages(state, pages)
        return bool(pages or gone)

    def _new_places(
        self,
        state: State,
        topic: str,
        streams: Sequence[int],
        starts: Callable[[str, int, int], int] | None,
    ) -> Iterator[tuple[TopicPartition, bytes]]:
        places = state.places.setdefault(topic, [])
        for partition in range(len(places), len(streams)):
            stream = streams[partition]
            start = starts(topic, partition, stream) if starts else self.catalogue.earliest(stream)
            places.append(Place(stream, "", 0))
            name = cursor_name(self.name, topic, partition, stream)
            yield (topic, partition), blank_page(name, state.generation + 1, start)


def read_state(folder: Path, name: str) -> State:
    """The state of a group as last written, a blank one if there is none. Raises StoreCorruptError."""
    path = state_path(folder, current_term(folder)) if folder.is_dir() else folder
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return State(name)
    if not content:
        return State(name)
    try:
        if zlib.crc32(content[4:]) != int.from_bytes(content[:4], "little"):
            raise ValueError("checksum")
        state = msgspec.json.decode(content[4:], type=State)
    except (ValueError, msgspec.DecodeError) as error:
        lost = f"the positions of group {name!r}; the messages are safe; delete the group, it begins anew"
        raise StoreCorruptError(folder, path.name, 0, lost) from error
    if state.version > _VERSION:
        raise StoreVersionError(path, f"format {state.version}, this Headwater knows up to {_VERSION}")
    return state


def stage(page: CursorPage, to: int, frame: int, boot: int) -> bool:
    """Note a transaction in a cursor. False if the cursor is not the one that counts any more."""
    try:
        if page.retired:
            return False
        page.stage(to, frame, boot)
    except ValueError:  # unmapped in this moment
        return False
    return True


def stage_elsewhere(root: Path, cursor: CursorCommit, frame: int, boot: int) -> None:
    """Note a transaction whose process died before it could, in the cursor as the group's files have it.

    A group that was deleted, or whose files are damaged, is left alone: whoever opens it is told.
    """
    folder = folder_of(root, cursor.group)
    try:
        state = read_state(folder, cursor.group)
        for (topic, partition), place in state.all_places():
            if place.stream == cursor.stream:
                file = CursorFile(folder / place.file)
                try:
                    name = cursor_name(cursor.group, topic, partition, place.stream)
                    stage(file.page(place.page, name), cursor.next, frame, boot)
                    file.sync()
                finally:
                    file.close()
    except StoreError:
        pass


def cut(root: Path, nexts: Mapping[int, int]) -> None:
    """Have no group be past the end of a stream: `nexts` says what each one's next message will get.

    For recovery, while no other process has the store. What is damaged is left to whoever opens it.
    """
    for folder in (root / FOLDER).glob("[!.]*"):
        try:
            if has_state(folder):
                _cut_group(folder, nexts)
        except StoreError:
            pass


def _cut_group(folder: Path, nexts: Mapping[int, int]) -> None:
    state = read_state(folder, _name_of(folder))
    for (topic, partition), place in state.all_places():
        file = CursorFile(folder / place.file)
        try:
            page = file.page(place.page, cursor_name(state.name, topic, partition, place.stream))
            page.cut(nexts.get(place.stream, 0))
            file.sync()
        finally:
            file.close()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def group_names(root: Path) -> list[str]:
    """The groups of a store, sorted."""
    folders = (root / FOLDER).glob("[!.]*") if (root / FOLDER).is_dir() else ()
    return sorted(_name_of(folder) for folder in folders if has_state(folder))


def _name_of(folder: Path) -> str:
    plain = unquote(folder.name)
    if folder_of(folder.parent.parent, plain) == folder:
        return plain
    return read_state(folder, plain).name


def delete_group(root: Path, name: str) -> None:
    """Remove all files of a group without members. Raises GroupNotFoundError."""
    folder = folder_of(root, name)
    if not has_state(folder):
        raise GroupNotFoundError(name)
    # Out of the way in one step: nobody ever sees half a group.
    grave = folder.with_name(f".{os.urandom(8).hex()}.deleted")
    os.rename(folder, grave)
    shutil.rmtree(grave, ignore_errors=True)
