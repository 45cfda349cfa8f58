"""Single acknowledgements, in any order, turned into the offset below which everything is done."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from .message import Message

Partition = tuple[str, int]


class Watermark:
    """What was received and may not be acknowledged yet, for a source that acknowledges up to an offset.

    A message that is done is released once all that were received before it on its partition are done too. Offsets
    need no order and may have gaps: what counts is the order in which messages were received.
    """

    def __init__(self) -> None:
        self._received: dict[Partition, deque[Message]] = {}
        self._open: dict[Message, deque[Message]] = {}  # not done yet, and the queue each stands in
        self._ahead = 0

    def __len__(self) -> int:
        """How many messages are held back, by themselves or by one before them."""
        return self._ahead

    def add(self, messages: Iterable[Message]) -> None:
        """These were received, in this order."""
        received, still_open = self._received, self._open
        for message in messages:
            partition = (message.topic, message.partition or 0)
            queue = received.get(partition)
            if queue is None:
                queue = received[partition] = deque()
            queue.append(message)
            still_open[message] = queue
            self._ahead += 1

    def done(self, message: Message) -> list[Message]:
        """This one is done: those that are released by it, in order. None once its partition was dropped."""
        still_open = self._open
        queue = still_open.pop(message, None)
        released: list[Message] = []
        while queue and queue[0] not in still_open:
            released.append(queue.popleft())
        self._ahead -= len(released)
        return released

    def holds(self, message: Message) -> bool:
        """Whether this one is not done, and its partition is still ours."""
        return message in self._open

    def held(self) -> Counter[Partition]:
        """How many messages each partition holds back."""
        return Counter({partition: len(queue) for partition, queue in self._received.items()})

    def drop(self, partitions: Iterable[Partition]) -> None:
        """These partitions are somebody else's now: what is done on them later releases nothing."""
        for partition in partitions:
            queue = self._received.pop(partition, deque())
            for message in queue:
                self._open.pop(message, None)
            self._ahead -= len(queue)
            queue.clear()
