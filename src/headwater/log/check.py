"""Saying what is damaged in a store and what that loses, and removing the damage without touching the rest.

A repair writes damaged segments anew without what does not hold, makes the control file anew and restores
the catalog; everything else stays readable at the offset it had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from ..errors import StoreError, StoreNotFoundError
from . import control as ctl
from . import recovery
from .catalog import NAME as CATALOG_NAME
from .catalog import write_catalog
from .cleaner import NEW_NAME, CleaningLock, Copy
from .directory import explained, holds_store, list_segments, sync_directory
from .frames import Header
from .lock import NAME as LOCK_NAME
from .lock import Lock
from .segments import Segment, SegmentHeader
from .survey import Damage, Loss, Part, Report, Survey, read_control, survey_store

__all__ = ["Damage", "Loss", "Report", "check", "repair"]


def check(path: str | os.PathLike[str], lock_timeout: float = 5.0) -> Report:
    """Read the whole store and say what is damaged. Changes nothing; others may go on using the store.

    Raises StoreNotFoundError, StoreVersionError, StoreBusyError.
    """
    directory = Path(path)
    if not holds_store(directory):
        raise StoreNotFoundError(directory)
    with CleaningLock(directory, wait=True), closing(_lock(directory, lock_timeout)) as lock:
        return survey_store(directory, lock).report()


def repair(path: str | os.PathLike[str], lock_timeout: float = 5.0) -> Report:
    """Remove the damage that `check` reports; the report says what was lost by it.

    No process may have the store open. A death on the way leaves a store that can be repaired again. Raises
    StoreNotFoundError, StoreVersionError, StoreFullError, StoreError while the store is in use.
    """
    directory = Path(path)
    if not holds_store(directory):
        raise StoreNotFoundError(directory)
    with CleaningLock(directory, wait=True), closing(_lock(directory, lock_timeout)) as lock:
        control = read_control(directory)
        try:
            if control is not None and not control.claim():
                raise StoreError(directory, "other processes have this store open: stop them, then repair it")
            survey = survey_store(directory, lock)
            with lock, explained(directory, "repair the store"):
                if not survey.report().healthy or control is None or control.words[ctl.FAILED]:
                    _repair(survey)
            return survey.report()
        finally:
            if control is not None:
                control.close()


def _lock(directory: Path, timeout: float) -> Lock:
    with explained(directory / LOCK_NAME, "open the lock file"):
        return Lock(directory / LOCK_NAME, timeout, lambda: None)


def _repair(survey: Survey) -> None:
    directory = survey.directory
    holes = [loss for losses in survey.losses.values() for loss in losses]
    content = msgspec.structs.replace(survey.content, holes=(*survey.content.holes, *holes))
    write_catalog(directory / CATALOG_NAME, content)
    for part in survey.parts:
        if not part.whole:
            _salvage(directory, part)
    if survey.parts and survey.parts[-1].whole:
        recovery.seal_as_found(survey.parts[-1].name, survey.parts[-1].end)
    following = max((name.last for name in list_segments(directory)), default=0) + 1
    header = SegmentHeader(
        following,
        survey.number + 1,
        survey.time,
        following << 32,
        survey.unapplied,
        False,
        survey.heads.snapshot(),
    )
    recovery.begin(directory, header, ctl.boot_id(), content)


def _salvage(directory: Path, part: Part) -> None:
    """Write a segment anew without what does not hold."""
    new = directory / NEW_NAME
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        with closing(Segment(part.name)) as segment:
            copy = Copy(fd, part.header)
            for found in _whole_frames(part, segment):
                position = found[2].position
                bad = {stream for place, stream in part.bad_runs if place == position}
                copy.take(segment, found, lambda run, bad=bad: run.stream not in bad)  # type: ignore[misc]  # bound at once
            copy.finish()
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, part.name.path)
    sync_directory(directory)


def _whole_frames(part: Part, segment: Segment) -> Iterator[tuple[bytes, int, Header]]:
    for position in part.good:
        yield segment.frame(position, os.fstat(segment.fd).st_size)
