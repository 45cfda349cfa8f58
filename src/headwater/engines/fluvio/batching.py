"""Records on their way into a batch, and the partition that a key belongs to."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from google_crc32c import value as crc32c

from .records import HEAD, compress
from .wire import u32, varint

MAX_BATCH: Final = 2_097_152  # bytes that a server takes at once
LONGEST_RECORD_HEAD: Final = 32  # bytes of a record besides its key and its value

_CHECKED: Final = struct.Struct(">hiqqqhi")  # from the attributes on: what the checksum covers
_START: Final = struct.Struct(">qiibI")


def write_record(number: int, key: bytes | None, value: bytes) -> bytes:
    """A record of a batch, of the batch's time."""
    if key is None:
        body = b"\0\0%b\0%b%b\0" % (_length(number), _length(len(value)), value)
    else:
        body = b"\0\0%b\1%b%b%b%b\0" % (_length(number), _length(len(key)), key, _length(len(value)), value)
    return _length(len(body)) + body


_SHORT: Final = [varint(number) for number in range(4096)]


def _length(number: int) -> bytes:
    """As `varint`, for numbers that are mostly small."""
    return _SHORT[number] if number < 4096 else varint(number)


def write_batch(records: Sequence[bytes], time: int, codec: int) -> bytes:
    """A batch of records that were written for it, of a time in milliseconds; the server gives it its offset."""
    body = compress(u32(len(records)) + b"".join(records), codec)
    checked = _CHECKED.pack(codec, len(records) - 1, time, time, -1, -1, -1) + body
    return _START.pack(0, HEAD - 12 + len(body), -1, 2, crc32c(checked)) + checked


# --- keys ---------------------------------------------------------------------------------------------

_MASK: Final = (1 << 64) - 1


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Where Fluvio's own producers put this key: its SipHash-2-4 (of the length and the bytes, without a secret)."""
    data = len(key).to_bytes(8, "little") + key
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573
    whole = len(data) - len(data) % 8
    tail = data[whole:].ljust(7, b"\0") + bytes((len(data) & 0xFF,))
    for word in (*struct.unpack(f"<{whole // 8}Q", data[:whole]), int.from_bytes(tail, "little")):
        v0, v1, v2, v3 = _rounds(2, v0, v1, v2, v3 ^ word)
        v0 ^= word
    v0, v1, v2, v3 = _rounds(4, v0, v1, v2 ^ 0xFF, v3)
    return (v0 ^ v1 ^ v2 ^ v3) % partitions


def _rounds(count: int, v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v1 = _rotated(v1, 13) ^ v0
        v0 = _rotated(v0, 32)
        v2 = (v2 + v3) & _MASK
        v3 = _rotated(v3, 16) ^ v2
        v0 = (v0 + v3) & _MASK
        v3 = _rotated(v3, 21) ^ v0
        v2 = (v2 + v1) & _MASK
        v1 = _rotated(v1, 17) ^ v2
        v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


def _rotated(word: int, by: int) -> int:
    return (word << by | word >> (64 - by)) & _MASK
