"""Places: what processes of one machine tell one another by files that are locked as long as they live."""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import tempfile
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from .errors import ConfigurationError

_OURS: dict[tuple[int, str], int] = {}  # by process: a forked child takes a place of its own


def number_of_process(name: str) -> int:
    """The number that `headwater run` gave this worker; elsewhere the lowest that no other process of this name has.

    It stays the same until the process ends; one that is started then may have it again.
    """
    worker = os.environ.get("HEADWATER_WORKER_ID")
    if worker:
        return int(worker)
    whose = (os.getpid(), name)
    if whose not in _OURS:
        _OURS[whose] = next(number for number in itertools.count() if take_place(f"{name} {number}") is not None)
    return _OURS[whose]


def take_place(name: str) -> int | None:
    """A descriptor that holds the place of this name, until it is closed or the process dies; None if another does.

    Raises ConfigurationError where no file can be made for it.
    """
    path = private_folder() / hashlib.sha256(name.encode()).hexdigest()[:32]
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_folder(path.parent, error) from error
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def private_folder() -> Path:
    """A folder of this user alone, the same for all its processes: whoever could write there could speak for them.

    Raises ConfigurationError where there can be none.
    """
    folder = Path(tempfile.gettempdir(), f"headwater-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _no_folder(folder, error) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(f"{folder} is not a folder of this user alone: remove it, or set TMPDIR")
    return folder


def _no_folder(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"files in {folder} tell the processes of one machine apart: {error}; set TMPDIR")
