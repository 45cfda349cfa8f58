"""SmartModules: WebAssembly in the cluster that streams pass through, see `Fluvio(smartmodule=...)`."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Final

from ...broker import Broker
from ...errors import ConfigurationError, NotSupportedError
from . import apis
from .apis import Module
from .cluster import Cluster
from .engine import FluvioEngine
from .wire import MODULE_NOT_FOUND, Fault

_WASM: Final = b"\0asm"
_TIMEOUT: Final = 10.0  # seconds


class SmartModules:
    """The SmartModules of a connected broker's cluster. Raises NotSupportedError for a broker of another engine."""

    def __init__(self, broker: Broker) -> None:
        if not isinstance(broker.engine, FluvioEngine):
            raise NotSupportedError(broker.engine.name, "SmartModules", "they are Fluvio's")
        self._engine = broker.engine

    @property
    def _cluster(self) -> Cluster:
        return self._engine.cluster

    async def list(self) -> Sequence[Module]:
        """All that are loaded, by name."""
        return sorted(await self._cluster.listed(apis.MODULE, apis.read_module))

    async def create(self, name: str, wasm: bytes) -> None:
        """Load one. Raises ConfigurationError for what is no WebAssembly, or what the cluster refuses."""
        if not wasm.startswith(_WASM):
            raise ConfigurationError(f"SmartModule {name!r}: this is no WebAssembly, which begins with 00 61 73 6d")
        packed = gzip.compress(wasm)  # as SPUs want it
        try:
            await self._cluster.control(
                apis.CREATE,
                lambda _: apis.create(apis.MODULE, name, apis.module_spec(packed), _TIMEOUT),
                apis.read_status,
            )
        except Fault as fault:
            raise ConfigurationError(f"Fluvio does not load SmartModule {name!r}: {fault}") from fault

    async def delete(self, name: str) -> None:
        """Raises LookupError if there is none of this name."""
        try:
            await self._cluster.control(apis.DELETE, lambda _: apis.delete(apis.MODULE, name), apis.read_status)
        except Fault as fault:
            if fault.code == MODULE_NOT_FOUND:
                raise LookupError(f"there is no SmartModule {name!r}") from fault
            raise self._cluster.refused(fault) from fault
