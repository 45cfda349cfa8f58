"""What a topic, a publisher or a message may ask of Redis in particular."""

from __future__ import annotations

import msgspec


class Redis(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one topic, publisher or message on Redis; other engines ignore them.

    `maxlen`: about how many messages a stream keeps, the oldest go first.
    """

    maxlen: int | None = None
