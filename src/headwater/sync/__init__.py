"""The blocking face: publish, request, read and manage from synchronous code."""

from .admin import SyncAdmin
from .broker import SyncBroker, SyncStream
from .delivery import DeliveryFuture, Stats

__all__ = ["DeliveryFuture", "Stats", "SyncAdmin", "SyncBroker", "SyncStream"]
