"""A memory engine that notes how the core settles, and takes acknowledgements as its capabilities say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec

from headwater import Broker, Message
from headwater.clock import SYSTEM_CLOCK, Clock
from headwater.engine import Ack, Change, OnChange, Source
from headwater.engines.memory import CAPABILITIES, MemoryEngine, MemorySubscription
from headwater.message import Outgoing, Receipt

Place = tuple[str, int]


class RecordingEngine(MemoryEngine):
    """Memory, with other capabilities. `log` has the calls that settled something, in order.

    Where it acknowledges up to an offset, the last message of each partition stands for all below it, whatever became
    of them; `went_back` has those that were not above the one before.
    """

    def __init__(self, *, clock: Clock = SYSTEM_CLOCK, **changes: Any) -> None:
        capabilities = msgspec.structs.replace(CAPABILITIES, **changes)
        super().__init__(clock=clock, capabilities=lambda _source: capabilities)
        self.up_to = capabilities.ack is Ack.UP_TO
        self.log: list[tuple[str, list[Message], Any]] = []
        self.went_back: list[Message] = []
        self.before: dict[str, Callable[[Sequence[Message]], Any]] = {}  # called before what is named
        self.changed: OnChange

    def calls(self, name: str) -> list[list[Message]]:
        return [messages for call, messages, _ in self.log if call == name]

    def subscribe(self, source: Source, on_change: OnChange) -> AbstractAsyncContextManager[Any]:
        return self._recorded(source, on_change)

    @asynccontextmanager
    async def _recorded(self, source: Source, on_change: OnChange) -> AsyncIterator[Any]:
        self.changed = on_change
        async with super().subscribe(source, on_change) as place:
            yield Recorded(place, self)

    async def change(self, change: Change) -> None:
        """Have the last subscriber hear of this, as if a partition had moved."""
        await self.changed(change)


class Recorded:
    def __init__(self, place: MemorySubscription, engine: RecordingEngine) -> None:
        self._place, self._engine = place, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    async def _note(self, call: str, messages: Sequence[Message], detail: Any = None) -> None:
        before = self._engine.before.get(call)
        if before is not None and (wait := before(messages)) is not None:
            await wait
        self._engine.log.append((call, list(messages), detail))

    async def ack(self, messages: Sequence[Message]) -> None:
        await self._note("ack", messages)
        if self._engine.up_to:
            self._settle_up_to(messages)
        else:
            await self._place.ack(messages)

    def _settle_up_to(self, messages: Sequence[Message]) -> None:
        last: dict[Place, Message] = {}
        for message in messages:
            last[message.topic, message.partition or 0] = message
        for place, message in last.items():
            assert isinstance(message.offset, int)
            cursor = self._place._cursors[place]
            if message.offset < cursor.done_up_to:
                self._engine.went_back.append(message)
            cursor.done_up_to = message.offset + 1

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        await self._note("commit", acks, sends)
        receipts = self._engine.send(sends)
        if self._engine.up_to:
            self._settle_up_to(acks)
        else:
            await self._place.ack(acks)
        return receipts

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        await self._note("nack", messages, delay)
        await self._place.nack(messages, delay)

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        await self._note("reject", messages, reason)
        await self._place.reject(messages, reason)

    async def extend(self, messages: Sequence[Message]) -> None:
        await self._note("extend", messages)

    def pause(self, partitions: frozenset[Place]) -> None:
        self._engine.log.append(("pause", [], partitions))
        self._place.pause(partitions)

    def resume(self, partitions: frozenset[Place]) -> None:
        self._engine.log.append(("resume", [], partitions))
        self._place.resume(partitions)


def recording(**changes: Any) -> tuple[Broker, RecordingEngine]:
    """A broker on such an engine, and the engine."""
    broker, engine = Broker(), RecordingEngine(**changes)
    broker.replace_engine(engine)
    return broker, engine
