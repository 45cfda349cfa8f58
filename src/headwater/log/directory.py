"""What a directory must be to hold a store, and which files of it are segments."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ..errors import StoreError, StoreFullError, StoreNotFoundError
from . import control

_SEGMENT: Final = re.compile(r"(\d{10})(?:-(\d{10}))?\.log")
_REMOTE: Final = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "gluster", "afs", "lustre", "gpfs")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SegmentName(NamedTuple):
    """A segment file: the ids `first` to `last` are in it; more than one once the cleaner joined some."""

    first: int
    last: int
    path: Path


def segment_path(directory: Path, first: int, last: int | None = None) -> Path:
    """Where a segment is."""
    joined = last is not None and last != first
    return directory / (f"{first:010}-{last:010}.log" if joined else f"{first:010}.log")


def list_segments(directory: Path) -> list[SegmentName]:
    """The segments, oldest first. One whose ids lie within another's was replaced by it and is left out."""
    return [name for name, superseded in _segments(directory) if not superseded]


def list_superseded(directory: Path) -> list[SegmentName]:
    """Segments that were joined into others and not yet removed."""
    return [name for name, superseded in _segments(directory) if superseded]


def _segments(directory: Path) -> Iterator[tuple[SegmentName, bool]]:
    found = []
    for entry in os.listdir(directory):
        if match := _SEGMENT.fullmatch(entry):
            first = int(match[1])
            found.append(SegmentName(first, int(match[2] or first), directory / entry))
    reach = -1
    for name in sorted(found, key=lambda name: (name.first, -name.last)):
        yield name, name.last <= reach
        reach = max(reach, name.last)


def holds_store(directory: Path) -> bool:
    """Whether there is a store here, be it a damaged one."""
    try:
        return (directory / control.NAME).exists() or bool(list_segments(directory))
    except (FileNotFoundError, NotADirectoryError):
        return False


def prepare(directory: Path, create: bool) -> None:
    """Make the directory with `create`, and raise a StoreError that says why it cannot hold a store."""
    if directory.exists() and not directory.is_dir():
        raise StoreError(directory, "this is a file, and a store is a directory: name another path")
    if not create and not holds_store(directory):
        raise StoreNotFoundError(directory)
    with explained(directory, "create the directory"):
        directory.mkdir(parents=True, exist_ok=True)
    kind = filesystem(directory)
    if kind.startswith(_REMOTE):
        raise StoreError(
            directory,
            f"a store cannot live on {kind}: processes there do not see each other's memory maps and locks "
            f"reliably. Put it on a local disk",
        )
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise StoreError(
            directory,
            "the filesystem is read-only, and even readers take part in the locking: mount it writable, "
            "or name another directory",
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise StoreError(
            directory,
            "no permission to write here, and even readers take part in the locking: "
            "make the directory writable for this user, or name another one",
        )


def filesystem(directory: Path) -> str:
    """The kind of filesystem a directory is on, "unknown" if the kernel does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    where = os.path.realpath(directory)
    best, kind = "", "unknown"
    for line in lines:
        fields, _, rest = line.partition(" - ")
        point = fields.split()[4].encode().decode("unicode_escape")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    return kind


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into the StoreError that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        raise explain(path, doing, error) from error


def explain(path: Path, doing: str, error: OSError) -> StoreError:
    """The StoreError for an OSError met at `path` while `doing` something."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else path
    if error.errno in _FULL:
        return StoreFullError(path, f"no room to {doing} ({error.strerror}): free some space and try again")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreError(path, f"no permission to {doing}: make it writable for this user")
    if error.errno == errno.EROFS:
        return StoreError(path, f"cannot {doing}: the filesystem is read-only; mount it writable or name another path")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StoreError(path, f"cannot {doing}: there is a file in the way; name another path")
    return StoreError(path, f"cannot {doing}: {error.strerror}")


def sync_directory(directory: Path) -> None:
    """Make created, renamed and removed files survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
