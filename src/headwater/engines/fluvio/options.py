"""What a user may say to Fluvio: of a subscriber or a stream, and of a topic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from ...errors import ConfigurationError
from .apis import SmartModule


class Fluvio(msgspec.Struct, frozen=True, kw_only=True):
    """Options for Fluvio, in `options=[Fluvio(...)]` of a subscriber, a stream or a topic.

    Attributes:
        smartmodule: of a subscriber or a stream: the name of a SmartModule in the cluster that records pass through
            there before they travel.
        params: of that SmartModule.
        from_beginning: of a stream, or a group that begins: on each partition so many messages after the first one that
            is kept, instead of at `start`.
        from_end: the same, so many messages before what comes next.
        replication: of a topic: how many SPUs keep it.
        segment_size: of a topic, bytes: of the files it is kept in, at least 1024. What expires does so a file at once.
        compression: of a topic: the only one that is accepted there; "any" by default.
    """

    smartmodule: str | None = None
    params: Mapping[str, str] = {}
    from_beginning: int | None = None
    from_end: int | None = None
    replication: int | None = None
    segment_size: int | None = None
    compression: Literal["any", "none", "gzip", "snappy", "lz4", "zstd"] | None = None

    def __post_init__(self) -> None:
        if self.from_beginning is not None and self.from_end is not None:
            raise ConfigurationError("Fluvio(from_beginning=..., from_end=...): give one of them")
        if min(self.from_beginning or 0, self.from_end or 0) < 0:
            raise ConfigurationError("Fluvio(from_beginning=) and from_end= count messages: give 0 or more")

    @property
    def modules(self) -> tuple[SmartModule, ...]:
        """What records pass through."""
        return () if self.smartmodule is None else (SmartModule(self.smartmodule, self.params),)


NOTHING = Fluvio()
