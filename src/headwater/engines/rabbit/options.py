"""What a user may ask of RabbitMQ: of the whole broker, and of one subscriber, topic or publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypedDict

import msgspec

from ...engine import option_of

QueueType = Literal["quorum", "classic", "stream"]
ExchangeType = Literal["topic", "fanout", "direct", "headers"]


class Rabbit(msgspec.Struct, frozen=True, kw_only=True):
    """Options of RabbitMQ for a subscriber, a topic, a publisher or one publish: `options=[Rabbit(...)]`.

    Attributes:
        exchange: the exchange that is the topic, where it is not called like it; "" publishes to a queue.
        exchange_type: of an exchange that is made; one that is there keeps its own unless this is given.
        routing_key: to publish with, by default the topic; to bind a group's queue with, by default everything.
        binding_arguments: to bind a group's queue with, as an exchange of the type headers wants.
        queue: the group's queue, where it is not called `TOPIC:GROUP`; one that is there is taken as it is.
        queue_type: of a group's queue that is made. A "stream" keeps what was published, to be read again.
        arguments: more of a queue that is made, such as `{"x-max-length": 1000}`.
        mandatory: a message that no queue takes is an error: TopicNotFoundError.
        persistent: whether it is written to disk.
        priority: of a message, in a classic queue made with `x-max-priority`.
        expiration: seconds after which the message is not delivered any more.
    """

    exchange: str | None = None
    exchange_type: ExchangeType | None = None
    routing_key: str | None = None
    binding_arguments: Mapping[str, Any] | None = None
    queue: str | None = None
    queue_type: QueueType | None = None
    arguments: Mapping[str, Any] | None = None
    mandatory: bool = False
    persistent: bool = True
    priority: int | None = None
    expiration: float | None = None


DEFAULT: Final = Rabbit()


def rabbit_of(options: Sequence[Any]) -> Rabbit:
    """The options of RabbitMQ among those of several engines."""
    return option_of(options, Rabbit) or DEFAULT if options else DEFAULT


class RabbitOptions(TypedDict, total=False):
    """What an `amqp://` URL may ask for after its `?`; `RabbitEngine` says what each means."""

    heartbeat: int
    queue_type: QueueType
    auto_create: bool
    management: str
    client: str
    ca: str
    cert: str
    key: str
    verify: bool
