"""Which of several processes owns the services they share: one holds a file lock, the others listen to it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import socket
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from fcntl import LOCK_EX, LOCK_NB, flock
from io import FileIO
from pathlib import Path
from typing import Any, Final

from .. import forks
from ..errors import ServiceError
from ..places import private_folder

LONGEST: Final = 1 << 20  # bytes of what an owner says at once
ABOUT_TO_LISTEN: Final = 0.01  # seconds until an owner that was just elected is asked again
LISTENS_WITHIN: Final = 10.0  # seconds after which who holds the lock, and does not listen, is none of ours

_log = logging.getLogger("headwater.service")


def place_for(names: Sequence[str], lock: str | os.PathLike[str] | None) -> Path:
    """The lock file of these services: that path, or one for the processes of one parent in one working directory."""
    if lock is not None:
        return Path(lock)
    about = "\0".join([*sorted(names), os.getcwd(), str(os.getppid())])
    return private_folder() / f"{hashlib.sha256(about.encode()).hexdigest()[:16]}.lock"


class Election:
    """One process's part in it: to own the services, or to follow whoever does, until that ends.

    The kernel gives the lock back when its holder is gone, however it died, and its line to the followers ends: one
    of them is the next owner. A lock file without a holder is harmless.
    """

    def __init__(
        self,
        lock: Path,
        start: Callable[[], Awaitable[None]],
        stop: Callable[[], Awaitable[None]],
        exported: Callable[[], Mapping[str, str]],
        fail: Callable[[ServiceError], None],
    ) -> None:
        self._path = lock
        self._start, self._stop, self._exported, self._fail = start, stop, exported, fail
        self._followers: set[socket.socket] = set()
        self._unheard_since: float | None = None  # on the monotonic clock: the lock is held, and nobody listens
        self._held: weakref.WeakSet[FileIO | socket.socket] = weakref.WeakSet()
        forks.watch(self)
        self._owns_ready = False

    async def enter(self) -> None:
        """Return when the services are ready, here or with their owner.

        Raises the ServiceError of their start, also if it was tried elsewhere, and an OSError if the lock is not to be
        had.
        """
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(), name="headwater services")
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            await self.leave()
            raise

    async def leave(self) -> None:
        """Stop the services, if they are ours, and then let another have them."""
        self._life.cancel()
        await asyncio.wait([self._life])
        if self._ready.done():
            self._ready.exception()  # who entered may have been cancelled

    def start_afresh(self) -> None:
        """In a forked child: let go of what would make it look, when our process is gone, as if that held on."""
        for one in (*self._held, *self._followers):
            one.close()

    def tell_exports(self) -> None:
        """Tell the followers what the services export by now."""
        if self._owns_ready:
            self._tell({"exports": dict(self._exported())})

    async def _live(self) -> None:
        try:
            while True:
                with self._try_lock() as is_ours:
                    await (self._own() if is_ours else self._follow())
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            elif isinstance(error, ServiceError):
                self._fail(error)
            else:  # a callback's, or the file system's
                self._fail(ServiceError(self._path.stem, f"could not be taken over: {error!r}"))

    def _be_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    @contextlib.contextmanager
    def _try_lock(self) -> Iterator[bool]:
        """Whether this process holds the lock; it does so until the end of the block."""
        with FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+") as file:
            self._held.add(file)
            try:
                flock(file, LOCK_EX | LOCK_NB)
                is_ours = os.path.samestat(os.fstat(file.fileno()), self._path.stat())  # not one that was removed
            except (BlockingIOError, FileNotFoundError):
                is_ours = False
            if not is_ours:
                file.close()
            try:
                yield is_ours
            finally:
                if is_ours:
                    self._path.unlink(missing_ok=True)

    # --- the owner ------------------------------------------------------------------------------------

    async def _own(self) -> None:
        """Hold the services until this is cancelled."""
        with self._listening():
            try:
                await self._start()
            except ServiceError as error:
                self._tell({"failed": _packed(error)})
                raise
            try:
                self._owns_ready = True
                self.tell_exports()
                self._be_ready()
                await asyncio.get_running_loop().create_future()
            finally:
                self._owns_ready = False
                await self._stop()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Followers may come meanwhile. What they are told is small, so that it never has to wait for them."""
        loop = asyncio.get_running_loop()
        path = self._path.with_suffix(".sock")
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.setblocking(False)
            listener.bind(os.fspath(path))
            listener.listen(1024)
            self._held.add(listener)
            loop.add_reader(listener, self._accept, listener)
            try:
                yield
            finally:
                loop.remove_reader(listener)
                path.unlink(missing_ok=True)
                for follower in list(self._followers):
                    self._drop(follower)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            follower, _ = listener.accept()
            follower.setblocking(False)
            self._followers.add(follower)
            asyncio.get_running_loop().add_reader(follower, self._drop, follower)  # it says nothing but its end
            if self._owns_ready:
                self._send(follower, {"exports": dict(self._exported())})

    def _tell(self, message: Mapping[str, Any]) -> None:
        for follower in list(self._followers):
            self._send(follower, message)

    def _send(self, follower: socket.socket, message: Mapping[str, Any]) -> None:
        try:
            follower.sendall(json.dumps(message).encode() + b"\n")
        except OSError:  # it is gone, or has not read for very long
            self._drop(follower)

    def _drop(self, follower: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(follower)
        follower.close()
        self._followers.discard(follower)

    # --- a follower -----------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Listen to the owner until it is gone. Raises the ServiceError of its start."""
        try:
            reader, writer = await asyncio.open_unix_connection(self._path.with_suffix(".sock"), limit=LONGEST)
        except (FileNotFoundError, ConnectionRefusedError):
            await self._give_time_to_listen()
            return
        self._unheard_since = None
        exported: Mapping[str, str] = {}
        try:
            while line := await _line_of(reader):
                message = json.loads(line)
                if "failed" in message:
                    raise _unpacked(message["failed"])
                exported = message["exports"]
                os.environ.update(exported)
                self._be_ready()
        finally:
            writer.close()
            for name in exported:
                os.environ.pop(name, None)
        if self._ready.done():
            _log.info("the process that held the services is gone: another takes over")

    async def _give_time_to_listen(self) -> None:
        """An owner that was just elected is about to. Raises ServiceError for a lock that is somebody else's."""
        now = time.monotonic()
        if self._unheard_since is None:
            self._unheard_since = now
        if now - self._unheard_since > LISTENS_WITHIN:
            reason = f"cannot be shared: who has locked {self._path} does not listen; give Services(lock=) another path"
            raise ServiceError(self._path.stem, reason)
        await asyncio.sleep(ABOUT_TO_LISTEN)


async def _line_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ConnectionError:
        return b""


def _packed(error: ServiceError) -> dict[str, Any]:
    return {"name": error.name, "reason": error.reason, "exit_code": error.exit_code, "probe": error.probe,
            "lines": error.lines[-20:]}  # fmt: skip


def _unpacked(error: Mapping[str, Any]) -> ServiceError:
    return ServiceError(
        error["name"], error["reason"], exit_code=error["exit_code"], probe=error["probe"], lines=error["lines"]
    )
