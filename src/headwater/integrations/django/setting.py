"""The broker that the Django setting HEADWATER describes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from django.conf import settings
from django.core.signals import setting_changed
from django.dispatch import receiver

from ...app import App
from ...errors import ConfigurationError
from ...sync import SyncBroker
from ..settings import face_of

SETTING: Final = "HEADWATER"
_reading = threading.Lock()
_face: Callable[[], SyncBroker] | None = None


def broker() -> SyncBroker:
    """The broker for synchronous code that `settings.HEADWATER` describes, one for the process.

    `HEADWATER = {"URL": "nats://localhost:4222"}`, with the options of SyncBroker beside it (`"MAX_IN_FLIGHT": 1000`);
    or `{"APP": "shop.events:app"}`: the first broker of that Headwater app. Raises ConfigurationError.
    """
    global _face
    if _face is None:
        with _reading:
            if _face is None:
                _face = read_settings()
    return _face()


def read_settings() -> Callable[[], SyncBroker]:
    """What gives the face. Raises ConfigurationError for what is missing, or wrong, in the setting."""
    given = getattr(settings, SETTING, None)
    if not isinstance(given, Mapping) or ("URL" in given) == ("APP" in given):
        raise ConfigurationError(f'set {SETTING} = {{"URL": "nats://localhost:4222"}}, or {{"APP": "module:app"}}')
    options = {name.lower(): value for name, value in given.items() if name not in ("URL", "APP")}
    where = given["URL"] if "URL" in given else _app(given["APP"])
    return face_of(where, options, lambda name: f'{SETTING}["{name.upper()}"]')


def _app(path: str) -> App:
    module, _, name = path.partition(":")
    try:
        found: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f'{SETTING}["APP"] = {path!r}: {error}') from error
    if not isinstance(found, App):
        raise ConfigurationError(f'{SETTING}["APP"] = {path!r} is no Headwater App')
    return found


@receiver(setting_changed)
def _settings_changed(*, setting: str, **_: object) -> None:
    global _face
    if setting == SETTING:  # a test overrides it
        _face = None
