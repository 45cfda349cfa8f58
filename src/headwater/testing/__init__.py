"""Testing without a server: the app, on memory, with a clock that a test moves."""

from .app import SyncTestApp, TestApp
from .clock import VirtualClock

__all__ = ["SyncTestApp", "TestApp", "VirtualClock"]
