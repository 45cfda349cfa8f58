"""MessagePack through msgspec."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec

from .json import from_model, to_model


class MsgpackCodec:
    """`application/msgpack`: smaller and faster than JSON, for the same values."""

    content_type: Final = "application/msgpack"

    def encode(self, value: Any) -> bytes:
        return _ENCODER.encode(value)

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        return _decoder(kind)


@lru_cache(maxsize=1024)
def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=to_model).decode


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=from_model)
MSGPACK: Final = MsgpackCodec()
