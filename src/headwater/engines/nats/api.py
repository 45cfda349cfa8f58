"""JetStream's API: questions in JSON, and what its refusals are called here."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from ...errors import ConnectError, HeadwaterError
from .connection import Connection, LostError
from .wire import is_status, publication

WITHIN: Final = 5.0  # seconds JetStream has to answer
PAUSE: Final = 0.1  # seconds until what is not there yet is asked for again

NO_STREAM: Final = 10059
NO_CONSUMER: Final = 10014
NAME_TAKEN: Final = 10058  # by a stream with another configuration
OVERLAP: Final = 10065  # subjects that another stream has
CONSUMER_THERE: Final = 10148  # with another configuration
NO_MESSAGE: Final = 10037
TOO_LARGE: Final = 10054
NO_SCHEDULES: Final = 10188
NO_RESET: Final = 10204  # to a place before the one where the consumer was made to begin
NO_LEADER: Final = 10008
NO_JETSTREAM: Final = frozenset((10039, 10076))  # not enabled for the account, or on the server


class JetStreamError(HeadwaterError):
    """JetStream refused something. `code` is its own number for the reason."""

    def __init__(self, what: str, code: int, reason: str) -> None:
        hint = ": most of its servers are away, or they are electing a leader" if code == NO_LEADER else ""
        super().__init__(f"JetStream refuses {what}: {reason} ({code}){hint}")
        self.code, self.reason = code, reason


class NoAnswerError(ConnectError):
    """JetStream does not answer: it is not enabled, what was asked of is not there, or it takes too long."""


class Refusal(msgspec.Struct):
    """Why JetStream refused."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """What a stream says of a message it was sent."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: Refusal | None = None


read_ack: Final = msgspec.json.Decoder(PubAck).decode


class Api:
    """Asks JetStream, over a connection that may have to come back first."""

    def __init__(self, connection: Connection, domain: str | None) -> None:
        self._connection = connection
        self._url = f"nats://{connection.settings.address}"
        self.prefix = f"$JS.{domain}.API." if domain else "$JS.API."

    async def ask(self, subject: str, question: Any = None, within: float = WITHIN) -> Any:
        """The answer. Raises JetStreamError, and NoAnswerError at the latest after `within` seconds."""
        return await self._answer(f"{self.prefix}{subject}", question, within)

    async def store(self, subject: str, value: Any) -> None:
        """Have a stream keep this. Raises as `ask`."""
        await self._answer(subject, value, WITHIN)

    async def _answer(self, subject: str, question: Any, within: float) -> Any:
        body = b"" if question is None else msgspec.json.encode(question)
        try:
            async with asyncio.timeout(within):
                headers, answer = await self._insist(subject.encode(), body)
        except TimeoutError as error:
            raise NoAnswerError(self._url, f"no answer from {subject} within {within:g} s") from error
        if headers is not None and is_status(headers):
            raise NoAnswerError(self._url, f"nobody answers on {subject}: is JetStream enabled (nats-server -js)?")
        found = msgspec.json.decode(answer)
        if "error" in found:
            refusal = msgspec.convert(found["error"], Refusal)
            raise JetStreamError(subject, refusal.err_code, refusal.description)
        return found

    async def _insist(self, subject: bytes, body: bytes) -> tuple[bytes | None, bytes]:
        while True:
            try:
                return await self._once(subject, body)
            except LostError:
                await asyncio.sleep(PAUSE)

    async def _once(self, subject: bytes, body: bytes) -> tuple[bytes | None, bytes]:
        client = await self._connection.ready()
        flight = self._connection.fly(1, subject.decode())
        try:
            client.write(publication(subject, self._connection.answer_to(flight.first), b"", body))
            await flight.done
            return flight.answers[0]
        finally:
            self._connection.drop(flight)

    def tell(self, subject: str, reply: bytes, question: Any) -> None:
        """Ask on the connection there is, to be answered elsewhere."""
        client = self._connection.client
        if client is not None:
            client.write(publication(f"{self.prefix}{subject}".encode(), reply, b"", msgspec.json.encode(question)))
