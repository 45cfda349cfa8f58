"""Messages on their way to the server: written as it takes them, confirmed as it answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import struct
import time
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Final

from paho.mqtt.client import MQTTMessage
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from ...engine import option_of
from ...errors import (
    AuthenticationError,
    HeadwaterError,
    MessageTooLargeError,
    NotSupportedError,
    PublishError,
    RefusedError,
    TopicNameError,
)
from ...message import Headers, Outgoing, Receipt
from ...topics import DEAD_SUFFIX
from .carrying import LONGEST, write_envelope, write_properties
from .client import LARGEST, NO_SUBSCRIBERS, NOT_AUTHORIZED, TOO_LARGE, TOPIC_INVALID, Connection
from .names import Names
from .options import Mqtt, Settings

_log: Final = logging.getLogger("headwater.mqtt")
WINDOW: Final = 1000  # unconfirmed messages at a time, where the server wants no fewer

_PLAIN: Final = Mqtt()


class Batch:
    """What was given to one `send`: its receipts and errors, and how many of them are still open."""

    def __init__(self, messages: Sequence[Outgoing]) -> None:
        self.messages = messages
        self.future: asyncio.Future[Sequence[Receipt]] = asyncio.get_running_loop().create_future()
        self.unwritten = deque(range(len(messages)))
        self.receipts: list[Receipt | None] = [None] * len(messages)
        self.errors: list[HeadwaterError | None] = [None] * len(messages)
        self._open = len(messages)

    def settle(self, index: int, error: HeadwaterError | None = None) -> None:
        if error is not None:
            self.errors[index], self.receipts[index] = error, None
        self._open -= 1
        if self._open or self.future.done():
            return
        if not any(self.errors):
            self.future.set_result(self.receipts)  # type: ignore[arg-type]  # without errors all are there
        else:
            alone = self.errors[0] if len(self.errors) == 1 else None
            self.future.set_exception(alone or PublishError(self.receipts, self.errors))


class Sender:
    """The publishing side of a broker, over one connection at a time.

    Messages are written in order, at most as many at a time as the server wants unconfirmed. While it is away they
    wait, as objects their publishers hold anyway; who gives up waiting takes his along. What was written and not
    confirmed is written again on the next connection.
    """

    def __init__(self, settings: Settings, names: Names) -> None:
        self._settings = settings
        self._names = names
        self._connection: Connection | None = None
        self._window = WINDOW
        self._limit = settings.max_packet_size or LARGEST
        self._waiting: dict[Batch, None] = {}  # in order
        self._flying: dict[int, tuple[Batch, int]] = {}  # written and not confirmed, in order
        self._unheard: set[str] = set()  # dead-letter topics that nobody reads, which was said once
        self._mark = os.urandom(6).hex()
        self._numbers = itertools.count()

    def send(self, messages: Sequence[Outgoing]) -> Sequence[Receipt] | Awaitable[Sequence[Receipt]]:
        if not messages:
            return ()
        batch = Batch(messages)
        self._waiting[batch] = None
        self.on_quiet()
        if batch.future.done():
            return batch.future.result()
        batch.future.add_done_callback(lambda _: self._waiting.pop(batch, None))
        return batch.future

    # --- the connection -------------------------------------------------------------------------------

    async def prepare(self, connection: Connection) -> None:
        welcome = connection.welcome
        self._window = min(WINDOW, welcome.receive_maximum)
        self._limit = min(self._settings.max_packet_size or LARGEST, welcome.maximum_packet)
        self._connection = connection
        self.on_quiet()

    def on_down(self) -> None:
        """What is not confirmed goes back to the front of what is not written."""
        self._connection = None
        again = {batch: None for batch, _ in self._flying.values() if not batch.future.done()}
        for batch, index in reversed(self._flying.values()):
            batch.unwritten.appendleft(index)
        self._flying.clear()
        self._waiting = again | self._waiting

    def on_message(self, arrived: MQTTMessage) -> None:
        pass  # it subscribes to nothing

    def on_quiet(self) -> None:
        """Write what the server takes now."""
        connection = self._connection
        if connection is None:
            return
        while self._waiting and not connection.congested and len(self._flying) < self._window:
            batch = next(iter(self._waiting))
            while batch.unwritten and len(self._flying) < self._window:
                self._write(connection, batch, batch.unwritten.popleft())
            if not batch.unwritten:
                del self._waiting[batch]
            connection.flush()

    def on_confirmed(self, mid: int, reason: ReasonCode) -> None:
        batch, index = self._flying.pop(mid, (None, 0))  # QoS 0 is settled already
        if batch is None:
            return
        if reason.value:
            self._say_what_is_not_kept(batch.messages[index].topic, reason)
        batch.settle(index, self._refused(batch.messages[index], reason) if reason.is_failure else None)

    def _say_what_is_not_kept(self, topic: str, reason: ReasonCode) -> None:
        if reason.value == NO_SUBSCRIBERS and topic.endswith(DEAD_SUFFIX) and topic not in self._unheard:
            self._unheard.add(topic)
            text = "nobody subscribes to %s, so the server keeps no dead letters there: give it a subscriber"
            _log.warning(text, topic)

    # --- one message ----------------------------------------------------------------------------------

    def _write(self, connection: Connection, batch: Batch, index: int) -> None:
        outgoing = batch.messages[index]
        options = (option_of(outgoing.options, Mqtt) if outgoing.options else None) or _PLAIN
        qos = self._settings.qos if options.qos is None else options.qos
        serial = f"{self._mark}-{next(self._numbers):x}"
        try:
            self._check(connection, outgoing, options, qos)
            topic, body, about = self._content(outgoing, options, serial)
        except HeadwaterError as error:
            batch.settle(index, error)
            return
        mid = connection.publish(topic, body, qos, options.retain, about)
        batch.receipts[index] = Receipt(outgoing.topic, None, serial if qos else None, time.time())
        if qos:
            self._flying[mid] = (batch, index)
        else:
            batch.settle(index)

    def _content(self, outgoing: Outgoing, options: Mqtt, serial: str) -> tuple[str, bytes, Properties | None]:
        """Topic, body and properties. Raises what makes the message one that cannot be sent."""
        topic = self._names.out(outgoing.topic)
        headers, key, body = outgoing.headers, outgoing.key_bytes, outgoing.body
        if not isinstance(headers, Headers):
            headers = Headers(headers)
        about, size = None, 12 + len(topic.encode())  # with the longest of heads
        if self._settings.five:
            try:
                about = write_properties(serial, key, headers, options.expiry)
            except struct.error:  # a text is too long for its length
                size = len(key or b"") + sum(len(name) + len(value) for name, value in headers.pairs)
                raise MessageTooLargeError(outgoing.topic, size, LONGEST) from None
            size += len(about.packed)
        elif body or not options.retain:  # an empty retained message clears, an envelope would not
            body = write_envelope(serial, key, headers, body)
        size += len(body)
        if size > self._limit:
            raise MessageTooLargeError(outgoing.topic, size, self._limit)
        return topic, body, about

    def _check(self, connection: Connection, outgoing: Outgoing, options: Mqtt, qos: int) -> None:
        """Raise NotSupportedError for what MQTT, its version or this server cannot do."""
        welcome = connection.welcome
        if outgoing.delay:
            raise NotSupportedError("mqtt", "a delay", "only a will can have one")
        if outgoing.partition:
            raise NotSupportedError("mqtt", f"partition={outgoing.partition}", "its topics have no partitions")
        if options.expiry is not None and not self._settings.five:
            raise NotSupportedError("mqtt", "expiry", "MQTT 3.1.1 has none: use protocol=5.0")
        if qos > welcome.maximum_qos:
            raise NotSupportedError("mqtt", f"QoS {qos}", f"this server takes at most {welcome.maximum_qos}")
        if options.retain and not welcome.retain_available:
            raise NotSupportedError("mqtt", "retained messages", "this server keeps none")

    def _refused(self, outgoing: Outgoing, reason: ReasonCode) -> HeadwaterError:
        if reason.value == NOT_AUTHORIZED:
            return AuthenticationError(self._settings.url, f"it does not let us publish to {outgoing.topic!r}")
        if reason.value == TOO_LARGE:
            return MessageTooLargeError(outgoing.topic, len(outgoing.body))
        if reason.value == TOPIC_INVALID:
            return TopicNameError(outgoing.topic, "the server does not take this name")
        return RefusedError(outgoing.topic, str(reason))
