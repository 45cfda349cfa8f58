"""Who lives in a group: a mapped table of members, each held by a lock that the kernel drops at death.

The lock is the truth. A pid and its pidfd only make a death known at once; a heartbeat in the table
(monotonic, so that no clock change matters) gives away a process that lives and does nothing.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import StoreCorruptError, StoreError, StoreFullError, StoreVersionError
from .locks import ByteLocks
from .terms import TermLock

LEASE: Final = 10.0  # seconds without a heartbeat after which a member counts as hung
SLOTS: Final = 255

_SLOT: Final = 128
_HEADER: Final = struct.Struct("<8sI")
_MAGIC: Final = b"HWROSTER"
_VERSION: Final = 1
_GENERATION: Final = 8  # as indexes into the table seen as 8-byte integers
_LOCK_HOLDER: Final = 9  # and the next one
_MEMBER: Final = struct.Struct("<16s16sIxxxxQQ64s")  # id, bell, pid, pid namespace, heartbeat, client
_HEARTBEAT: Final = 6  # word within a slot


class Entry(NamedTuple):
    """A line of the table."""

    slot: int
    id: str
    bell: str
    pid: int
    namespace: int
    heartbeat: float  # monotonic seconds
    client: str


def pid_namespace() -> int:
    """The number of the pid namespace: pids mean something only among processes that share it."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class Roster:
    """The table of one group's members, opened by one of them or by an observer.

    Each opening has locks of its own, also within one process. A forked child loses them at once.
    """

    def __init__(self, path: Path, *, create: bool = False, lease: float = LEASE) -> None:
        """`lease` is the age in seconds at which a heartbeat is too old; the same in all processes."""
        self.path = path
        self._lease = lease
        if create:
            _create(path)
        # Locks belong to an open file description: the mapping gets another one, because Python
        # duplicates the descriptor it maps and a forked child could not close that copy.
        self._locks = ByteLocks(path)
        mapped = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(mapped, 0)
        finally:
            os.close(mapped)
        self._words = memoryview(self._map).cast("Q")
        self._lock = TermLock(path.parent, self._locks, self._words[_LOCK_HOLDER : _LOCK_HOLDER + 2], lease)
        self.slot: int | None = None
        self._check()

    def _check(self) -> None:
        magic, version = _HEADER.unpack_from(self._map)
        (checksum,) = struct.unpack_from("<I", self._map, _HEADER.size)
        short = len(self._map) != _SLOT * (SLOTS + 1)
        if short or magic != _MAGIC or checksum != zlib.crc32(self._map[: _HEADER.size]):
            error: StoreError = StoreCorruptError(
                self.path.parent, self.path.name, 0, "the members of a group; delete it while none lives"
            )
        elif version > _VERSION:
            error = StoreVersionError(self.path, f"format {version}, this Headwater knows up to {_VERSION}")
        else:
            return
        self.close()
        raise error

    @property
    def generation(self) -> int:
        """The generation of the group that was last announced. One load."""
        return int(self._words[_GENERATION])

    def announce(self, generation: int) -> None:
        """Make a new generation known to all who look."""
        self._words[_GENERATION] = generation

    def locked(self) -> AbstractContextManager[int]:
        """The group's lock, for a change of its state; gives the term. Not re-entrant. See `TermLock.held`."""
        return self._lock.held()

    def is_held(self, slot: int) -> bool:
        """Whether a living process holds this slot."""
        return slot == self.slot or self._locks.taken_elsewhere(slot)

    def enter(self, member: str, bell: str, client: str) -> int:
        """Take a slot under this id (32 hex digits), or keep the one held under a new id.

        Call with the group locked. Raises StoreError when all slots are taken.
        """
        if self.slot is None:
            self.slot = next((slot for slot in range(1, SLOTS + 1) if self._locks.take(slot)), None)
        if self.slot is None:
            raise StoreError(self.path, f"this group has {SLOTS} members already; use fewer processes")
        name = client.encode()[:64]
        line = (bytes.fromhex(member), bytes.fromhex(bell), os.getpid(), pid_namespace(), time.monotonic_ns())
        _MEMBER.pack_into(self._map, self.slot * _SLOT, *line, name)
        return self.slot

    def beat(self) -> None:
        """Say that this member's event loop turns."""
        if self.slot is not None:
            self._words[self.slot * _SLOT // 8 + _HEARTBEAT] = time.monotonic_ns()

    def leave(self) -> None:
        """Give the slot back. Idempotent."""
        if self.slot is not None:
            self._map[self.slot * _SLOT : (self.slot + 1) * _SLOT] = bytes(_SLOT)
            slot, self.slot = self.slot, None
            self._locks.give(slot)

    def entry(self, slot: int) -> Entry:
        """What the table says about a slot."""
        member, bell, pid, namespace, heartbeat, client = _MEMBER.unpack_from(self._map, slot * _SLOT)
        name = client.rstrip(b"\0").decode(errors="replace")
        return Entry(slot, member.hex(), bell.hex(), pid, namespace, heartbeat / 1e9, name)

    def is_alive(self, member: str, slot: int) -> bool:
        """Whether the member in this slot is still that one, its process lives and its loop turns."""
        entry = self.entry(slot)
        if entry.id != member or not self.is_held(slot):
            return False
        return slot == self.slot or time.monotonic() - entry.heartbeat <= self._lease

    @property
    def closed(self) -> bool:
        """Whether all was given back; true at once in a forked child."""
        return self._locks.closed

    def close(self) -> None:
        """Give everything back; the kernel drops the locks. Idempotent."""
        if not self._locks.closed:
            self.leave()
            self._locks.close()
        if not self._map.closed:
            self._lock.close()
            self._words.release()
            self._map.close()


def _create(path: Path) -> None:
    """Make the table, fully allocated, unless it is there. Atomic: nobody sees half of one."""
    if path.exists():
        return
    header = _HEADER.pack(_MAGIC, _VERSION)
    content = (header + struct.pack("<I", zlib.crc32(header))).ljust(_SLOT * (SLOTS + 1), b"\0")
    draft = path.with_name(f"{path.name}.{os.urandom(8).hex()}.new")
    try:
        draft.write_bytes(content)
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreFullError(path, f"no room for the table of a group's members ({error})") from error
    finally:
        draft.unlink(missing_ok=True)


class DeathWatch:
    """Calls back in the event loop the moment a watched process ends.

    Only a hint: the process may share nothing with a member but its pid, so the callback asks the roster.
    """

    def __init__(self, on_death: Callable[[], None]) -> None:
        self._on_death = on_death
        self._descriptors: dict[int, int] = {}
        self._namespace = pid_namespace()

    def follow(self, entries: list[Entry]) -> None:
        """Watch the processes of these members, and no others."""
        loop = asyncio.get_running_loop()
        wanted = {entry.pid for entry in entries if self._namespace and entry.namespace == self._namespace}
        wanted.discard(os.getpid())
        for pid in self._descriptors.keys() - wanted:
            self._drop(loop, pid)
        for pid in wanted - self._descriptors.keys():
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:  # gone already, or not allowed here: the poll of the locks finds it
                continue
            self._descriptors[pid] = descriptor
            loop.add_reader(descriptor, self._ended, loop, pid)

    def _ended(self, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        self._drop(loop, pid)
        self._on_death()

    def _drop(self, loop: asyncio.AbstractEventLoop, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        loop.remove_reader(descriptor)
        os.close(descriptor)

    def close(self) -> None:
        """Watch nothing any more."""
        loop = asyncio.get_running_loop()
        for pid in list(self._descriptors):
            self._drop(loop, pid)
