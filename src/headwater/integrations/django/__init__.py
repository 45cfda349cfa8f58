"""Django: an app whose settings name the broker, publishing on commit, and handlers run by `manage.py headwater`."""

from __future__ import annotations

from ...errors import MissingExtraError

try:
    import django  # noqa: F401  # is it here?
except ImportError as error:
    raise MissingExtraError("django", "django") from error

from .database import afresh_connections, fresh_connections, publish_on_commit
from .setting import broker

__all__ = ["afresh_connections", "broker", "fresh_connections", "publish_on_commit"]
