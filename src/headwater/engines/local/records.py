"""Between messages and the columns of the log: headers as one blob, chunks as messages."""

from __future__ import annotations

from itertools import repeat
from typing import Any, Final

import msgspec

from ...log.frames import Chunk
from ...message import NO_HEADERS, Headers, HeadersLike, Message

_REMEMBERED: Final = 4096  # distinct header blobs; most messages repeat theirs

_Pairs = list[tuple[str, bytes]]
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Pairs).decode


class _Decoded(dict[bytes, Headers]):
    """Headers by their blob: a bounded memory, emptied when full."""

    def __missing__(self, blob: bytes) -> Headers:
        if len(self) >= _REMEMBERED:
            self.clear()
            self[b""] = NO_HEADERS
        headers = self[blob] = Headers(_decode(blob))
        return headers


_decoded: Final = _Decoded({b"": NO_HEADERS})


def encode_headers(headers: HeadersLike) -> bytes:
    """Headers as they are stored; b"" for none."""
    if not headers:
        return b""
    return _encode((headers if isinstance(headers, Headers) else Headers(headers)).pairs)


def decode_headers(blob: bytes) -> Headers:
    """Headers from how they are stored. The same blob gives the same object, most of the time."""
    return _decoded[blob]


def to_messages(
    topic: str, partition: int, chunk: Chunk, group: str | None = None, attempt: int = 1, token: Any = None
) -> list[Message]:
    """The records of a chunk as messages."""
    # All in C: this runs once for each message that is ever received.
    return list(
        map(
            Message,
            repeat(topic),
            chunk.values,
            chunk.keys,
            map(_decoded.__getitem__, chunk.headers),
            repeat(partition),
            chunk.offsets,
            repeat(chunk.time),
            repeat(group),
            repeat(attempt),
            repeat(token),
        )
    )


def slice_of(chunk: Chunk, first: int, end: int) -> Chunk:
    """The part of a chunk from offset `first` up to `end`."""
    low, high = max(first - chunk.base, 0), end - chunk.base
    if low == 0 and high >= len(chunk.values):
        return chunk
    return Chunk(chunk.base + low, chunk.time, chunk.keys[low:high], chunk.headers[low:high], chunk.values[low:high])
