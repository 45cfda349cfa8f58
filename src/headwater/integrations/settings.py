"""A face as the settings of somebody else's framework describe it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..app import App
from ..broker import Broker, BrokerOptions
from ..errors import ConfigurationError
from ..sync import SyncBroker

_OF_FACE: Final = inspect.signature(SyncBroker).parameters.keys() - {"broker", "options"}
_KNOWN: Final = frozenset({*_OF_FACE, *BrokerOptions.__annotations__})


def face_of(
    broker: App | Broker | str, options: Mapping[str, Any], shown: Callable[[str], str]
) -> Callable[[], SyncBroker]:
    """Gives the face when it is called, as an app may get its broker later. Nothing is connected.

    Raises ConfigurationError for an option there is not; `shown` is what the user calls it.
    """
    for name in options:
        if name not in _KNOWN:
            known = ", ".join(sorted(map(shown, _KNOWN)))
            raise ConfigurationError(f"there is no setting {shown(name)}; there are {known}")
    if isinstance(broker, App):
        if options:
            raise ConfigurationError(f"{broker} is an app, and takes no {', '.join(map(shown, options))}")
        return lambda: broker.sync
    face = SyncBroker(broker, **options)
    return lambda: face
