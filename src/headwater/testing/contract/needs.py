"""Which engines a test is for: those that declare what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from ...broker import Broker
from ...engine import Ack, Capabilities

F = TypeVar("F", bound=Callable[..., Any])

FIXTURES: Final = frozenset(("restart", "limit"))  # what a server may offer beside `make_broker`


def needs(*names: str) -> Callable[[F], F]:
    """Run this test for engines that have all of these, and skip it for the others.

    Besides the fields of Capabilities, of a source with a group: "settles" is any acknowledgement, "each" one by one,
    "stores" whatever outlives its sending, "admin.NAME" an operation of the administration, "restart" and "limit" the
    fixtures. "!" before a name says that it must be missing.
    """

    def mark(test: F) -> F:
        test.needs = names  # type: ignore[attr-defined]  # `needs_of` reads it
        return test

    return mark


def needs_of(test: Callable[..., Any]) -> tuple[str, ...]:
    """What a test needs; nothing if it does not say: then every engine must pass it."""
    found: tuple[str, ...] = getattr(test, "needs", ())
    return found


def able(need: str, can: Capabilities, broker: Broker) -> bool:
    """Whether this engine has what a test needs."""
    if need.startswith("!"):
        return not able(need[1:], can, broker)
    if need.startswith("admin."):
        admin = broker.engine.admin
        return admin is not None and need.removeprefix("admin.") in admin.operations
    match need:
        case "settles":
            return can.ack is not Ack.NONE
        case "each":
            return can.ack is Ack.EACH
        case "stores":
            return can.durable or can.replay
        case "lease":
            return can.lease is not None
        case _:
            return bool(getattr(can, need))
