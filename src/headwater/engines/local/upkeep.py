"""What has to be done every now and then: cursors to the disk, expired messages away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from ...errors import StoreError
from ...log.cursors import CursorPage
from ...log.groups import Group, group_names
from ...log.locks import ByteLocks
from ...log.store import Store
from .catalogue import StoreCatalogue
from .consuming import GroupSubscription

SYNC_EVERY: Final = 1.0  # seconds; what was acknowledged since may come again after a power cut, not after a kill
_ELECTED: Final = 0  # the byte whose holder cleans


class Upkeep:
    """The work behind one engine. Cursors are everybody's own; cleaning is done by one process per store."""

    def __init__(
        self,
        store: Store,
        catalogue: StoreCatalogue,
        subscriptions: Callable[[], Iterable[GroupSubscription]],
        clean_interval: float,
    ) -> None:
        self.problem: str | None = None  # why the last cleaning failed
        self._store, self._catalogue, self._subscriptions = store, catalogue, subscriptions
        self._clean_interval = clean_interval
        self._locks = ByteLocks(store.path / "upkeep", create=True)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        next_clean = loop.time() + self._clean_interval
        while True:
            await asyncio.sleep(min(SYNC_EVERY, max(0.01, next_clean - loop.time())))
            touched = [subscription for subscription in self._subscriptions() if subscription.touched]
            if touched:
                await asyncio.to_thread(sync_cursors, touched)
            if loop.time() >= next_clean:
                next_clean = loop.time() + self._clean_interval
                if self._locks.take(_ELECTED):
                    await asyncio.to_thread(self.clean)

    def clean(self) -> None:
        """Free what expired, once. Blocks."""
        try:
            self._store.clean()
            self._note_applied()
            self.problem = None
        except StoreError as error:  # told by `health`; the next round tries again
            self.problem = str(error)

    def _note_applied(self) -> None:
        """Have recovery look no further back than it must for transactions that moved cursors."""
        position = self._store.visible_end
        for name in group_names(self._store.path):
            group = Group(self._store.path, name, self._catalogue)
            try:
                pages = [group.page(*at, place) for at, place in group.load().all_places()]
                if not all(_is_settled(page, self._catalogue.boot) for page in pages):
                    return
                group.sync()
            finally:
                group.close()
        self._store.note_applied(position)

    def close(self) -> None:
        """Let another process clean. Idempotent."""
        self._locks.close()


def _is_settled(page: CursorPage, boot: int) -> bool:
    """Whether what a transaction promised is in the watermark by now; its owner is about to see to that."""
    staged = page.staged(boot)
    return staged is None or page.watermark >= staged[0]


def sync_cursors(subscriptions: Iterable[GroupSubscription]) -> None:
    """Bring what was acknowledged to the disk. Blocks."""
    for subscription in subscriptions:
        subscription.touched = False
        if subscription.member is not None:
            subscription.member.group.sync()
