"""What an MQTT server says about itself, under `$SYS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...admin import ClusterInfo, Health, NodeInfo
from ...engine import Change, Source
from ...errors import ConnectError, NotConnectedError, NotSupportedError
from .options import Mqtt

if TYPE_CHECKING:
    from .engine import MqttEngine

_VERSION: Final = Source(topics=("$SYS/broker/version",), options=(Mqtt(qos=0, retained=True),))
_WAIT: Final = 1.0  # seconds: the version is retained, so it comes at once, or there is none


class MqttAdmin:
    """The administration of an MQTT server, which knows no topics and no groups that could be listed."""

    has_ids = False
    operations = frozenset(("describe_cluster", "health"))

    def __init__(self, engine: MqttEngine) -> None:
        self._engine = engine

    async def describe_cluster(self) -> ClusterInfo:
        addresses = [f"{host}:{port}" for host, port in self._engine.settings.servers]
        nodes = tuple(NodeInfo(address, address) for address in addresses)
        return ClusterInfo(self._engine.name, await self._version(), nodes)

    async def health(self) -> Health:
        try:
            await self._engine.check()
        except (ConnectError, NotConnectedError) as error:
            return Health((str(error),))
        return Health()

    async def _version(self) -> str:
        """What it calls itself; nothing where it does not say, or not to us."""
        try:
            async with self._engine.subscribe(_VERSION, _nothing_moves) as place:
                messages = await place.receive(1, _WAIT)
        except (ConnectError, NotSupportedError):
            return ""
        return messages[0].body.decode(errors="replace") if messages else ""


async def _nothing_moves(_change: Change) -> None:
    """It has no partitions."""
