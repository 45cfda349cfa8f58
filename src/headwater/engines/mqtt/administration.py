"""What an MQTT server says about itself, under `$SYS`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from ...admin import ClusterInfo, Health, NodeInfo
from ...engine import Change, Source
from ...errors import AuthenticationError, ConnectError, NotConnectedError, NotSupportedError
from .options import Mqtt

if TYPE_CHECKING:
    from .engine import MqttEngine

_STATUS: Final = "$SYS/broker/"
_VERSION: Final = "version"
_TOLD: Final = (_VERSION, "uptime", "clients/connected", "clients/total", "subscriptions/count", "messages/stored")
_DROPPED: Final = "load/publish/dropped/1min"  # messages a minute: a count since the start would accuse for ever
_BRIDGES: Final = "connection/{name:path}"  # the state of each: their names may have dots
_WAIT: Final = 1.0  # seconds: what is retained comes at once, or there is none ...
_QUIET: Final = 0.1  # ... after what came before it
_LONGEST: Final = 3.0  # seconds, while a server goes on to say something


class MqttAdmin:
    """The administration of an MQTT server, which knows no topics and no groups that could be listed."""

    has_ids = False
    operations = frozenset(("describe_cluster", "health"))

    def __init__(self, engine: MqttEngine) -> None:
        self._engine = engine

    async def describe_cluster(self) -> ClusterInfo:
        """Raises ConnectError. Of a server that says nothing of itself, or not to us, only the address is known."""
        await self._engine.check()
        addresses = [f"{host}:{port}" for host, port in self._engine.settings.servers]
        nodes = tuple(NodeInfo(address, address) for address in addresses)
        said = await self._said(*_TOLD)
        version = said.pop(_VERSION, "")
        return ClusterInfo(self._engine.name, version, nodes, {_STATUS + name: text for name, text in said.items()})

    async def health(self) -> Health:
        """Whether it answers, is connected to the servers it bridges to, and drops nothing."""
        try:
            await self._engine.check()
            said = await self._said(_DROPPED, _BRIDGES)
        except (ConnectError, NotConnectedError) as error:
            return Health((str(error),))
        dropped = said.pop(_DROPPED, "0")
        states = {name.removesuffix("/state"): state for name, state in said.items() if name.endswith("/state")}
        problems = [f"the bridge {name.partition('/')[2]} is down" for name in sorted(states) if states[name] == "0"]
        if float(dropped) > 0:
            problems.append(f"it drops messages for clients that are slow or away: {dropped} a minute")
        return Health(tuple(problems))

    async def _said(self, *names: str) -> dict[str, str]:
        """What is retained under these names; nothing where it does not say, or not to us. Raises ConnectError."""
        topics = tuple(_STATUS + name for name in names)
        source = Source(topics=topics, options=(Mqtt(qos=0, retained=True),))
        found = dict[str, str]()
        try:
            async with self._engine.subscribe(source, _nothing_moves) as place:
                end, wait = asyncio.get_running_loop().time() + _LONGEST, _WAIT
                while asyncio.get_running_loop().time() < end and (messages := await place.receive(100, wait)):
                    for message in messages:
                        found[message.topic.removeprefix(_STATUS)] = message.body.decode(errors="replace")
                    wait = _QUIET
        except (AuthenticationError, NotSupportedError):
            return {}
        return found


async def _nothing_moves(_change: Change) -> None:
    """It has no partitions."""
