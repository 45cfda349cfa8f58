"""One partition, read from an offset on: a connection of its own, found again when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ...codecs.envelope import unseal
from ...errors import ConnectError, DecodeError, HeadwaterError, OffsetOutOfRangeError, TopicNotFoundError
from ...message import NO_HEADERS, Message
from ...retry import Retry
from . import apis, names
from .apis import Place, SmartModule, Streamed
from .cluster import Cluster
from .connection import WHO, Connection, LostError
from .link import DEAD_AFTER, log
from .records import Record, read_batches
from .wire import EVICTED, MODULE_NOT_FOUND, OUT_OF_RANGE, PASSING, TOPIC_DELETED, TOPIC_NOT_FOUND, Fault, Reader

STREAM: Final = 1  # the number of the only stream of a connection
MODULE_TRIES: Final = 7  # about three seconds
MAX_FETCH: Final = 32 << 20  # bytes; no batch is larger
PING_EVERY: Final = 2.0  # seconds of quiet
_AGAIN: Final = Retry(backoff=(0.05, 2.0))


class PartitionStream:
    """Reads a partition; every chunk is taken before the next one is asked for, which is the back-pressure.

    With a `consumer` its offset can be stored through the stream.
    """

    def __init__(
        self,
        cluster: Cluster,
        place: Place,
        offset: int,
        *,
        fetch_bytes: int,
        consumer: str | None = None,
        modules: Sequence[SmartModule] = (),
    ) -> None:
        self.place = place
        self.offset = offset  # of what comes next
        self._cluster = cluster
        self._fetch_bytes = fetch_bytes
        self._consumer = consumer
        self._modules = modules
        self._connection: Connection | None = None
        self._chunks: asyncio.Queue[Streamed | None] = asyncio.Queue()
        self._opening = asyncio.Lock()
        self._tries = 0

    async def open(self) -> None:
        """Have it sent. Raises ConnectError, TopicNotFoundError. Idempotent: who reads and who stores may both ask."""
        async with self._opening:
            if self._connection is None:
                await self._open()

    async def _open(self) -> None:
        connection = await self._cluster.another(self.place)
        chunks: asyncio.Queue[Streamed | None] = asyncio.Queue()

        def heard(reader: Reader | None) -> None:
            chunks.put_nowait(None if reader is None else apis.read_streamed(reader))

        body = apis.stream(self.place, self.offset, self._fetch_bytes, self._consumer, self._modules)
        try:
            connection.listen(apis.STREAM, body, heard)
        except LostError as error:
            raise ConnectError(self._cluster.address, str(error)) from error
        except HeadwaterError:
            connection.abort("it does not speak as we do")
            raise
        self._connection, self._chunks = connection, chunks

    def close(self) -> None:
        """Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort("closed here")

    async def read(self) -> list[Record]:
        """The records of the next chunk, at least one; asks for the one after it before it returns.

        Goes on for ever while the leader is away. Raises TopicNotFoundError, OffsetOutOfRangeError, HeadwaterError.
        """
        while True:
            try:
                await self.open()
                if records := await self._read_chunk():
                    self._tries = 0
                    return records
            except (LostError, ConnectError):
                await self._pause()
            except Fault as fault:
                if not self._passes(fault) and not await self._skips(fault):
                    raise await self._refused(fault) from fault
                await self._pause()

    def _passes(self, fault: Fault) -> bool:
        """Whether it may be otherwise in a moment; a new SmartModule, for one, is known to all SPUs only then."""
        return fault.code in PASSING or (fault.code == MODULE_NOT_FOUND and self._tries < MODULE_TRIES)

    async def _skips(self, fault: Fault) -> bool:
        """Whether this is for a group that was so slow that messages expired: it goes on with those that are left."""
        if self._consumer is None or fault.code not in (OUT_OF_RANGE, EVICTED):
            return False
        earliest, _ = await self._cluster.range(self.place)
        if self.offset >= earliest:
            return False
        text = "group %r: %s[%d] expired from offset %d to %d before it was read"
        log.warning(text, self._consumer, names.ours(self.place[0]), self.place[1], self.offset, earliest)
        self.offset = earliest
        return True

    async def _pause(self) -> None:
        self.close()
        self._cluster.leader_changed(self.place)
        self._tries += 1
        await asyncio.sleep(_AGAIN.delay(self._tries))

    async def _read_chunk(self) -> list[Record]:
        chunk = await self._next_chunk()
        if chunk is None:
            raise LostError("the connection was lost")
        apis.raise_fault(chunk.fault)
        return self._records_of(chunk)

    async def _next_chunk(self) -> Streamed | None:
        """What comes next, however long that takes. Raises LostError if the server gives no sign of life meanwhile."""
        connection = self._connection
        while connection is not None:
            try:
                async with asyncio.timeout(PING_EVERY):
                    return await self._chunks.get()
            except TimeoutError:
                pass
            try:
                await connection.ask(apis.VERSIONS, WHO, apis.read_versions, DEAD_AFTER)
            except TimeoutError:
                raise LostError(f"no answer for {DEAD_AFTER:g} s") from None
        return None

    def _records_of(self, chunk: Streamed) -> list[Record]:
        found: list[Record] = []
        after = self.offset
        for end, records in read_batches(chunk.batches):
            after = max(after, end)
            found += records
        if self._modules:
            after = max(after, chunk.next_offset)
        elif after == self.offset:
            self._take_more()
            return []
        if found and found[0].offset < self.offset:
            found = [record for record in found if record.offset >= self.offset]
        self.offset = after
        self._go_on()
        return found

    def _take_more(self) -> None:
        """A batch is larger than what was asked for: ask for more at once."""
        if self._fetch_bytes >= MAX_FETCH:
            raise DecodeError(f"{self.place} has a batch of more than {MAX_FETCH} bytes at offset {self.offset}")
        self._fetch_bytes = min(MAX_FETCH, self._fetch_bytes * 4)
        self.close()

    def _go_on(self) -> None:
        if self._connection is not None:
            self._connection.say(apis.MOVE_STREAM, apis.move_stream(STREAM, self.offset))

    async def store(self, offset: int) -> None:
        """Keep, for its consumer, that all up to this offset is done. Raises ConnectError, HeadwaterError."""
        try:
            await self.open()
            if self._connection is None:
                raise LostError("closed here")
            await self._connection.ask(apis.STORE_OFFSET, apis.store_offset(STREAM, offset), apis.read_stored)
        except (LostError, TimeoutError) as error:
            raise ConnectError(self._cluster.address, f"an offset could not be stored: {error}") from error
        except Fault as fault:
            raise self._cluster.refused(fault) from fault

    async def _refused(self, fault: Fault) -> HeadwaterError:
        topic, number = names.ours(self.place[0]), self.place[1]
        if fault.code in (TOPIC_NOT_FOUND, TOPIC_DELETED):
            self._cluster.forget(self.place[0])
            return TopicNotFoundError(topic, "it was deleted")
        if fault.code in (OUT_OF_RANGE, EVICTED):
            earliest, latest = await self._cluster.range(self.place)
            return OffsetOutOfRangeError(topic, number, self.offset, earliest, latest)
        return HeadwaterError(f"Fluvio stopped a stream of {topic!r}[{number}]: {fault}")


def to_messages(records: Sequence[Record], topic: str, number: int, group: str | None, token: object) -> list[Message]:
    """What was read, as messages. An envelope that is damaged stays the body: its handler cannot decode it."""
    found: list[Message] = []
    for record in records:
        try:
            _, headers, body = unseal(record.value)
        except DecodeError:
            headers, body = NO_HEADERS, record.value
        found.append(
            Message(topic, body, record.key, headers, number, record.offset, record.time / 1000, group, 1, token)
        )
    return found
