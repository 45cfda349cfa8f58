"""The blocking face: publish, request, read and manage from synchronous code."""

from .admin import SyncAdmin
from .broker import SyncBroker
from .delivery import DeliveryFuture, Stats
from .stream import SyncStream

__all__ = ["DeliveryFuture", "Stats", "SyncAdmin", "SyncBroker", "SyncStream"]
