"""What groups know about the store they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

from ...log import control
from ...log.store import Store


def this_boot() -> int:
    """A number that changes when the machine restarts, as cursors note it."""
    return int.from_bytes(control.boot_id()[:5], "little")


class StoreCatalogue:
    """The store's topics as `log.groups` wants to see them."""

    def __init__(self, store: Store, *, durable: bool) -> None:
        """With `durable`, a transaction counts once it is on disk."""
        self._store, self._durable = store, durable
        self.boot = this_boot()

    def streams(self) -> Mapping[str, Sequence[int]]:
        return {name: topic.streams for name, topic in self._store.topics().items()}

    def earliest(self, stream: int) -> int:
        return self._store.earliest(stream)

    def fence(self) -> AbstractContextManager[object]:
        return self._store.fence()

    def harden(self) -> tuple[int, int]:
        number = self._store.number
        if self._durable:
            self._store.sync(self._store.end)
        return number, self.boot

    @property
    def version(self) -> int:
        return self._store.catalog_generation
