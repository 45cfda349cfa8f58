"""What a forked child inherits and must leave alone: its parent's connections, and the loops that serve them."""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Any, Protocol

generation = 0
"""How many forks lie between the process that imported us and this one: what is older belongs to a parent."""


class Inherited(Protocol):
    """Something that a child has to start afresh."""

    def start_afresh(self) -> None:
        """Called in the child, before anything else runs there. Closes nothing."""
        ...


_watched: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(one: Inherited) -> None:
    """Have it told, for as long as it lives, when this is a child."""
    _watched.add(one)


def leave_alone(one: object) -> None:
    """Never free this, not even when the process ends.

    Cleaning up would say good-bye on the parent's sockets, change its epoll, or wait for threads that a fork does
    not copy (librdkafka).
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


def _tell_all() -> None:
    global generation
    generation += 1
    for one in list(_watched):
        one.start_afresh()


os.register_at_fork(after_in_child=_tell_all)
