"""JSON through msgspec, and through pydantic for pydantic's own models."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import msgspec


class JsonCodec:
    """`application/json`: the default for everything that is neither bytes nor str."""

    content_type: Final = "application/json"

    def encode(self, value: Any) -> bytes:
        serializer = getattr(value, "__pydantic_serializer__", None)
        if serializer is not None:
            return bytes(serializer.to_json(value))
        return _ENCODER.encode(value)

    def decoder(self, kind: Any) -> Callable[[bytes], Any]:
        return _decoder(kind)


@lru_cache(maxsize=1024)
def _decoder(kind: Any) -> Callable[[bytes], Any]:
    validator = getattr(kind, "__pydantic_validator__", None)
    if validator is not None:
        return validator.validate_json  # type: ignore[no-any-return]  # pydantic's core has no types here
    return msgspec.json.Decoder(kind, dec_hook=to_model).decode


def from_model(value: Any) -> Any:
    """msgspec's hook for values it does not know: a pydantic model inside another value."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise NotImplementedError(f"{type(value).__qualname__} has no JSON form")
    return dump(mode="json")


def to_model(kind: type, value: Any) -> Any:
    """msgspec's hook for types it does not know: a pydantic model inside another type."""
    validator = getattr(kind, "__pydantic_validator__", None)
    if validator is None:
        raise NotImplementedError(f"{kind.__qualname__} cannot be read from JSON")
    return validator.validate_python(value)


_ENCODER: Final = msgspec.json.Encoder(enc_hook=from_model)
JSON: Final = JsonCodec()
