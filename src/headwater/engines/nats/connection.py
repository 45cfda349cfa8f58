"""A connection to NATS that comes back by itself, and what is subscribed and asked on it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from ...errors import AuthenticationError, ConnectError, HeadwaterError, MissingExtraError, NotConnectedError
from .options import Settings
from .subjects import INBOX

if TYPE_CHECKING:
    from .client import Client, OnMessage

log: Final = logging.getLogger("headwater.nats")

ANSWER_WITHIN: Final = 2.0  # seconds a server has for each step of a connection
FULL: Final = 1 << 20  # bytes not taken by the network yet, after which more has to wait
_SLOWEST: Final = 5.0  # seconds between two tries to come back
_REFUSALS: Final = ("authorization violation", "authentication")
_REFUSED_TO_PUBLISH: Final = re.compile(r'for publish to "([^"]*)"')


class LostError(HeadwaterError):
    """The connection was lost before an answer came, or none came in time."""


class Flight:
    """Questions that were sent together, until each of them is answered; with their subject if they share one."""

    __slots__ = ("_left", "answers", "done", "first", "subject")

    def __init__(self, first: int, count: int, subject: str = "") -> None:
        self.first, self.subject = first, subject
        self.answers: list[tuple[bytes | None, bytes]] = [(None, b"")] * count  # headers and body
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._left = count
        if not count:
            self.done.set_result(None)

    @property
    def landed(self) -> bool:
        """Whether all answers are here."""
        return not self._left

    def land(self, number: int, headers: bytes | None, body: bytes) -> None:
        self.answers[number - self.first] = headers, body
        self._left -= 1
        if not self._left and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: HeadwaterError | None = None) -> None:
        if not self.done.done():
            self.done.set_exception(error or LostError("the connection was lost"))


class Route:
    """A subscription on the wire; it is taken up again whenever the connection comes back."""

    __slots__ = ("queue", "sid", "subject")

    def __init__(self, sid: int, subject: str, queue: str) -> None:
        self.sid, self.subject, self.queue = sid, subject, queue

    def command(self) -> bytes:
        return f"SUB {self.subject} {self.queue} {self.sid}\r\n".encode()


class Connection:
    """Reaches one of the servers, and again when it is lost, for ever; says so once each way.

    `on_return` are called each time it came back, after everything is subscribed again.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.on_return: list[Callable[[], None]] = []
        self.client: Client | None = None  # while the server can be reached
        self.info: Mapping[str, Any] = {}  # what the server says of itself
        self.max_payload = 1 << 20  # bytes of headers and body that it takes at most
        self._hosts: Sequence[str] = settings.hosts
        self._sids = itertools.count(1)
        self._routes: dict[int, Route] = {}
        self._takers: dict[int, OnMessage] = {}
        self._flights: dict[int, Flight] = {}  # by the number of the question
        self._number = 0
        self._up: asyncio.Event  # belongs to a loop, and so to what was opened in it ...
        self.order: asyncio.Lock  # ... as does this: who waits to write keeps those that come later behind
        self._closed = True
        self._returning: asyncio.Task[None] | None = None
        self._inbox = f"{INBOX}hw.{os.urandom(9).hex()}."
        self._answer_prefix = f"{self._inbox}a.".encode()

    @property
    def version(self) -> tuple[int, ...]:
        """The server's version."""
        numbers = str(self.info.get("version", "0")).partition("-")[0].split(".")
        return tuple(int(number) for number in numbers if number.isdigit())

    # --- reaching the server --------------------------------------------------------------------------

    async def open(self) -> None:
        """Raises ConnectError, or AuthenticationError if the server refuses who asks. Idempotent."""
        if not self._closed:
            return
        client = await self._reach()
        self._up, self.order = asyncio.Event(), asyncio.Lock()
        self._closed = False
        if not self._routes:
            self.subscribe(f"{self._inbox}a.*", self._answered)
        self._arrive(client)

    async def close(self) -> None:
        """Send what was written, and leave. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
        client, self.client = self.client, None
        self._routes.clear()
        self._takers.clear()
        self._up.set()  # who waits sees that it is closed
        self._fail_flights()
        if client is not None:
            await client.leave()

    async def ready(self) -> Client:
        """The client, as soon as the server can be reached. Raises NotConnectedError once this was closed."""
        while not self._closed:
            if self.client is not None:
                return self.client
            await self._up.wait()
        raise NotConnectedError(f"nats://{self.settings.address}")

    async def _reach(self) -> Client:
        """A client of the first server that takes us, in random order."""
        try:
            from .client import Client
        except ImportError as error:
            raise MissingExtraError("nats-py", "nats") from error
        problems: list[str] = []
        login = self._login()
        for host in random.sample(self._hosts, len(self._hosts)):
            client = Client(self._takers, self._lost, self._complain)
            try:
                await client.reach(f"nats://{host}", **login)
                return client
            except ImportError as error:
                raise MissingExtraError(error.name or "nkeys", "nats") from error
            except Exception as error:
                reason = _reason(error)
                if any(word in reason.lower() for word in _REFUSALS):
                    raise AuthenticationError(f"nats://{host}", reason) from error
                problems.append(f"{host}: {reason}")
        raise ConnectError(f"nats://{self.settings.address}", "; ".join(problems))

    def _login(self) -> dict[str, Any]:
        settings = self.settings
        options: dict[str, Any] = {
            "name": settings.client,
            "user": settings.user,
            "password": settings.password,
            "token": settings.token,
            "user_credentials": settings.credentials,
            "nkeys_seed": settings.nkey,
            "connect_timeout": ANSWER_WITHIN,
            "ping_interval": settings.ping_interval,
            "max_outstanding_pings": 2,
        }
        context = settings.context()
        return options if context is None else {**options, "tls": context}

    def _arrive(self, client: Client) -> None:
        self.client = client
        self.info, self.max_payload = client.info, client.max_payload
        client.write(b"".join([route.command() for route in self._routes.values()]))
        self._up.set()

    def _lost(self, client: Client, error: Exception) -> None:
        client.abandon()
        if client is not self.client:
            return
        self.client = None
        self._hosts = list(dict.fromkeys([*self.settings.hosts, *client.discovered]))
        self._up.clear()
        self._fail_flights()
        log.warning("nats://%s is away: %s; trying to come back", self.settings.address, _reason(error))
        self._returning = asyncio.get_running_loop().create_task(self._return(), name="headwater nats reconnect")

    async def _return(self) -> None:
        refused = False
        for tries in itertools.count():
            await asyncio.sleep(min(_SLOWEST, 0.05 * 2.0 ** min(tries, 10)) * random.uniform(0.5, 1.0))
            try:
                client = await self._reach()
            except ConnectError as error:
                refuses = isinstance(error, AuthenticationError)
                log.log(logging.WARNING if refuses and not refused else logging.DEBUG, "%s", error)
                refused |= refuses
                continue
            self._arrive(client)
            log.info("nats://%s is back", self.settings.address)
            for tell in [*self.on_return]:
                tell()
            return

    # --- subscriptions --------------------------------------------------------------------------------

    def subscribe(self, subject: str, take: OnMessage, queue: str = "") -> Route:
        """Have `take` called for each message, once the server has read this; with a queue they are shared."""
        route = Route(next(self._sids), subject, queue)
        self._routes[route.sid] = route
        self._takers[route.sid] = take
        if self.client is not None:
            self.client.write(route.command())
        return route

    async def unsubscribe(self, *routes: Route) -> None:
        """Returns once nothing more comes: what the server had sent already is taken as before."""
        for route in routes:
            if self._routes.pop(route.sid, None) is not None and self.client is not None:
                self.client.write(b"UNSUB %d\r\n" % route.sid)
        try:
            await self.flush(ANSWER_WITHIN)
        except LostError:
            pass  # then nothing comes either
        for route in routes:
            self._takers.pop(route.sid, None)

    def new_inbox(self) -> str:
        """A subject that nobody else uses."""
        return f"{self._inbox}{next(self._sids)}"

    # --- questions ------------------------------------------------------------------------------------

    def fly(self, count: int, subject: str = "") -> Flight:
        """A place for the answers to so many questions, to be sent with `answer_to` each. `drop` it when given up.

        With their subject it fails at once if this user may not ask there.
        """
        flight = Flight(self._number, count, subject)
        self._flights.update(dict.fromkeys(range(self._number, self._number + count), flight))
        self._number += count
        return flight

    def answer_to(self, number: int) -> bytes:
        """Where the answer to this question goes."""
        return b"%b%d" % (self._answer_prefix, number)

    def drop(self, flight: Flight) -> None:
        """Wait for these answers no longer."""
        for number in range(flight.first, flight.first + len(flight.answers)):
            self._flights.pop(number, None)

    def _answered(self, subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        token = subject[len(self._answer_prefix) :]
        number = int(token) if token.isdigit() else -1
        flight = self._flights.pop(number, None)
        if flight is not None:
            flight.land(number, headers, body)

    def _fail_flights(self) -> None:
        for flight in {*self._flights.values()}:
            flight.fail()
        self._flights.clear()

    def _complain(self, error: Exception) -> None:
        """What the server refuses without ending the connection."""
        text = str(error)
        if "permissions violation" not in text.lower():
            log.debug("nats-py says: %r", error)
            return
        log.warning("the server says: %s", error)
        refused = _REFUSED_TO_PUBLISH.search(text.lower())
        for flight in {*self._flights.values()} if refused else ():
            if refused and flight.subject.lower() == refused[1]:
                reason = f"this user may not publish to {flight.subject}: give it that permission"
                flight.fail(AuthenticationError(f"nats://{self.settings.address}", reason))

    async def flush(self, timeout: float) -> None:
        """Return once the server has taken everything that was written. Raises LostError."""
        client = self.client
        if client is None:
            raise LostError(f"nats://{self.settings.address} is away")
        try:
            async with asyncio.timeout(timeout):
                await client.ping()
        except (ConnectionResetError, TimeoutError) as error:
            raise LostError(f"nats://{self.settings.address}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = str(error).removeprefix("nats: ").strip("'\"")
    if isinstance(error, TimeoutError):
        return f"no answer within {ANSWER_WITHIN:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return text or type(error).__name__
