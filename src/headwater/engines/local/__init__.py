"""The engine over the embedded log: `local://DIR`."""

from .engine import LocalEngine

__all__ = ["LocalEngine"]
