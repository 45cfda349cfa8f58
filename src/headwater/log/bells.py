"""Waking a sleeping consumer in another process: a flag in shared memory, and a datagram if it is set.

A consumer that finds nothing sets its flag, looks once more and sleeps. A publisher that committed looks
for flags; where none is set, which is so under load, that is all it costs.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from ..errors import StoreCorruptError, StoreError, StoreFullError
from .locks import ByteLocks

POLL: Final = 0.25  # seconds between looks while asleep, in case a datagram was lost
BELLS: Final = 1024  # processes (more exactly: engines) that can sleep on one store

_MAGIC: Final = b"HWBELLS1"
_FLAGS: Final = 64  # one byte per bell
_LINES: Final = _FLAGS + BELLS  # one line per bell: its id, and a filter of the streams it waits for
_LINE: Final = 80
_ID: Final = 16
_FILTER: Final = _LINE - _ID  # bytes
_SIZE: Final = _LINES + BELLS * _LINE
_ASLEEP: Final = b"\1"
_EVERYTHING: Final = b"\xff" * _FILTER


class Bells:
    """The bells of one store, as one engine sees them: it has one of its own, and rings the others.

    `on_ring` is called in the event loop when something may be new; more often than that, never less.
    `looks` counts the safety polls and `rings` the wake-ups, for those who want to know why they woke.
    """

    def __init__(self, folder: Path, on_ring: Callable[[], None], news: Callable[[], object]) -> None:
        """Open the bells in `folder`, which must exist. `news()` changes with each commit."""
        self._folder = folder
        self._on_ring = on_ring
        self._news = news
        self._table = _open_table(folder / "table")
        self._locks = ByteLocks(folder / "table")
        # A socket's path is limited to 108 bytes; seen through a descriptor of its folder it is short.
        self._at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        self._receiver: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._slot = -1
        self._armed = False
        self._poll: asyncio.TimerHandle | None = None
        self._seen: object = None
        self._interests: dict[object, frozenset[int]] = {}
        self._fence = threading.Lock()
        self.id = os.urandom(_ID).hex()
        self.looks = 0
        self.rings = 0

    def hang(self) -> None:
        """Have a bell of our own, in the running loop. Raises StoreError if there are too many."""
        for name in self._stale():
            (self._folder / name).unlink(missing_ok=True)
        slot = next((slot for slot in range(BELLS) if self._locks.take(slot)), None)
        if slot is None:
            raise StoreError(self._folder, f"{BELLS} engines wait on this store already; use fewer processes")
        self._slot = slot
        self._table[_FLAGS + slot] = 0
        line = _LINES + slot * _LINE
        # The id is in the table before the socket is in the folder: see `_stale`.
        self._table[line : line + _LINE] = bytes.fromhex(self.id) + bytes(_FILTER)
        self._receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._receiver.setblocking(False)
        self._receiver.bind(self._address(self.id))
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._loop.add_reader(self._receiver, self._received)

    def _address(self, bell: str) -> str:
        return f"/proc/self/fd/{self._at}/{bell}.sock"

    def _stale(self) -> list[str]:
        """Sockets in the folder that no living engine has."""
        # The folder is read before the table: a bell that is being hung is in the table already.
        names = [name for name in os.listdir(self._folder) if name.endswith(".sock")]
        if not names:
            return []
        lines = (_LINES + slot * _LINE for slot in range(BELLS) if self._locks.taken_elsewhere(slot))
        living = {self._table[line : line + _ID].hex() for line in lines}
        return [name for name in names if name.removesuffix(".sock") not in living]

    def listen(self, listener: object, streams: Iterable[int]) -> None:
        """From now on `listener` waits for these streams; with none, it waits for nothing."""
        wanted = frozenset(streams)
        if wanted:
            self._interests[listener] = wanted
        else:
            self._interests.pop(listener, None)
        bits = bytearray(_FILTER)
        for stream in frozenset().union(*self._interests.values()):
            bits[stream % (_FILTER * 8) >> 3] |= 1 << (stream & 7)
        line = _LINES + self._slot * _LINE
        self._table[line + _ID : line + _LINE] = bytes(bits)

    def arm(self) -> None:
        """Ask to be woken by the next commit. Look for news once more after this, then sleep."""
        self._table[_FLAGS + self._slot] = 1
        # A processor may let a later load overtake an earlier store; a lock's atomic operation forbids it.
        with self._fence:
            pass
        self._armed = True
        if self._poll is None and self._loop is not None:
            self._seen = self._news()
            self._poll = self._loop.call_later(POLL, self._look)

    def _look(self) -> None:
        self._poll = None
        if not self._armed:
            return
        self.looks += 1
        if self._news() != self._seen or not self._table[_FLAGS + self._slot]:
            self._rung()
        elif self._loop is not None:
            self._poll = self._loop.call_later(POLL, self._look)

    def _received(self) -> None:
        assert self._receiver is not None
        try:
            for _ in range(64):
                self._receiver.recv(1)
        except BlockingIOError:
            pass
        self._rung()

    def _rung(self) -> None:
        self.rings += 1
        self._armed = False
        self._table[_FLAGS + self._slot] = 0
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        self._on_ring()

    def ring(self, streams: Iterable[int] | None = None) -> None:
        """Wake those asleep who wait for one of these streams; with None, all asleep. Never blocks."""
        table = self._table
        slot = table.find(_ASLEEP, _FLAGS, _LINES)
        if slot < 0:
            return
        wanted = _EVERYTHING if streams is None else _filter(streams)
        while slot >= 0:
            self._ring_if_wanted(slot - _FLAGS, wanted)
            slot = table.find(_ASLEEP, slot + 1, _LINES)

    def _ring_if_wanted(self, slot: int, wanted: bytes) -> None:
        line = _LINES + slot * _LINE
        waits_for = self._table[line + _ID : line + _LINE]
        if wanted is not _EVERYTHING and not int.from_bytes(waits_for) & int.from_bytes(wanted):
            return
        if slot == self._slot and threading.get_ident() == self._thread:
            self._rung()
            return
        self._table[_FLAGS + slot] = 0  # the next publisher need not ring again
        self.call(self._table[line : line + _ID].hex())

    def call(self, bell: str) -> None:
        """Ring one bell, asleep or not. Never blocks; one that is gone is taken down."""
        try:
            self._sender.sendto(b"\1", self._address(bell))
        except BlockingIOError:
            pass  # it has unread rings enough to wake up
        except (FileNotFoundError, ConnectionRefusedError):
            try:
                os.unlink(f"{bell}.sock", dir_fd=self._at)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """Take our bell down. Idempotent."""
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if self._receiver is not None and self._loop is not None:
            self._loop.remove_reader(self._receiver)
            self._receiver.close()
            self._receiver = None
            (self._folder / f"{self.id}.sock").unlink(missing_ok=True)
            self._table[_FLAGS + self._slot] = 0
        self._locks.close()
        self._sender.close()
        if self._at >= 0:
            os.close(self._at)
            self._at = -1
        if not self._table.closed:
            self._table.close()


def _filter(streams: Iterable[int]) -> bytes:
    bits = bytearray(_FILTER)
    for stream in streams:
        bits[stream % (_FILTER * 8) >> 3] |= 1 << (stream & 7)
    return bytes(bits)


def _open_table(path: Path) -> mmap.mmap:
    if not path.exists():
        content = (_MAGIC + struct.pack("<I", zlib.crc32(_MAGIC))).ljust(_SIZE, b"\0")
        draft = path.with_name(f"{os.urandom(8).hex()}.new")
        try:
            draft.write_bytes(content)
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError as error:
            raise StoreFullError(path, f"no room for the table of bells ({error})") from error
        finally:
            draft.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        table = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    if len(table) != _SIZE or table[: len(_MAGIC)] != _MAGIC:
        table.close()
        raise StoreCorruptError(path.parent, path.name, 0, "the table of bells; delete it while nobody runs")
    return table
