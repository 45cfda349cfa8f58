"""Flask: an extension that gives each Flask app a broker for synchronous code, as its config says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, Final, ParamSpec, TypeVar

from ..app import App
from ..broker import Broker
from ..errors import ConfigurationError, MissingExtraError
from ..sync import Stats, SyncBroker
from .settings import face_of

try:
    from flask import Flask, current_app, has_app_context
except ImportError as error:
    raise MissingExtraError("flask", "flask") from error

if TYPE_CHECKING:
    from ..sync import SyncAdmin

P = ParamSpec("P")
T = TypeVar("T")

EXTENSION: Final = "headwater"  # its place in `app.extensions`


def _on_face(method: Callable[Concatenate[SyncBroker, P], T]) -> Callable[Concatenate[Headwater, P], T]:
    """A method that does the same on the broker of the current Flask app, with the same signature."""

    @functools.wraps(method)
    def call(extension: Headwater, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        return method(extension.sync, *arguments, **keywords)

    return call


class Headwater:
    """The extension: `Headwater(app)`, or `init_app(app)` later, for one Flask app or several.

    It has the methods of a SyncBroker, which act on the broker of the current Flask app; outside of an app context on
    that of the only one there is. Nothing is connected before the first use, and nothing happens at the end of a
    request or of an app context: connections belong to the process.

    Config keys of the Flask app, where `prefix` is HEADWATER: HEADWATER_URL, and the options of SyncBroker, such as
    HEADWATER_MAX_IN_FLIGHT, HEADWATER_WHEN_FULL, HEADWATER_EXIT_TIMEOUT, HEADWATER_CONNECT_TIMEOUT.

    Args:
        app: the Flask app; None: call `init_app`.
        broker: instead of a URL in the config: a Headwater App, whose first broker is used, a Broker, or a URL.
        prefix: what the config keys begin with; another one for each extension, where an app has several brokers.
    """

    def __init__(
        self, app: Flask | None = None, *, broker: App | Broker | str | None = None, prefix: str = "HEADWATER"
    ) -> None:
        self._broker = broker
        self._prefix = prefix
        self._faces: dict[Flask, Callable[[], SyncBroker]] = {}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read the config of a Flask app. Raises ConfigurationError for what is missing, or wrong, in it."""
        keys = app.config.get_namespace(f"{self._prefix}_")
        broker = keys.pop("url", None) if self._broker is None else self._broker
        if broker is None:
            raise ConfigurationError(f"{app}: set {self._prefix}_URL in its config, such as 'nats://localhost:4222'")
        self._faces[app] = face_of(broker, keys, lambda name: f"{self._prefix}_{name.upper()}")
        app.extensions.setdefault(EXTENSION, {})[self._prefix] = self

    @property
    def sync(self) -> SyncBroker:
        """The broker of the current Flask app."""
        if has_app_context():
            app = current_app._get_current_object()  # type: ignore[attr-defined]  # it stands for the app
            if app not in self._faces:
                raise ConfigurationError(f"{app} was not given to this extension: call init_app(app)")
            return self._faces[app]()
        if len(self._faces) != 1:
            raise ConfigurationError(
                f"this extension has {len(self._faces)} Flask apps: say which, with `with app.app_context():`"
            )
        return next(iter(self._faces.values()))()

    publish = _on_face(SyncBroker.publish)
    publish_soon = _on_face(SyncBroker.publish_soon)
    publish_many = _on_face(SyncBroker.publish_many)
    request = _on_face(SyncBroker.request)
    get = _on_face(SyncBroker.get)
    stream = _on_face(SyncBroker.stream)
    ping = _on_face(SyncBroker.ping)
    flush = _on_face(SyncBroker.flush)

    @property
    def admin(self) -> SyncAdmin:
        """The administration of the broker of the current Flask app."""
        return self.sync.admin

    @property
    def stats(self) -> Stats:
        """What became of the messages published for the current Flask app in this process."""
        return self.sync.stats
