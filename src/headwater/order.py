"""Which of the messages at hand may be handled next, so that what must stay in order does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import chain
from typing import Literal, Protocol

from .message import Message

OrderBy = Literal["key", "partition"] | Callable[[Message], Hashable]
Partitions = frozenset[tuple[str, int]]


class Lineup(Protocol):
    """Messages that were received and are not settled yet. `ready` may be handled, first one first.

    A parked message waits for a later attempt; what must come after it waits behind it.
    """

    ready: deque[Message]

    def add(self, messages: Iterable[Message]) -> None:
        """These were received."""
        ...

    def settled(self, message: Message) -> None:
        """This one is over: what waited behind it may go on."""
        ...

    def park(self, message: Message) -> None:
        """This one was handled and must be handled again, not yet."""
        ...

    def unpark(self, message: Message) -> None:
        """A parked one may be handled again."""
        ...

    def __iter__(self) -> Iterator[Message]:
        """Everything that waits: for its turn, or behind another."""
        ...

    def drop(self, partitions: Partitions) -> list[Message]:
        """Forget everything of these partitions that is not being handled; gives what was forgotten."""
        ...


class Unordered:
    """Anything may be next."""

    def __init__(self) -> None:
        self.ready: deque[Message] = deque()

    def add(self, messages: Iterable[Message]) -> None:
        self.ready.extend(messages)

    def settled(self, message: Message) -> None:
        pass

    def park(self, message: Message) -> None:
        pass

    def unpark(self, message: Message) -> None:
        self.ready.append(message)

    def __iter__(self) -> Iterator[Message]:
        return iter(self.ready)

    def drop(self, partitions: Partitions) -> list[Message]:
        return _drop(self.ready, partitions)


class Sequential:
    """One message at a time: order takes care of itself until one is parked."""

    def __init__(self, order: Callable[[Message], Hashable]) -> None:
        self.ready: deque[Message] = deque()
        self._order = order
        self._retried: dict[Hashable, set[Message]] = {}  # by order key, those that were parked and are not settled
        self._held: dict[Hashable, deque[Message]] = {}  # what waits behind them

    def add(self, messages: Iterable[Message]) -> None:
        if not self._held:
            self.ready.extend(messages)
            return
        for message in messages:
            self._held.get(self._order(message), self.ready).append(message)

    def settled(self, message: Message) -> None:
        if not self._retried:
            return
        key = self._order(message)
        retried = self._retried.get(key)
        if retried is not None:
            retried.discard(message)
            if not retried:
                del self._retried[key]
                self.ready.extendleft(reversed(self._held.pop(key)))

    def park(self, message: Message) -> None:
        key = self._order(message)
        if key in self._retried:
            self._retried[key].add(message)
            return
        self._retried[key] = {message}
        self._held[key] = deque(later for later in self.ready if self._order(later) == key)
        if self._held[key]:
            others = [later for later in self.ready if self._order(later) != key]
            self.ready.clear()
            self.ready.extend(others)

    def unpark(self, message: Message) -> None:
        self.ready.append(message)

    def __iter__(self) -> Iterator[Message]:
        return chain(self.ready, *self._held.values())

    def drop(self, partitions: Partitions) -> list[Message]:
        dropped = _drop(self.ready, partitions) + _drop_held(self._held, partitions)
        for message in dropped:
            self.settled(message)
        return dropped


class Ordered:
    """Messages of one order key one after the other, those of different keys beside each other."""

    def __init__(self, order: Callable[[Message], Hashable]) -> None:
        self.ready: deque[Message] = deque()
        self._order = order
        self._chains: dict[Hashable, deque[Message] | None] = {}  # keys in work; None until something waits

    def add(self, messages: Iterable[Message]) -> None:
        ready, chains, order = self.ready, self._chains, self._order
        for message in messages:
            key = order(message)
            if key is None:  # no key, no order to keep
                ready.append(message)
            elif key not in chains:
                chains[key] = None
                ready.append(message)
            elif (waiting := chains[key]) is None:
                chains[key] = deque((message,))
            else:
                waiting.append(message)

    def settled(self, message: Message) -> None:
        key = self._order(message)
        if key is None:
            return
        if waiting := self._chains.get(key):
            self.ready.append(waiting.popleft())
        else:
            self._chains.pop(key, None)

    def park(self, message: Message) -> None:
        pass  # its key stays in work

    def unpark(self, message: Message) -> None:
        self.ready.append(message)

    def __iter__(self) -> Iterator[Message]:
        return chain(self.ready, *filter(None, self._chains.values()))

    def drop(self, partitions: Partitions) -> list[Message]:
        dropped = _drop(self.ready, partitions)
        gone = _drop_held({key: waiting for key, waiting in self._chains.items() if waiting}, partitions)
        for message in dropped:
            self.settled(message)
        return dropped + gone


def line_up(order_by: OrderBy | None, *, one_lane: bool, partitioned: bool) -> Lineup:
    """The lineup for these options. One lane over a partitioned source keeps the order of its partitions."""
    if order_by is None and not (one_lane and partitioned):
        return Unordered()
    order: Callable[[Message], Hashable]
    if order_by == "key":
        order = _by_key
    elif order_by is None or order_by == "partition":
        order = _by_partition
    else:
        order = order_by
    return Sequential(order) if one_lane else Ordered(order)


def _by_key(message: Message) -> Hashable:
    return message.key_bytes


def _by_partition(message: Message) -> Hashable:
    return (message.topic, message.partition)


def _drop(queue: deque[Message], partitions: Partitions) -> list[Message]:
    dropped = [message for message in queue if (message.topic, message.partition) in partitions]
    if dropped:
        kept = [message for message in queue if (message.topic, message.partition) not in partitions]
        queue.clear()
        queue.extend(kept)
    return dropped


def _drop_held(held: dict[Hashable, deque[Message]], partitions: Partitions) -> list[Message]:
    return [message for queue in held.values() for message in _drop(queue, partitions)]
