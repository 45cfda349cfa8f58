"""Client ids: the same again after a restart, and never the same twice at a time on one machine."""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from ...engine import Source
from ...places import take_place
from .options import Settings


def passing_id(settings: Settings, client: str) -> str:
    """An id that nobody has had."""
    return f"{_owner(settings, client)}-{os.urandom(6).hex()}"


@contextmanager
def lasting_id(settings: Settings, source: Source) -> Iterator[str]:
    """The id of a member of a group, under which the server keeps its session.

    It is made of the program, the machine, what is subscribed to, and a number: the worker's own, or the lowest that
    nobody on this machine uses now. The kernel gives a number back when its process dies.
    """
    what = "\0".join((source.group or "", *sorted(source.topics)))
    name = f"{_owner(settings, source.client)}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    worker = os.environ.get("HEADWATER_WORKER_ID")
    for number in itertools.chain([int(worker)] if worker else [], itertools.count()):
        client_id = f"{name}-{number}"
        lock = take_place(f"{settings.url} {client_id}")
        if lock is not None:
            try:
                yield client_id
            finally:
                os.close(lock)
            return


def _owner(settings: Settings, client: str) -> str:
    return settings.client_id or f"{client}-{socket.gethostname()}"
