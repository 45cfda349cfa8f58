"""Which server has which key: one server, the master that sentinels name, or the masters of a cluster."""

from __future__ import annotations

import asyncio
import binascii
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

from ...errors import AuthenticationError, ConnectError
from ...retry import Retry
from .address import Address, Host, Login, url_of
from .node import Closed, Node
from .wire import Command, Disconnected, Refusal, Wire, dial

Call = tuple[str, Command]  # a key, which says where to, and what to say there

SLOTS: Final = 16384
PATIENCE: Final = 12  # times that a command is repeated which was refused for a passing reason: some five seconds
_LOOK_AGAIN: Final = 0.5  # seconds between two looks at a cluster of which something is away
_AWAIT: Final = Retry(backoff=(0.02, 0.8))
_TWO_WORDS: Final = frozenset(("CLIENT", "CONFIG", "MEMORY", "XGROUP", "XINFO"))
_NO_RIGHT: Final = re.compile("executing the script can't run|ACL failure in script")  # what a script may not do
_PASSING: Final = frozenset(("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK"))

_log: Final = logging.getLogger("headwater.redis")


class Servers(Protocol):
    """What the engine asks, whichever servers there are."""

    @property
    def available(self) -> bool: ...

    async def open(self) -> None:
        """Connect. Raises ConnectError."""
        ...

    async def close(self) -> None: ...

    async def ask(self, calls: Sequence[Call]) -> list[Any]:
        """All replies, Refusals among them, in one round trip to each server. What was refused for a passing reason,
        such as a failover, was not done and is said again for a while. Raises Disconnected."""
        ...

    def nodes(self) -> Sequence[Node]:
        """The masters."""
        ...

    def node_of(self, key: str) -> Node: ...

    def together(self, keys: Iterable[str]) -> dict[int, list[str]]:
        """Keys that one command may name together, by a number that stays."""
        ...

    def look_again(self, node: Node, refusal: Refusal) -> None:
        """A server refused because of what it is now: find out who has its keys."""
        ...


async def call(servers: Servers, key: str, *words: Any) -> Any:
    """The reply to one command. Raises Refusal, Disconnected."""
    (reply,) = await servers.ask([(key, words)])
    if isinstance(reply, Refusal):
        raise reply
    return reply


def refused(url: str, key: str, command: Command, refusal: Refusal) -> ConnectError:
    """The error for a command that the server refused; for want of permission it says which."""
    said = str(refusal).removeprefix("NOPERM ").removeprefix("ERR ")
    if refusal.code != "NOPERM" and _NO_RIGHT.search(said) is None:
        return ConnectError(url, str(refusal))
    name = "|".join(str(word).lower() for word in command[: 2 if command[0] in _TWO_WORDS else 1])
    wants = f"the key {key!r}" if "one of the keys" in said else "+xgroup" if name == "eval" else f"+{name}"
    return AuthenticationError(url, f"{said} ({name}): give {wants} to this user with ACL SETUSER")


def passes(reply: Any) -> bool:
    """Whether this is a refusal that a little later will be none."""
    return isinstance(reply, Refusal) and reply.code in _PASSING


class OneServer:
    """A single server, the first that answers of those that replace each other, or what sentinels call the master."""

    def __init__(self, address: Address, login: Login, name: str, sentinel: Login | None = None) -> None:
        self._address = address
        self._hosts = list(address.hosts)
        self._login, self._name, self._sentinel = login, name, sentinel
        self._node = Node(self._find, self._dial)

    @property
    def available(self) -> bool:
        return self._node.available

    async def open(self) -> None:
        await self._node.open()

    async def close(self) -> None:
        await self._node.close()

    async def ask(self, calls: Sequence[Call]) -> list[Any]:
        node = self._node
        replies = await node.ask([command for _, command in calls])
        for tries in range(1, PATIENCE):
            again = [index for index, reply in enumerate(replies) if type(reply) is Refusal and passes(reply)]
            if not again:
                break
            self.look_again(node, replies[again[0]])
            await asyncio.sleep(_AWAIT.delay(tries))
            for index, reply in zip(again, await node.ask([calls[index][1] for index in again]), strict=True):
                replies[index] = reply
        return replies

    def nodes(self) -> Sequence[Node]:
        return (self._node,)

    def node_of(self, key: str) -> Node:
        return self._node

    def together(self, keys: Iterable[str]) -> dict[int, list[str]]:
        together = list(keys)
        return {0: together} if together else {}

    def look_again(self, node: Node, refusal: Refusal) -> None:
        if refusal.code == "READONLY" and (self._sentinel is not None or len(self._hosts) > 1):
            node.drop("it is no master any more")

    async def _dial(self, host: Host, name: str) -> Wire:
        return await dial(host, self._login, name)

    async def _find(self) -> Wire:
        return await (self._first() if self._sentinel is None else self._named_by_sentinels(self._sentinel))

    async def _first(self) -> Wire:
        """The first host that answers and is a master; a lone one may be what it wants."""
        failures: list[ConnectError] = []
        for host in self._hosts:
            try:
                wire = await self._dial(host, self._name)
                if len(self._hosts) == 1 or await _is_master(wire):
                    return wire
                await wire.close()
                failures.append(ConnectError(url_of(host), "it is a replica"))
            except AuthenticationError:
                raise
            except ConnectError as error:
                failures.append(error)
        raise _together(failures)

    async def _named_by_sentinels(self, login: Login) -> Wire:
        failures: list[ConnectError] = []
        for sentinel in list(self._hosts):
            try:
                master = await self._asked(sentinel, login)
                wire = await self._dial(master, self._name)
                if await _is_master(wire):
                    self._hosts.sort(key=lambda host: host != sentinel)  # this one knows: it is asked first next time
                    return wire
                await wire.close()
                failures.append(ConnectError(url_of(master), f"{url_of(sentinel)} calls it the master, but it is not"))
            except AuthenticationError:
                raise
            except ConnectError as error:
                failures.append(error)
        raise _together(failures)

    async def _asked(self, sentinel: Host, login: Login) -> Host:
        wire = await dial(sentinel, login, self._name)
        try:
            (found,) = await wire.ask([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._address.service)])
        except Disconnected as error:
            raise ConnectError(url_of(sentinel), str(error)) from error
        finally:
            await wire.close()
        if not isinstance(found, list):
            raise ConnectError(url_of(sentinel), f"it knows no master {self._address.service!r}")
        return found[0].decode(), int(found[1])


class Cluster:
    """The masters of a cluster, each with the slots it has. A key's slot is that of the whole name."""

    def __init__(self, address: Address, login: Login, name: str) -> None:
        self._seeds = address.hosts
        self._login, self._name = login, name
        self._nodes: dict[Host, Node] = {}
        self._slots: list[Node] = []
        self._stale = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        return bool(self._nodes) and all(node.available for node in self._nodes.values())

    async def open(self) -> None:
        await self._look()
        try:
            await asyncio.gather(*(self._opened(node) for node in self._nodes.values()))
        except BaseException:
            await self.close()
            raise
        self._follower = asyncio.create_task(self._follow(), name="headwater redis cluster")

    async def close(self) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        nodes, self._nodes = self._nodes, {}
        await asyncio.gather(*(node.close() for node in nodes.values()))

    async def ask(self, calls: Sequence[Call]) -> list[Any]:
        replies: list[Any] = [None] * len(calls)
        wanted = list(range(len(calls)))
        for tries in range(1, PATIENCE + 1):
            await self._round(calls, wanted, replies)
            wanted = [index for index in wanted if type(replies[index]) is Refusal]
            if wanted:
                await self._ask_elsewhere(calls, wanted, replies)
                wanted = [index for index in wanted if passes(replies[index])]
            if not wanted:
                break
            self._stale.set()
            await asyncio.sleep(_AWAIT.delay(tries))
        return replies

    async def _round(self, calls: Sequence[Call], wanted: Sequence[int], replies: list[Any]) -> None:
        """Ask each server for its part, all at once."""
        parts = defaultdict[Node, list[int]](list)
        for index in wanted:
            parts[self.node_of(calls[index][0])].append(index)

        async def part(node: Node, indexes: list[int]) -> None:
            try:
                found = await node.ask([calls[index][1] for index in indexes])
            except Closed:
                found = [Refusal("MOVED while it was waited for")] * len(indexes)
            for index, reply in zip(indexes, found, strict=True):
                replies[index] = reply

        if len(parts) == 1:
            await part(*next(iter(parts.items())))
        else:
            await asyncio.gather(*(part(node, indexes) for node, indexes in parts.items()))

    async def _ask_elsewhere(self, calls: Sequence[Call], wanted: Sequence[int], replies: list[Any]) -> None:
        """A slot that is moving: its keys that moved already are where ASK says."""
        for index in wanted:
            refusal = replies[index]
            node = self._nodes.get(_host_in(refusal)) if refusal.code == "ASK" else None
            if node is not None:
                replies[index] = (await node.ask([("ASKING",), calls[index][1]]))[1]

    def nodes(self) -> Sequence[Node]:
        return list(self._nodes.values())

    def node_of(self, key: str) -> Node:
        return self._slots[slot_of(key)]

    def together(self, keys: Iterable[str]) -> dict[int, list[str]]:
        found = defaultdict[int, list[str]](list)
        for key in keys:
            found[slot_of(key)].append(key)
        return found

    def look_again(self, node: Node, refusal: Refusal) -> None:
        self._stale.set()

    async def _dial(self, host: Host, name: str) -> Wire:
        return await dial(host, self._login, name)

    async def _opened(self, node: Node) -> None:
        await node.open()
        node.on_lost = self._stale.set

    async def _follow(self) -> None:
        """Look at the slots again whenever something moved, and while something is away."""
        while True:
            if self.available:
                await self._stale.wait()
            else:
                await asyncio.sleep(_LOOK_AGAIN)
            self._stale.clear()
            try:
                await self._look()
                for node in self.nodes():
                    await self._opened(node)
            except (ConnectError, Disconnected) as error:
                _log.debug("the cluster does not say who has its slots: %s", error)
            await asyncio.sleep(_LOOK_AGAIN / 10)

    async def _look(self) -> None:
        """Learn who has which slot. Raises ConnectError if nobody says."""
        known = [host for host, node in self._nodes.items() if node.available]
        failures: list[ConnectError] = []
        for host in (*known, *self._seeds):
            try:
                wire = await self._dial(host, self._name)
                try:
                    (found,) = await wire.ask([("CLUSTER", "SLOTS")])
                finally:
                    await wire.close()
            except AuthenticationError:
                raise
            except (ConnectError, Disconnected) as error:
                failures.append(error if isinstance(error, ConnectError) else ConnectError(url_of(host), str(error)))
                continue
            if isinstance(found, list) and sum(last - first + 1 for first, last, *_ in found) == SLOTS:
                await self._learn(found, host)
                return
            reason = str(found) if isinstance(found, Refusal) else "some of its slots have no master"
            failures.append(ConnectError(url_of(host), reason))
        raise _together(failures)

    async def _learn(self, found: list[Any], asked: Host) -> None:
        nodes: dict[Host, Node] = {}
        slots: list[Node] = []
        for first, last, master, *_ in sorted(found, key=lambda part: part[0]):
            host = (master[0].decode() if master[0] else asked[0]), master[1]
            node = nodes.get(host) or self._nodes.get(host) or self._node_at(host)
            nodes[host] = node
            slots += [node] * (last - first + 1)
        gone = [node for host, node in self._nodes.items() if host not in nodes]
        self._nodes, self._slots = nodes, slots
        await asyncio.gather(*(node.close() for node in gone))

    def _node_at(self, host: Host) -> Node:
        return Node(lambda: self._dial(host, self._name), self._dial)


@lru_cache(maxsize=65536)
def slot_of(key: str) -> int:
    """The slot of a key: of the part in braces, where there is one."""
    raw = key.encode()
    opens = raw.find(b"{")
    closes = raw.find(b"}", opens + 1)
    if opens >= 0 and closes > opens + 1:
        raw = raw[opens + 1 : closes]
    return binascii.crc_hqx(raw, 0) % SLOTS


def _host_in(refusal: Refusal) -> Host:
    """The server that `ASK slot host:port` names."""
    host, _, port = str(refusal).rpartition(" ")[2].rpartition(":")
    return host, int(port)


async def _is_master(wire: Wire) -> bool:
    try:
        (role,) = await wire.ask([("ROLE",)])
    except Disconnected as error:
        raise ConnectError(url_of(wire.host), str(error)) from error
    return isinstance(role, Refusal) or role[0] == b"master"  # who may not ask will see


def _together(failures: Sequence[ConnectError]) -> ConnectError:
    """What is raised when none of several could be reached."""
    if len(failures) == 1:
        return failures[0]
    return ConnectError(
        ", ".join(failure.url for failure in failures),
        "; ".join(dict.fromkeys(failure.reason for failure in failures)) or "no server was named",
    )
