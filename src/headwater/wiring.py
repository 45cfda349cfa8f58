"""What an app's routers declare, put together for its brokers: who consumes what, and where it goes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Set
from typing import Any

import msgspec

from .broker import BROKERS, Broker
from .consumer import Consumer, consumers_of
from .depends import name_of
from .engine import Topic
from .errors import ConfigurationError
from .router import Router, publishers_of, refuse
from .topics import is_pattern

Wired = tuple[Broker, Consumer]
"""A consumer, with the broker it reads from."""


def wire(name: str, router: Router, brokers: Sequence[Broker], logger: logging.Logger) -> list[Wired]:
    """The consumers of every broker of the app of this name, checked against its engine before anything is connected.

    Raises ConfigurationError, NotSupportedError.
    """
    gathered = [(broker, *_router_of(broker, router, first=broker is brokers[0]).gather()) for broker in brokers]
    strays = [
        (function, msgspec.structs.replace(publisher, broker=broker))
        for broker, _, homeless in gathered
        for function, publisher in homeless
    ]
    subscribing = {subscriber.function for _, declared, _ in gathered for subscriber, _ in declared}
    for function, publisher in strays:
        if function not in subscribing:
            refuse(function, publisher)
    _name_strangers(subscribing, brokers, logger)
    found = []
    for broker, declared, _ in gathered:
        whole = [(subscriber, (*own, *publishers_of(subscriber, strays))) for subscriber, own in declared]
        for consumer in consumers_of(name, whole):
            check(consumer, broker, brokers)
            found.append((broker, consumer))
    return found


def _router_of(broker: Broker, router: Router, *, first: bool) -> Router:
    """All that is declared for a broker: on itself, and on the app if it is the first."""
    of_broker = Router(middleware=router.middleware, dependencies=router.dependencies)
    of_broker.include_router(broker.router)
    both = Router()
    both.include_router(of_broker)
    if first:
        both.include_router(router)
    return both


def _name_strangers(subscribing: Set[Callable[..., Any]], brokers: Sequence[Broker], logger: logging.Logger) -> None:
    """Warn of results that go nowhere: their publisher is on a broker that is not this app's.

    No error: another app of this process may use the same functions with brokers of its own.
    """
    for broker in BROKERS - set(brokers):
        for function, publisher in broker.router.gather()[1]:
            if function in subscribing:
                text = "%s does not publish to %r on %s, which is none of this app's brokers"
                logger.warning(text, name_of(function), publisher.topic, broker)


def check(consumer: Consumer, broker: Broker, brokers: Sequence[Broker]) -> None:
    """Raise for what its engine cannot do, and for what goes to a broker that is not among the app's."""
    for place, topic in consumer.destinations():
        if place is not None and place not in brokers:
            raise ConfigurationError(
                f"{consumer.name} sends to {topic.name!r} on {place}, which is none of the app's brokers: give "
                f"App(..., broker=[...]) both"
            )
    consumer.check(broker.engine)


def topics_of(broker: Broker, consumers: Sequence[Wired]) -> list[Topic]:
    """The topics on a broker that these consumers read and publish to, with the options of who named them first."""
    named = list[Topic]()
    for owner, consumer in consumers:
        if owner is broker:
            source = consumer.source(consumer.check(broker.engine))
            named += [Topic(name, options=source.options) for name in source.topics]
        named += [topic for place, topic in consumer.destinations() if (place or owner) is broker]
    found = dict[str, Topic]()
    for topic in named:
        if not is_pattern(topic.name):
            found.setdefault(topic.name, topic)
    return list(found.values())
