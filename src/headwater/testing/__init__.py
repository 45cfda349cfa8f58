"""Testing without a server: the app, on memory, with a clock that a test moves.

Imported when first asked for: the pytest plugin in here is loaded by every pytest run, whatever it tests.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .app import SyncTestApp as SyncTestApp
    from .app import TestApp as TestApp
    from .clock import VirtualClock as VirtualClock

_HOME_OF = {"SyncTestApp": "app", "TestApp": "app", "VirtualClock": "clock"}

__all__ = list(_HOME_OF)


def __getattr__(name: str) -> Any:
    module = _HOME_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
    return value
