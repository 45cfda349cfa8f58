"""Bodies that are what they are: bytes, and text in UTF-8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final


class RawCodec:
    """`application/octet-stream`: bytes untouched."""

    content_type: Final = "application/octet-stream"

    def encode(self, value: Any) -> bytes:
        return value if value.__class__ is bytes else bytes(memoryview(value))

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        return _same


class TextCodec:
    """`text/plain`: a str in UTF-8."""

    content_type: Final = "text/plain"

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise TypeError("the text codec writes str only")
        return value.encode()

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        return bytes.decode


def _same(body: bytes) -> bytes:
    return body


RAW: Final = RawCodec()
TEXT: Final = TextCodec()
