"""A place in a source: what the server delivers, until it is received, and acknowledged in the order it came."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import msgspec
from paho.mqtt.client import MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode

from ...engine import Source
from ...errors import NotSupportedError
from ...inbox import Inbox
from ...message import Message, Outgoing, Position, Receipt
from .carrying import read_envelope, read_properties
from .client import Connection
from .names import Names
from .options import Mqtt, Settings

_log: Final = logging.getLogger("headwater.mqtt")


class Delivery(msgspec.Struct):
    """A message of QoS 1 that the server has not been told to forget."""

    topic: str | None  # None: no reader wants it
    number: int  # counts what arrived
    here: bool = True  # it was delivered over the present connection


class Unacknowledged:
    """What was delivered and is not acknowledged, by packet identifier, in the order it came.

    It is acknowledged in that order, as MQTT asks. Over a new connection the server delivers again what it was not
    told to forget: copies of what is still being worked on are not handed out twice.
    """

    def __init__(self) -> None:
        self._held: dict[int, Delivery] = {}
        self._done_up_to: dict[str, int] = {}  # the last arrival that is done, of each topic
        self._some_are_absent = False  # they may not be delivered again

    def disconnected(self) -> None:
        for delivery in self._held.values():
            delivery.here = False
        self._some_are_absent = True

    def forget(self) -> None:
        """The server did so."""
        self._held.clear()

    def recognise(self, mid: int, duplicate: bool) -> bool:
        """Whether this is a copy of what is held."""
        held = self._held.get(mid) if duplicate else None
        if held is not None:
            held.here = True
        elif self._some_are_absent:  # the server begins with what it delivers again: it knows nothing of the others
            self._held = {mid: delivery for mid, delivery in self._held.items() if delivery.here}
            self._some_are_absent = False
        return held is not None

    def add(self, mid: int, topic: str | None, number: int) -> None:
        self._held.pop(mid, None)
        self._held[mid] = Delivery(topic, number)

    def done(self, messages: Sequence[Message]) -> None:
        """These are done, and those of their topics that arrived before them."""
        done = self._done_up_to
        for message in messages:
            if message.token > done.get(message.topic, -1):
                done[message.topic] = message.token

    def release(self) -> list[int]:
        """Those that are done and have nothing undone before them, to be acknowledged now."""
        mids, done = list[int](), self._done_up_to
        for mid, delivery in self._held.items():
            topic = delivery.topic
            if not delivery.here or (topic is not None and delivery.number > done.get(topic, -1)):
                break
            mids.append(mid)
        for mid in mids:
            del self._held[mid]
        if not self._held:
            done.clear()
        return mids


class MqttSubscription:
    """A place in a source, over one connection at a time."""

    def __init__(self, settings: Settings, names: Names, source: Source) -> None:
        options = source.option(Mqtt) or Mqtt()
        share = "" if source.group is None else f"$share/{source.group}/"
        self._url = settings.url
        self._source = source
        self._filters = [share + names.filter_of(topic) for topic in source.topics]
        self._qos = min(1, settings.qos if options.qos is None else options.qos)  # `Mqtt` says why
        self._retained = options.retained
        self._subscribed = False
        self._connection: Connection | None = None
        self._inbox = Inbox(max(1, source.prefetch), self._go_on)
        self._late = deque[Message]()  # what came while we were subscribing, and found the inbox full
        self._unacknowledged = Unacknowledged()
        self._name = lru_cache(maxsize=65_536)(lambda native: names.name_of(native, source.topics))
        self._numbers = itertools.count(1)
        self._mark = os.urandom(6).hex()

    # --- the connection -------------------------------------------------------------------------------

    async def prepare(self, connection: Connection) -> None:
        """Subscribe, in a session that is known, too: Mosquitto 2.0 forgets shared subscriptions over a restart.

        Such a session begins with what it kept. None of that is held back until the server has answered, for that
        would hold back the answer; it sends no more than `receive_maximum`.
        """
        welcome = connection.welcome
        if self._source.group is not None and not welcome.shared_available:
            raise NotSupportedError("mqtt", "groups", f"{self._url} has no shared subscriptions")
        if not welcome.session_present:
            self._unacknowledged.forget()
            if self._subscribed:
                text = "%s forgot the subscription to %s: what was published meanwhile is missing here"
                _log.warning(text, self._url, ", ".join(self._filters))
        retained = self._retained and not welcome.session_present
        await connection.subscribe(self._filters, self._qos, retained=retained)
        self._subscribed = True
        self._connection = connection
        self._release()
        self._hold_if_full()

    def on_down(self) -> None:
        self._connection = None
        self._unacknowledged.disconnected()

    def on_confirmed(self, mid: int, reason: ReasonCode) -> None:
        pass  # it publishes nothing

    def on_quiet(self) -> None:
        pass  # a waiting `receive` was woken by what came

    def _hold_if_full(self) -> None:
        if self._inbox.full and self._connection is not None:
            self._connection.hold()

    def _go_on(self) -> None:
        while self._late and self._inbox.put(self._late[0]):
            self._late.popleft()
        if self._connection is not None and not self._inbox.full:
            self._connection.go_on()

    # --- receiving ------------------------------------------------------------------------------------

    def on_message(self, arrived: MQTTMessage) -> None:
        if arrived.qos and self._unacknowledged.recognise(arrived.mid, arrived.dup):
            self._release()
            return
        name, number = self._name(arrived.topic), next(self._numbers)
        if arrived.retain and not self._retained:
            name = None
        if arrived.qos:
            self._unacknowledged.add(arrived.mid, name, number)
        if name is None:
            self._release()
            return
        message = self._message(name, number, arrived)
        if self._late or not self._inbox.put(message):
            self._late.append(message)
        self._hold_if_full()

    def _message(self, name: str, number: int, arrived: MQTTMessage) -> Message:
        body = bytes(arrived.payload)
        if arrived.properties is None:
            (serial, key, headers), body = read_envelope(body)
        else:
            serial, key, headers = read_properties(arrived.properties)
        offset = serial or f"{self._mark}-{number}"  # a foreign message has none: no two share one at least
        return Message(name, body, key, headers, None, offset, time.time(), self._source.group, token=number)

    async def receive(self, limit: int, wait: float) -> Sequence[Message]:
        messages = await self._inbox.receive(limit, wait)
        if self._source.group is None and messages:
            await self.ack(messages)  # nobody else would
        return messages

    def wake(self) -> None:
        self._inbox.wake()

    def pause(self, partitions: frozenset[tuple[str, int]]) -> None:
        self._inbox.pause()

    def resume(self, partitions: frozenset[tuple[str, int]]) -> None:
        self._inbox.resume()

    # --- settling -------------------------------------------------------------------------------------

    async def ack(self, messages: Sequence[Message]) -> None:
        self._unacknowledged.done(messages)
        self._release()

    def _release(self) -> None:
        if self._connection is not None:
            self._connection.acknowledge(self._unacknowledged.release())

    def begin(self, message: Message) -> None:
        pass  # MQTT counts no deliveries

    async def extend(self, messages: Sequence[Message]) -> None:
        pass  # no leases

    async def nack(self, messages: Sequence[Message], delay: float) -> None:
        raise NotSupportedError("mqtt", "nack", "the core retries in place")

    async def reject(self, messages: Sequence[Message], reason: str) -> None:
        raise NotSupportedError("mqtt", "reject", "the core writes dead letters")

    async def commit(self, acks: Sequence[Message], sends: Sequence[Outgoing]) -> Sequence[Receipt]:
        raise NotSupportedError("mqtt", "transactions")

    async def seek(self, position: Position) -> None:
        raise NotSupportedError("mqtt", "seek", "it keeps nothing to go back to")
