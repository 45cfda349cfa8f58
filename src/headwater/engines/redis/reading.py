"""Streams read as one: connections that wait for entries, and a basket that keeps what came until it is received."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from ...errors import ConnectError
from ...message import Message
from ...retry import Retry
from .node import Node
from .servers import Servers, passes
from .wire import Command, Disconnected, Refusal, Wire

BLOCK: Final = 5.0  # seconds that a read waits at the server
GRACE: Final = 3.0  # seconds later its answer is overdue
LEAVE_WITHIN: Final = 2.0  # seconds for a read to end that is told to
_BACKOFF: Final = Retry(backoff=(0.05, 2.0))

_log: Final = logging.getLogger("headwater.redis")


class Basket:
    """What came and was not received yet, and how much more is wanted.

    Nothing is fetched but for somebody who waits, so it holds no more than was asked for by each that fetches.
    """

    def __init__(self) -> None:
        self.paused: frozenset[str] = frozenset()
        self.on_resume: Callable[[], object] = lambda: None
        self.messages: list[Message] = []
        self.wanted = 0
        self._hungry = asyncio.Event()
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self._failure: BaseException | None = None

    # --- for those that fetch -------------------------------------------------------------------------

    async def demand(self) -> int:
        """How many messages are wanted, once some are."""
        if not self.wanted:
            await self._hungry.wait()
        return self.wanted

    def put(self, messages: Sequence[Message]) -> None:
        """These came."""
        self.messages += messages
        self.wanted = 0
        self._hungry.clear()
        self._notify()

    def fail(self, error: BaseException) -> None:
        """Nothing comes any more: `receive` raises this."""
        self._failure = error
        self._notify()

    def clear(self, of: Callable[[Message], bool] = lambda _: True) -> None:
        """Forget this of what came."""
        self.messages = [message for message in self.messages if not of(message)]

    # --- for who receives -----------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        """As `Subscription.receive`."""
        taken = self._take(limit)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        if not taken:
            self.wanted = limit
            self._hungry.set()
        while not taken and not self._woken and (rest := deadline - loop.time()) > 0:
            if self._failure is not None:
                raise self._failure
            self._waiter = loop.create_future()
            timer = loop.call_later(rest, self._notify)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
            taken = self._take(limit)
        self._woken = False
        return taken

    def _take(self, limit: int) -> list[Message]:
        messages = self.messages
        if self.paused:
            taken = [message for message in messages if message.topic not in self.paused][:limit]
            chosen = set(taken)
            self.messages = [message for message in messages if message not in chosen]
            return taken
        if len(messages) <= limit:
            self.messages = []
            return messages
        self.messages = messages[limit:]
        return messages[:limit]

    def wake(self) -> None:
        self._woken = True
        self._notify()

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        self.paused |= {topic for topic, _ in partitions}

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self.paused -= {topic for topic, _ in partitions}
        self._notify()
        self.on_resume()

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Duty(Protocol):
    """What a reader reads, and for whom."""

    basket: Basket
    name: str  # of its connections

    async def prepare(self, topics: Sequence[str]) -> None:
        """The connection is new, or something may have been lost with one. Raises Refusal, Disconnected."""
        ...

    async def patience(self) -> float:
        """Wait until reading is allowed; the seconds that a read may wait at the server."""
        ...

    def read(self, topics: Sequence[str], count: int, block: int) -> Command:
        """The command that reads `count` entries of each, and waits for `block` milliseconds."""
        ...

    def arrived(self, reply: Any) -> None:
        """Entries came."""
        ...

    async def refused(self, topics: Sequence[str], refusal: Refusal) -> bool:
        """The read was refused; whether that is mended."""
        ...


class Reader:
    """Reads some streams of one server, over a connection of its own, whenever messages are wanted.

    While the server is away it waits for it. What else goes wrong is logged, once, and tried again with backoff.
    """

    def __init__(self, servers: Servers, duty: Duty, topics: Sequence[str]) -> None:
        self.topics = list(topics)
        self.unsure = True  # whether something may have been given to us that never came
        self._servers, self._duty = servers, duty
        self._stopping = False
        self._waiting: tuple[Node, Wire] | None = None  # where a read waits
        self._changed = asyncio.Event()
        self._failures, self._complaint = 0, ""
        self._task = asyncio.create_task(self._run(), name=f"headwater redis reader {duty.name}")

    def read_too(self, topics: Sequence[str]) -> None:
        """Read these as well."""
        new = [topic for topic in topics if topic not in self.topics]
        if new:
            self.topics += new
            self.interrupt()

    def interrupt(self) -> None:
        """End a read that waits: what is read, or whether, has changed."""
        self._changed.set()
        if self._waiting is not None:
            node, wire = self._waiting
            node.post(("CLIENT", "UNBLOCK", wire.id))

    async def stop(self) -> None:
        """Read nothing more; what the server gave until now is in the basket."""
        self._stopping = True
        end = asyncio.get_running_loop().time() + LEAVE_WITHIN
        while self._waiting is not None and asyncio.get_running_loop().time() < end:
            self.interrupt()  # again, in case it overtook the read
            await asyncio.wait([self._task], timeout=0.05)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            wire: Wire | None = None
            self._failures += 1
            try:
                node = self._servers.node_of(self.topics[0])
                wire = await node.another(self._duty.name)
                self.unsure = True
                await self._read_on(node, wire)
                return
            except Disconnected:
                delay = _BACKOFF.delay(min(self._failures, 3))  # the server is waited for elsewhere
            except (ConnectError, Refusal) as error:
                delay = _BACKOFF.delay(self._failures)
                self._complain(error)
            except Exception as error:
                self._duty.basket.fail(error)
                raise
            finally:
                self._waiting = None
                if wire is not None:
                    await wire.close()
            await asyncio.sleep(delay)

    async def _read_on(self, node: Node, wire: Wire) -> None:
        duty = self._duty
        while not self._stopping:
            self._changed.clear()
            if self.unsure:
                await self._prepare(node)
            await duty.basket.demand()
            patience = await duty.patience()
            count, paused = duty.basket.wanted, duty.basket.paused
            topics = [topic for topic in self.topics if topic not in paused] if paused else self.topics
            if not topics:
                await self._changed.wait()
            elif count and not self.unsure:
                reply = await self._ask(node, wire, topics, -(-count // len(topics)), patience)
                if isinstance(reply, Refusal):
                    await self._mend(node, topics, reply)
                elif reply is not None:
                    duty.arrived(reply)
                    self._failures, self._complaint = 0, ""

    async def _prepare(self, node: Node) -> None:
        try:
            await self._duty.prepare(self.topics)
            self.unsure = False
        except Refusal as refusal:
            await self._mend(node, self.topics, refusal)

    async def _ask(self, node: Node, wire: Wire, topics: Sequence[str], count: int, patience: float) -> Any:
        block = min(patience, BLOCK)
        overdue = asyncio.get_running_loop().call_later(block + GRACE, wire.abort, "a read was not answered")
        asking: Awaitable[list[Any]] = wire.ask([self._duty.read(topics, count, max(1, int(block * 1000)))])
        self._waiting = node, wire
        try:
            return (await asking)[0]
        finally:
            self._waiting = None
            overdue.cancel()

    async def _mend(self, node: Node, topics: Sequence[str], refusal: Refusal) -> None:
        if refusal.code == "UNBLOCKED":
            return
        if passes(refusal):
            self._servers.look_again(node, refusal)
            raise Disconnected(str(refusal))
        if not await self._duty.refused(topics, refusal):
            raise refusal

    def _complain(self, error: Exception) -> None:
        if str(error) != self._complaint:
            self._complaint = str(error)
            _log.warning("%s cannot read %s: %s", self._duty.name, ", ".join(self.topics), error)
