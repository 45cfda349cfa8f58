"""How far the journal is on disk, and bringing it there: one fsync for all who wait."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ..errors import StoreError
from . import control as ctl
from .control import Control, seal, unseal
from .directory import segment_path, sync_directory
from .lock import Lock


class Disk:
    """Brings the journal of one store onto the disk. Safe for several threads and processes."""

    def __init__(self, directory: Path, control: Control, lock: Lock) -> None:
        self.directory, self.control, self.lock = directory, control, lock
        self._syncing = threading.Lock()

    def sync(self, upto: int) -> None:
        """Return when everything before `upto` is on disk and readers see it. Blocks.

        The fsync is shared: one caller at a time does it for all that was committed until then, by any
        process, outside the lock. Raises StoreError if the disk refuses: what was not acknowledged may be
        lost then, and the store takes nothing more.
        """
        words = self.control.words
        if unseal(words[ctl.DURABLE]) >= upto:
            return
        with self._syncing:
            durable = unseal(words[ctl.DURABLE])
            if durable >= upto:
                return
            end = self.control.end
            try:
                self._flush(durable >> 32, end >> 32)
            except OSError as error:
                words[ctl.FAILED] = ctl.REFUSED
                raise StoreError(
                    self.directory,
                    f"the disk refused an fsync ({error.strerror}); nothing more is taken. Stop every "
                    f"process that uses this store, look at the disk, then run `headwater log repair`",
                ) from error
            with self.lock:
                if unseal(words[ctl.DURABLE]) < end:
                    words[ctl.DURABLE] = seal(end)
                if unseal(words[ctl.VISIBLE]) < end:
                    words[ctl.VISIBLE] = seal(end)

    def _flush(self, first: int, last: int) -> None:
        for segment in range(first, last + 1):
            try:
                fd = os.open(segment_path(self.directory, segment), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # the cleaner took it, and it takes only what is durable
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
        if last > first:
            sync_directory(self.directory)
