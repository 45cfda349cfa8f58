"""Messages pulled from one consumer: asked for ahead of need, taken from the wire as they are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ...message import NO_HEADERS, Message
from ...topics import match
from .api import Api
from .connection import Connection, Route, log
from .consumers import PRIORITY, Cursor, Passing
from .streams import nanoseconds
from .wire import is_status, read, server_header, status

EXPIRES: Final = 30.0  # seconds a request waits at the server ...
EXPIRES_PINNED: Final = 2.0  # ... and one of an exclusive member, which says by asking that it is alive
HEARTBEAT: Final = 3.0  # seconds after which the server says that a request still waits
SILENCE: Final = 2.5 * HEARTBEAT  # seconds after which a server that says nothing has forgotten it

_PENDING: Final = b"Nats-Pending-Messages"
_PIN: Final = b"Nats-Pin-Id"
_HEARTBEAT, _ENDED, _OTHER_PIN = 100, 408, 423  # what the server says instead of a message


class Pull:
    """Keeps requests waiting at the server, for as many messages as there is room for.

    `ready` is what came and was not received, `unsettled` where to settle what came. Once `broken`, `restart` it.
    """

    def __init__(
        self,
        api: Api,
        connection: Connection,
        cursor: Cursor,
        topic: str,
        group: str | None,
        unsettled: dict[bytes, None],
        arrived: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.cursor = cursor
        self.topic = topic
        self.ready: deque[Message] = deque()
        self.broken = True
        self._prepared = False  # whether the consumer is there, as far as we know
        self._api, self._connection = api, connection
        self._group = group
        self._unsettled = unsettled
        self._arrived = arrived  # there is something to receive
        self._changed = changed  # there is room to ask for more, or something is broken
        self._topics: dict[bytes, str | None] = {}  # by subject; None for those that the pattern does not match
        self._asked = 0  # messages that were asked for and have not come
        self._heard = 0.0  # when the server last said something, on the loop's clock
        self._number = 0  # the consumer's own number of the last message
        self._pin = ""  # says that we are the active member of an exclusive group
        self._route: Route | None = None
        self._inbox = b""
        self._clock = asyncio.get_running_loop().time

    # --- asking ---------------------------------------------------------------------------------------

    async def restart(self) -> None:
        """Have the consumer there, and ask it on a new inbox: nobody hears what was asked on the old one."""
        await self.stop()
        if not self._prepared:
            await self.cursor.prepare()
        inbox = self._connection.new_inbox()
        self._inbox = inbox.encode()
        self._asked, self._number, self._pin = 0, 0, ""
        self._route = self._connection.subscribe(inbox, self._take)
        self.broken, self._prepared = False, True

    async def seek(self, sequence: int) -> None:
        """Go on at this sequence number of the stream; for a reader without a group."""
        assert isinstance(self.cursor, Passing)
        await self.stop()
        self.ready.clear()
        self.cursor.seek(sequence)
        self._prepared = False
        await self.restart()

    def interrupt(self) -> None:
        """The connection is new: a consumer that we share is there as before, and what was asked is forgotten."""
        self.broken = True
        self._prepared &= self.cursor.acknowledges

    async def stop(self) -> None:
        """Ask for nothing more. Once this returns nothing more comes."""
        self.broken = True
        route, self._route = self._route, None
        if route is not None:
            await self._connection.unsubscribe(route)

    async def leave(self) -> None:
        """Give the place at the consumer up, after `stop`."""
        if self._pin:
            await self._api.ask(f"CONSUMER.UNPIN.{self.cursor.stream}.{self.cursor.name}", {"group": PRIORITY})
        await self.cursor.leave()

    def ask(self, room: int) -> None:
        """Have about so many messages here or on their way."""
        wanted = room - len(self.ready) - self._asked
        if wanted >= max(1, room // 2) and not self.broken and self._connection.client is not None:
            self._request(wanted)

    def _request(self, wanted: int) -> None:
        expires = EXPIRES_PINNED if self.cursor.pinned else EXPIRES
        request: dict[str, Any] = {
            "batch": wanted,
            "expires": nanoseconds(expires),
            "idle_heartbeat": nanoseconds(min(HEARTBEAT, expires / 2)),
        }
        if self.cursor.pinned:
            request["group"] = PRIORITY
            if self._pin:
                request["id"] = self._pin
        if not self._asked:
            self._heard = self._clock()
        self._asked += wanted
        self._api.tell(f"CONSUMER.MSG.NEXT.{self.cursor.stream}.{self.cursor.name}", self._inbox, request)

    def look(self) -> None:
        """Notice a server that has forgotten what was asked, and keep the place of an active member."""
        if self._asked and self._clock() - self._heard > SILENCE:
            self._break()
        elif self.cursor.pinned and not self._asked and not self.broken:
            self._request(1)

    # --- taking ---------------------------------------------------------------------------------------

    def _take(self, subject: bytes, reply: bytes, body: bytes, block: bytes | None) -> None:
        self._heard = self._clock()
        if block is not None and is_status(block):
            self._hear(block)
            return
        fields = reply.split(b".")
        delivered, sequence, number, moment = fields[4:8] if len(fields) < 11 else fields[6:10]
        offset = int(sequence)
        self._asked -= 1
        if not self.cursor.acknowledges:
            self._number += 1
            if int(number) != self._number:  # one was lost on the way, and nobody but us knows
                self._break()
                return
        self.cursor.seen(offset)
        try:
            topic = self._topics[subject]
        except KeyError:
            topic = self._topic_of(subject)
        if topic is None:
            self._skip(reply)
            return
        key, headers = (None, NO_HEADERS) if block is None else read(block)
        if self.cursor.pinned and block is not None and (pin := server_header(block, _PIN)):
            self._pin = pin.decode()
        token = None
        if self.cursor.acknowledges:
            token = reply
            self._unsettled[reply] = None
        time, attempt = int(moment) / 1e9, int(delivered)
        self.ready.append(Message(topic, body, key, headers, None, offset, time, self._group, attempt, token))
        self._arrived()

    def _topic_of(self, subject: bytes) -> str | None:
        if len(self._topics) > 10_000:
            self._topics.clear()
        topic = subject.decode(errors="replace")
        found = self._topics[subject] = None if match(self.topic, topic) is None else topic
        return found

    def _skip(self, reply: bytes) -> None:
        """A dead letter or a retry, which no pattern matches, is nothing to this group."""
        client = self._connection.client
        if client is not None and self.cursor.acknowledges:
            client.write(b"PUB %b 0\r\n\r\n" % reply)
        self._changed()  # there is room for another

    def _hear(self, block: bytes) -> None:
        code, text = status(block)
        if code == _HEARTBEAT:
            return
        pending = server_header(block, _PENDING)
        self._asked = max(0, self._asked - int(pending)) if pending else 0
        if code == _OTHER_PIN:
            self._pin = ""
        if code in (_OTHER_PIN, _ENDED):
            self._changed()
        else:
            log.debug("%s on %s: %d %s", self.cursor.name, self.cursor.stream, code, text)
            self._break()

    def _break(self) -> None:
        self.broken, self._prepared = True, False
        self._changed()
