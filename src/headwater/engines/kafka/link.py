"""Whether Kafka can be reached, and why not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException

from ...errors import AuthenticationError, ConnectError

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

ASK_EVERY: Final = 1.0  # seconds
ANSWER_WITHIN: Final = 1.5  # seconds
ANY_TOPIC: Final = "__consumer_offsets"  # asking for one topic is cheaper than asking for all

_DOWN: Final = frozenset(("_ALL_BROKERS_DOWN", "_RESOLVE", "_TRANSPORT", "_SSL"))

_log = logging.getLogger("headwater.kafka")


class Link:
    """Asks the cluster every second for a sign of life; the client library alone would not notice one that hangs."""

    def __init__(self, address: str) -> None:
        self.available = False
        self._greet: Callable[[str, float], None]  # set by `reach`
        self._address = address
        self._reason = ""
        self._refused = ""  # the credentials were
        self._ask_now = asyncio.Event()
        self._failed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    def troubled(self, error: KafkaError) -> None:
        """The client library met an error."""
        name = error.name()
        if name == "_AUTHENTICATION":
            self._refused = error.str()
            self._failed.set()
        elif name in _DOWN:
            if name != "_ALL_BROKERS_DOWN":
                self._reason = error.str()
            else:
                self._failed.set()
            if self.available:
                self._ask_now.set()

    async def reach(self, greet: Callable[[str, float], None]) -> None:
        """Return once the cluster answers a greeting, which blocks. Raises ConnectError, AuthenticationError."""
        self._greet = greet
        asking = asyncio.create_task(self._until_answered())
        failing = asyncio.create_task(self._failed.wait())
        try:
            await asyncio.wait([asking, failing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            failing.cancel()
        if asking.done() and not asking.cancelled() and asking.exception() is None:
            self.available = True
            self._watch = asyncio.create_task(self._keep_asking(), name="headwater kafka link")
        elif self._refused:
            raise AuthenticationError(self._address, self._refused)
        else:
            raise ConnectError(self._address, self._reason or "no broker answers")

    async def ask(self) -> None:
        """Raise ConnectError unless the cluster answers in time."""
        try:
            await asyncio.to_thread(self._greet, ANY_TOPIC, ANSWER_WITHIN)
        except KafkaException as error:
            raise ConnectError(self._address, self._reason or error.args[0].str()) from error

    async def _until_answered(self) -> None:
        while True:
            try:
                return await self.ask()
            except ConnectError:
                await asyncio.sleep(0.05)

    async def _keep_asking(self) -> None:
        while True:
            try:
                await self.ask()
            except ConnectError as error:
                self._is_away(error)
            else:
                self._is_back()
            self._ask_now.clear()
            try:
                async with asyncio.timeout(ASK_EVERY):
                    await self._ask_now.wait()
            except TimeoutError:
                pass

    def _is_away(self, error: ConnectError) -> None:
        if self.available:
            self.available = False
            _log.warning("Kafka at %s is away: %s; trying until it is back", self._address, error.reason)

    def _is_back(self) -> None:
        if not self.available:
            self.available, self._reason = True, ""  # or the next one would be told for this one's
            _log.info("Kafka at %s is back", self._address)

    async def close(self) -> None:
        self.available = False
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
