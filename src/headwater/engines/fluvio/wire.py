"""Fluvio's protocol: how its values are written and read, and what its servers refuse with."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

_U8, _I16, _U16, _I32, _U32, _I64, _U64 = (struct.Struct(">" + code) for code in "BhHiIqQ")

# --- written ------------------------------------------------------------------------------------------

u8, i16, u16, i32, u32, i64 = (kind.pack for kind in (_U8, _I16, _U16, _I32, _U32, _I64))


def boolean(value: bool) -> bytes:
    return b"\1" if value else b"\0"


def string(text: str) -> bytes:
    """Text, with its length before it. Raises ValueError for more than 65,535 bytes."""
    raw = text.encode()
    if len(raw) > 0xFFFF:
        raise ValueError(f"a text of {len(raw)} bytes, at most 65535 can be written")
    return _U16.pack(len(raw)) + raw


def option(value: T | None, write: Callable[[T], bytes]) -> bytes:
    """A value that may be missing."""
    return b"\0" if value is None else b"\1" + write(value)


def many(values: Sequence[T], write: Callable[[T], bytes]) -> bytes:
    """Several values, with their number before them."""
    return _U32.pack(len(values)) + b"".join(map(write, values))


def mapping(values: Mapping[str, str]) -> bytes:
    """Text by text, in order."""
    pairs = b"".join(string(name) + string(value) for name, value in sorted(values.items()))
    return _U16.pack(len(values)) + pairs


def sized(raw: bytes) -> bytes:
    """Bytes, with their length before them."""
    return _U32.pack(len(raw)) + raw


def varint(number: int) -> bytes:
    """A number in as few bytes as it needs, small ones of either sign in one."""
    rest = (number << 1) ^ (number >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


# --- read ---------------------------------------------------------------------------------------------


class Reader:
    """Reads values one after the other. Raises struct.error or IndexError where they end too soon."""

    __slots__ = ("at", "data", "version")

    def __init__(self, data: bytes, version: int = 0) -> None:
        self.data, self.version = data, version
        self.at = 0

    def _number(self, kind: struct.Struct) -> int:
        (number,) = kind.unpack_from(self.data, self.at)
        self.at += kind.size
        return number  # type: ignore[no-any-return]  # each kind has one

    def u8(self) -> int:
        return self._number(_U8)

    def i16(self) -> int:
        return self._number(_I16)

    def u16(self) -> int:
        return self._number(_U16)

    def i32(self) -> int:
        return self._number(_I32)

    def u32(self) -> int:
        return self._number(_U32)

    def i64(self) -> int:
        return self._number(_I64)

    def u64(self) -> int:
        return self._number(_U64)

    def boolean(self) -> bool:
        return self.u8() != 0

    def varint(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return (number >> 1) ^ -(number & 1)
            shift += 7

    def raw(self, length: int) -> bytes:
        if self.at + length > len(self.data):
            raise IndexError(f"{length} bytes announced, {len(self.data) - self.at} left")
        self.at += length
        return self.data[self.at - length : self.at]

    def string(self) -> str:
        return self.raw(self.u16()).decode()

    def option(self, read: Callable[[], T]) -> T | None:
        return read() if self.boolean() else None

    def many(self, read: Callable[[], T]) -> list[T]:
        return [read() for _ in range(self.u32())]

    def mapping(self) -> dict[str, str]:
        return {self.string(): self.string() for _ in range(self.u16())}

    def fault(self) -> Fault | None:
        """The error code that most answers carry; None if there is no error."""
        code = self.i16()
        if not code:
            return None
        name, fields = _FAULTS.get(code, (f"error {code}", ()))
        return Fault(code, name, tuple(read(self) for read in fields))


# --- refused ------------------------------------------------------------------------------------------


class Fault(Exception):
    """A server's error code, in its own words, with what it says besides."""

    def __init__(self, code: int, name: str, details: Iterable[Any] = (), message: str | None = None) -> None:
        self.code, self.details = code, tuple(details)
        said = message or ", ".join(str(detail) for detail in self.details if detail is not None)
        super().__init__(f"{name}: {said}" if said else name)


OUT_OF_RANGE: Final = 1
TIMED_OUT: Final = 7
TOO_LARGE: Final = 10
NO_PERMISSION: Final = 13
EVICTED: Final = 71
TOPIC_NOT_FOUND: Final = 2001
TOPIC_EXISTS: Final = 2002
TOPIC_DELETED: Final = 2007
MODULE_NOT_FOUND: Final = 6001

PASSING: Final = frozenset((6, 1002, 1003, 2003, 2005, 3000, 3001))
"""Codes of what is only so until the cluster has settled down: nothing was done."""


def _record_data(reader: Reader) -> bytes:
    return reader.raw(reader.varint())


def _runtime_error(reader: Reader) -> str:
    hint, offset, kind = reader.string(), reader.i64(), reader.u8()
    reader.option(lambda: _record_data(reader))
    _record_data(reader)
    return f"{hint} (at offset {offset}, kind {kind})"


_S, _L, _Q = Reader.string, Reader.i64, Reader.u64
_FAULTS: Final[Mapping[int, tuple[str, tuple[Callable[[Reader], Any], ...]]]] = {
    -1: ("unknown server error", ()),
    2: ("error", (_S,)),
    1: ("offset out of range", ()),
    6: ("not the leader of this partition", ()),
    7: ("request timed out", (_Q, Reader.u8)),
    10: ("message too large", ()),
    13: ("permission denied", ()),
    56: ("storage error", ()),
    60: ("invalid create request", ()),
    61: ("invalid delete request", ()),
    71: ("offset evicted", (_L, _L)),
    72: ("partition full", (_S, Reader.u32)),
    73: ("partition short-circuited", ()),
    1000: ("SPU error", ()),
    1001: ("SPU registration failed", ()),
    1002: ("SPU offline", ()),
    1003: ("SPU not found", ()),
    1004: ("SPU exists already", ()),
    2000: ("topic error", ()),
    2001: ("topic not found", ()),
    2002: ("topic exists already", ()),
    2003: ("topic is not ready yet", ()),
    2004: ("invalid configuration of a topic", ()),
    2005: ("topic is not provisioned yet", ()),
    2006: ("invalid topic name", ()),
    2007: ("topic was deleted", ()),
    2008: ("invalid replica type", ()),
    3000: ("partition is not ready yet", ()),
    3001: ("not the leader of this partition", ()),
    3002: ("no such stream", ()),
    3003: ("offset could not be flushed", (_S,)),
    3004: ("offset management is disabled", ()),
    6000: ("SmartModule error", ()),
    6001: ("no such SmartModule", (_S,)),
    6002: ("invalid SmartModule", (_S, lambda reader: reader.option(reader.string))),
    6003: ("invalid exports of a SmartModule", (_S, _S)),
    6004: ("a SmartModule failed", (_runtime_error,)),
    6005: ("a SmartModule cannot start", (_S,)),
    6006: ("a SmartModule cannot start", (_S,)),
    6007: ("a SmartModule cannot look back", (_S,)),
    6008: ("a SmartModule wants too much memory", (_Q, _Q)),
    9000: ("compression error", ()),
    10000: ("deduplication is not loaded", ()),
    10001: ("invalid name for deduplication", (_S,)),
    12001: ("it belongs to the system", (_S, _S)),
    12002: ("it belongs to the system", (_S, _S)),
}
