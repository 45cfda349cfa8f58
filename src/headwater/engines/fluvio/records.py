"""Batches of records, as they travel and are stored."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from ...errors import DecodeError, MissingExtraError
from .wire import Reader

HEAD: Final = 57  # bytes of a batch before its records, which may be compressed ...
COUNT: Final = 4  # ... and begin with their number

_HEAD: Final = struct.Struct(">qiibIhiqqqhi")
_HAS_SCHEMA: Final = 0x10
_CODEC: Final = 0x07

CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}


class Record(NamedTuple):
    """One record: milliseconds since the epoch, or -1 where its producer told no time."""

    offset: int
    time: int
    key: bytes | None
    value: bytes


# --- read ---------------------------------------------------------------------------------------------


def read_batches(data: bytes) -> Iterator[tuple[int, list[Record]]]:
    """The whole batches of what a server sent: the offset after each, and its records. A torn last one is left out.

    Raises DecodeError for one that is damaged, MissingExtraError for a compression.
    """
    at, end = 0, len(data)
    while at + HEAD <= end:
        base, length, _, _, _, attributes, last, first_time, _, _, _, _ = _HEAD.unpack_from(data, at)
        if length < HEAD - 12:
            raise DecodeError(f"a batch of Fluvio at offset {base} is damaged: it has a length of {length}")
        after = at + 12 + length
        if after > end:
            return
        begin = at + HEAD + (4 if attributes & _HAS_SCHEMA else 0)
        codec = attributes & _CODEC
        raw = data[begin:after]
        yield base + last + 1, _read_records(_uncompress(raw, codec, base) if codec else raw, base, first_time)
        at = after


def _read_records(data: bytes, base: int, first_time: int) -> list[Record]:
    found: list[Record] = []
    reader = Reader(data)
    varint, end = reader.varint, len(data)
    has_time = first_time > 0
    try:
        count = int.from_bytes(reader.raw(COUNT))
        while reader.at < end:
            length = varint()
            after = length + reader.at
            if length < 1 or after > end:
                raise IndexError(f"a record of {length} bytes")
            reader.at += 1  # attributes
            delta, offset = varint(), base + varint()
            reader.at += 1
            key = reader.raw(varint()) if data[reader.at - 1] else None
            value = reader.raw(varint())
            reader.at = after
            found.append(Record(offset, first_time + delta if has_time else -1, key, value))
        if len(found) != count:
            raise IndexError(f"{len(found)} of {count} records")
    except IndexError as error:
        raise DecodeError(f"a batch of Fluvio at offset {base} is damaged: {error}") from error
    return found


# --- compressed ---------------------------------------------------------------------------------------


def compress(raw: bytes, codec: int) -> bytes:
    """Raises MissingExtraError."""
    return raw if not codec else _codec(codec)[0](raw)


def _uncompress(raw: bytes, codec: int, base: int) -> bytes:
    try:
        return _codec(codec)[1](raw)
    except (MissingExtraError, DecodeError):
        raise
    except Exception as error:  # each kind has errors of its own
        raise DecodeError(f"a batch of Fluvio at offset {base} cannot be decompressed: {error}") from error


@lru_cache
def _codec(codec: int) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """How to compress and how to undo it. Raises MissingExtraError."""
    if codec == CODECS["gzip"]:
        return gzip.compress, gzip.decompress
    try:
        import cramjam
    except ModuleNotFoundError as error:
        raise MissingExtraError("cramjam", "fluvio") from error
    kinds = {CODECS["snappy"]: cramjam.snappy, CODECS["lz4"]: cramjam.lz4, CODECS["zstd"]: cramjam.zstd}
    if codec not in kinds:
        raise DecodeError(f"a batch of Fluvio is compressed in a way ({codec}) that is not known here")
    kind = kinds[codec]
    return lambda raw: bytes(kind.compress(raw)), lambda raw: bytes(kind.decompress(raw))
