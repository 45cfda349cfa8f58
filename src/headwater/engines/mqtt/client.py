"""A connection to an MQTT server: paho speaks the protocol, asyncio carries the bytes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from paho.mqtt.client import MQTT_CLEAN_START_FIRST_ONLY, Client
from paho.mqtt.enums import CallbackAPIVersion, MessageType, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ...errors import AuthenticationError, ConnectError, HeadwaterError, NotSupportedError
from .carrying import properties
from .link import User
from .options import Hello, Settings

TIMEOUT: Final = 5.0  # seconds for a server to answer what it answers at once
LARGEST: Final = 268_435_455  # bytes that a packet of MQTT can have

NO_SUBSCRIBERS: Final = 0x10  # reasons of MQTT 5.0; paho translates those of 3.1.1
NOT_AUTHORIZED: Final = 0x87
TOPIC_INVALID: Final = 0x90
TOO_LARGE: Final = 0x95
_REFUSED: Final = (0x86, NOT_AUTHORIZED, 0x8A, 0x8C)  # user name or password, not allowed, banned, method
# Mosquitto keeps its next answers back until the last one is acknowledged, which Linux does after 40 ms if not told.
_QUICK: Final = getattr(socket, "TCP_QUICKACK", None)
_PING: Final = bytes((MessageType.PINGREQ, 0))  # paho sends one after two keepalives only


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the server said to that."""

    session_present: bool
    receive_maximum: int
    maximum_packet: int
    maximum_qos: int
    retain_available: bool
    shared_available: bool


class Pipe(asyncio.Protocol):
    """An asyncio connection that paho takes for its socket: nothing blocks, and one turn is written at once."""

    transport: asyncio.Transport

    def __init__(self, owner: Connection) -> None:
        self.heard = 0.0  # when the server was heard last, on the loop's clock
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._read = b""
        self._at = 0  # how much of it paho has taken
        self._written: list[bytes | bytearray] = []

    @property
    def pending(self) -> bool:
        """Whether there is something to read."""
        return self._at < len(self._read)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._socket = transport.get_extra_info("socket")

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        self._read = self._read[self._at :] + data
        self._at = 0
        if _QUICK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICK, 1)
        self._owner.on_data()

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.on_lost(str(error) if error else "it closed the connection")

    def pause_writing(self) -> None:
        self._owner.congested = True

    def resume_writing(self) -> None:
        self._owner.congested = False
        self._owner.on_data()

    def flush(self) -> None:
        self.transport.write(b"".join(self._written))
        self._written.clear()

    # --- what paho asks of a socket -------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        data = self._read[self._at : self._at + size]
        if not data:
            raise BlockingIOError
        self._at += len(data)
        return data

    def send(self, data: bytes | bytearray) -> int:
        self._written.append(data)
        return len(data)

    def close(self) -> None:
        """Nothing yet: who said goodbye lets the server hang up, or it may lose what it was told before."""

    def fileno(self) -> int:
        return -1

    def setblocking(self, flag: bool) -> None:
        pass


class _Client(Client):
    """paho's client on a connection that is there already."""

    pipe: Pipe

    def _create_socket(self) -> Pipe:
        return self.pipe


class Connection:
    """A connection from its greeting to its loss, with a client of paho's that is used once.

    So paho never sends again by itself: what becomes of messages over a loss is decided by who sent them.
    """

    welcome: Welcome

    def __init__(self, settings: Settings, hello: Hello, user: User) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # why, once it is
        self.congested = False  # write no more for now
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._hello = hello
        self._user = user
        self._pipe = Pipe(self)
        self._client = self._make_client()
        self._greeted: asyncio.Future[Welcome] = self._loop.create_future()
        self._granted: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._answers: list[asyncio.Future[None]] = []
        self._held = False
        self._reading = False
        self._asked = 0.0
        self._every = settings.keepalive / 3
        self._ticking: asyncio.TimerHandle | None = None
        self._why = ""

    def _make_client(self) -> Client:
        hello, settings = self._hello, self._settings
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=hello.client_id,
            clean_session=None if settings.five else hello.clean,
            protocol=MQTTProtocolVersion.MQTTv5 if settings.five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.pipe = self._pipe
        client.max_inflight_messages = 0  # who sends counts them
        client.username_pw_set(settings.username, settings.password)
        if hello.will is not None:
            will = hello.will
            delay = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=round(will.delay)) if will.delay else None
            client.will_set(will.topic, will.payload, will.qos, will.retain, delay)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: _set(self._granted, reasons)
        client.on_message = lambda _client, _data, message: self._user.on_message(message)
        client.on_publish = lambda _client, _data, mid, reason, _properties: self._user.on_confirmed(mid, reason)
        client.on_socket_register_write = lambda *_: None  # so that it waits for `flush`
        return client

    # --- from greeting to goodbye ---------------------------------------------------------------------

    async def open(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Connect and be welcomed. Raises ConnectError, AuthenticationError; then it is to be aborted."""
        url, where = self._settings.url, f"{host}:{port}"
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._loop.create_connection(
                    lambda: self._pipe, host, port, ssl=tls, server_hostname=host if tls else None
                )
                self._greet(host, port)
                self.welcome = await self._greeted
        except TimeoutError as error:
            raise ConnectError(url, f"{where} did not answer within {TIMEOUT:g} s") from error
        except OSError as error:
            raise ConnectError(url, f"{where}: {error}") from error
        except ConnectError as error:
            raise type(error)(url, f"{where}: {error.reason}") from None
        self._tick()

    def _greet(self, host: str, port: int) -> None:
        hello, keepalive = self._hello, max(1, round(self._settings.keepalive))
        if self._settings.five:
            expiry = min(0xFFFFFFFF, round(hello.expiry))
            about = properties(
                PacketTypes.CONNECT, SessionExpiryInterval=expiry, ReceiveMaximum=self._settings.receive_maximum
            )
            self._client.connect(host, port, keepalive, clean_start=hello.clean, properties=about)
        else:
            self._client.connect(host, port, keepalive, clean_start=MQTT_CLEAN_START_FIRST_ONLY)
        self.flush()

    async def close(self, *, end_session: bool) -> None:
        """Say goodbye, and wait until the server hangs up. Idempotent."""
        if self.lost.done():
            return
        self._why = "closed"
        ends = properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0)
        self._client.disconnect(properties=ends if end_session and self._settings.five else None)
        self.flush()
        self._pipe.transport.resume_reading()
        await asyncio.wait([self.lost], timeout=TIMEOUT)
        self.abort("closed")

    def abort(self, why: str) -> None:
        """End it now."""
        self._why = self._why or why
        if hasattr(self._pipe, "transport"):
            self._pipe.transport.abort()

    # --- what is asked of the server ------------------------------------------------------------------

    def publish(self, topic: str, body: bytes, qos: int, retain: bool, about: Properties | None) -> int:
        """The number under which it will be confirmed. `flush` writes it."""
        return self._client.publish(topic, body, qos, retain, about).mid

    def acknowledge(self, mids: Sequence[int]) -> None:
        """Say that these messages of QoS 1 are done."""
        for mid in mids:
            self._client.ack(mid, 1)
        if mids and not self._reading:
            self.flush()

    def flush(self) -> None:
        """Write what was asked for since the last time, at once."""
        if self._client.want_write():
            self._client.loop_write()
            self._pipe.flush()

    async def subscribe(self, filters: Sequence[str], qos: int, *, retained: bool) -> None:
        """Subscribe, once. Raises AuthenticationError, NotSupportedError, ConnectError for what the server refuses."""
        if self._settings.five:
            handling = SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if retained else SubscribeOptions.RETAIN_DO_NOT_SEND
            options = SubscribeOptions(qos, retainHandling=handling)
            self._client.subscribe([(name, options) for name in filters])
        else:
            self._client.subscribe([(name, qos) for name in filters])
        self.flush()
        reasons = await self._answer(self._granted, "to a subscription ")
        for name, reason in zip(filters, reasons, strict=True):
            if reason.is_failure:
                raise self._refused(name, reason)

    def _refused(self, name: str, reason: ReasonCode) -> HeadwaterError:
        url = self._settings.url
        if reason.value == NOT_AUTHORIZED or not self._settings.five:  # 3.1.1 knows one reason only
            return AuthenticationError(url, f"it does not let us subscribe to {name!r}")
        return NotSupportedError("mqtt", f"a subscription to {name!r}", f"{url} says: {reason}")

    async def ping(self) -> None:
        """Raises ConnectError if the server says nothing to that."""
        heard: asyncio.Future[None] = self._loop.create_future()
        self._answers.append(heard)
        self._ask()
        await self._answer(heard)

    async def _answer(self, answer: asyncio.Future[Any], to: str = "") -> Any:
        try:
            async with asyncio.timeout(TIMEOUT):
                return await answer
        except TimeoutError as error:
            raise ConnectError(self._settings.url, f"no answer {to}within {TIMEOUT:g} s") from error

    def _tick(self) -> None:
        """Ask three times in a keepalive, give up where the next time nothing has been heard."""
        if self._asked > self._pipe.heard and not self._held:
            self.abort(f"it has been silent for {self._loop.time() - self._pipe.heard:.1f} s")
        if not self._why:
            self._ask()
            self._ticking = self._loop.call_later(self._every, self._tick)

    def _ask(self) -> None:
        self._asked = self._loop.time()
        self._pipe.send(_PING)
        self._pipe.flush()

    # --- reading --------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Read no further until `go_on`."""
        self._held = True
        self._pipe.transport.pause_reading()

    def go_on(self) -> None:
        if self._held and not self.lost.done():
            self._held = False
            self._pipe.heard = self._loop.time()  # it may have been waiting for us
            self._pipe.transport.resume_reading()
            self.on_data()

    def on_data(self) -> None:
        """Have paho read all that is there."""
        pipe, read = self._pipe, self._client.loop_read
        self._reading = True  # what that makes us write is written at its end
        try:
            while pipe.pending and not self._held and not self._why and not read():
                pass
        except Exception as error:
            self.abort(f"it sent what is not MQTT: {error!r}")
        finally:
            self._reading = False
        if pipe.heard > self._asked:
            for heard in self._answers:
                _set(heard, None)
            self._answers.clear()
        if not self._why:
            self._user.on_quiet()
            self.flush()

    def on_lost(self, why: str) -> None:
        why = self._why = self._why or why
        if self._ticking is not None:
            self._ticking.cancel()
        waiters: list[asyncio.Future[Any]] = [self._greeted, self._granted, *self._answers]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(ConnectError(self._settings.url, why))
                waiting.exception()  # who waited may have given up
        _set(self.lost, why)

    # --- what paho tells ------------------------------------------------------------------------------

    def _on_connect(
        self, _client: Client, _data: Any, flags: Any, reason: ReasonCode, about: Properties | None
    ) -> None:
        if self._greeted.done():
            return
        if reason.is_failure:
            kind = AuthenticationError if reason.value in _REFUSED else ConnectError
            self._greeted.set_exception(kind(self._settings.url, f"it refuses us: {reason}"))
            return
        said = vars(about) if about is not None else {}
        self._every = min(self._every, (said.get("ServerKeepAlive") or 0xFFFF) / 3)
        self._greeted.set_result(
            Welcome(
                session_present=flags.session_present,
                receive_maximum=said.get("ReceiveMaximum", 0xFFFF),
                maximum_packet=said.get("MaximumPacketSize", LARGEST),
                maximum_qos=said.get("MaximumQoS", 2),
                retain_available=said.get("RetainAvailable", 1) == 1,
                shared_available=said.get("SharedSubscriptionAvailable", 1) == 1,
            )
        )

    def _on_disconnect(self, _client: Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any) -> None:
        if not self._why:  # else it was we who left
            self.abort(f"it ended the connection: {reason}")


def _set(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
