"""Locks on single bytes of a file that the kernel drops when their holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import struct
import weakref
from pathlib import Path
from typing import Final

_FLOCK: Final = "hhqqixxxx"  # struct flock: type, whence, start, length, pid

_open: weakref.WeakSet[ByteLocks] = weakref.WeakSet()


def _drop_in_child() -> None:
    for locks in list(_open):
        locks.close()


os.register_at_fork(after_in_child=_drop_in_child)


class ByteLocks:
    """Open-file-description locks of one opening of a file.

    Two openings exclude each other, also within one process. A lock is never waited for. A forked child
    closes its copy at once, so that it cannot keep its parent's locks after the parent's death.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
        _open.add(self)

    def take(self, byte: int) -> bool:
        """Lock this byte; False if another opening has it. Idempotent."""
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_WRLCK, byte))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def give(self, byte: int) -> None:
        """Unlock this byte. Idempotent."""
        if self._descriptor >= 0:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_UNLCK, byte))

    def taken_elsewhere(self, byte: int) -> bool:
        """Whether another opening, in this or a living process, has this byte."""
        answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, byte))
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)

    @property
    def closed(self) -> bool:
        """Whether all is given back; true at once in a forked child."""
        return self._descriptor < 0

    def close(self) -> None:
        """Give all locks back. Idempotent."""
        _open.discard(self)
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _request(kind: int, byte: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, byte, 1, 0)
