"""What a handler gave, as messages: one for each publisher, and the reply to a request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from .codecs import Codec
from .errors import BatchError, ConfigurationError
from .handler import Call
from .message import CORRELATION, ERROR, NO_HEADERS, REPLY_TO, Headers, HeadersLike, Message, Outgoing
from .topics import field_names, is_pattern, match

if TYPE_CHECKING:
    from .broker import Broker

KeyOf = str | bytes | Callable[[Any], str | bytes | None]


class Response(msgspec.Struct, frozen=True):
    """A handler's result with headers or a key of its own for what is published from it."""

    value: Any
    headers: HeadersLike | None = None
    key: str | bytes | None = None


class Publisher(msgspec.Struct, frozen=True, kw_only=True):
    """Where the results of a handler go. Declared with `@app.publisher(...)`.

    `key` is one for all, or a function of the result; by default the incoming message's. `when` says which
    results are published. `broker` is where, if that is another than the one the handler's messages come from.
    """

    topic: str
    key: KeyOf | None = None
    headers: HeadersLike | None = None
    codec: Codec | None = None
    when: Callable[[Any], bool] | None = None
    title: str | None = None
    description: str | None = None
    options: tuple[Any, ...] = ()
    broker: Broker | None = None

    def check(self, handler: str, topics: Sequence[str], *, batch: bool) -> None:
        """Raise ConfigurationError for a field that some topic of the handler does not fill."""
        for name in field_names(self.topic):
            if batch:
                raise ConfigurationError(
                    f"{handler} takes batches, whose members come from topics of their own: nothing fills {name!r} of "
                    f"{self.topic!r}"
                )
            for topic in topics:
                if name not in field_names(topic):
                    raise ConfigurationError(
                        f"{handler} publishes to {self.topic!r}, but its topic {topic!r} has no field {name!r}"
                    )

    def address(self, message: Message, topics: Sequence[str]) -> str:
        """The topic for the result of this message: fields are taken from the topic it came on."""
        if not is_pattern(self.topic):
            return self.topic
        fields = next((found for topic in topics if (found := match(topic, message.topic))), {})
        return self.topic.replace(":path}", "}").format(**fields)


def to_publish(
    result: Any, message: Message | None, publishers: Sequence[Publisher], topics: Sequence[str]
) -> list[Outgoing]:
    """One message for each publisher that wants this result; none for None."""
    response = result if isinstance(result, Response) else Response(result)
    if response.value is None:
        return []
    found = []
    for publisher in publishers:
        if publisher.when is not None and not publisher.when(response.value):
            continue
        key = publisher.key(response.value) if callable(publisher.key) else publisher.key
        if response.key is not None:
            key = response.key
        elif key is None and message is not None:
            key = message.key_bytes
        topic = publisher.topic if message is None else publisher.address(message, topics)
        headers = _headers(publisher.headers, response.headers)
        found.append(Outgoing(response.value, topic, key, headers, codec=publisher.codec, options=publisher.options))
    return found


def publishing(
    call: Call,
    publishers: Sequence[Publisher],
    topics: Sequence[str],
    publish: Callable[[Sequence[Outgoing]], Awaitable[Any]],
) -> Call:
    """The call, with what it gave published before it counts as done. A generator's items go out one by one."""

    async def call_and_publish(work: Any) -> Any:
        result = await call(work)
        message = None if isinstance(work, tuple) else work
        if not isinstance(result, AsyncIterator):
            await _publish(result, message)
            return result
        first = None
        async with _closing(result):
            async for item in result:
                first = item if first is None else first
                await _publish(item, message)
        return first

    elsewhere = [publisher for publisher in publishers if publisher.broker is not None]
    publishers = [publisher for publisher in publishers if publisher.broker is None]

    async def _publish(result: Any, message: Message | None) -> None:
        found = to_publish(result, message, publishers, topics)
        if found:
            await publish(found)
        for publisher in elsewhere:
            found = to_publish(result, message, (publisher,), topics)
            if found and publisher.broker is not None:
                await publisher.broker.send(found)

    return call_and_publish


@asynccontextmanager
async def _closing(items: AsyncIterator[Any]) -> AsyncIterator[None]:
    """A generator that is left early runs its clean-up now, before its message is settled."""
    try:
        yield
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


Commit = Callable[[tuple[Message, ...], Any, list[Outgoing], Mapping[int, BaseException]], Awaitable[None]]


def transacting(call: Call, publishers: Sequence[Publisher], topics: Sequence[str], commit: Commit) -> Call:
    """The call, with its messages acknowledged and what it gave published in one transaction.

    What a batch handler yielded before a BatchError belongs to it; `commit` is told which members failed.
    """

    async def call_and_commit(work: Any) -> Any:
        messages, message = (work, None) if isinstance(work, tuple) else ((work,), work)
        items: list[Any] = []
        failed: Mapping[int, BaseException] = {}
        try:
            result = await call(work)
            if isinstance(result, AsyncIterator):
                async with _closing(result):
                    async for item in result:  # what was yielded before an error counts, so not a comprehension
                        items.append(item)  # noqa: PERF401
            else:
                items.append(result)
        except BatchError as error:
            failed = error.failed
        sends = [outgoing for item in items for outgoing in to_publish(item, message, publishers, topics)]
        first = items[0] if items else None
        await commit(messages, first, sends, failed)
        return first

    return call_and_commit


def reply(message: Message, result: Any) -> Outgoing:
    """The answer to a request."""
    response = result if isinstance(result, Response) else Response(result)
    return Outgoing(response.value, message.headers[REPLY_TO], headers=_headers(response.headers, _bound_to(message)))


def failure_reply(message: Message, error: BaseException) -> Outgoing:
    """The answer to a request whose handler failed for good."""
    headers = {ERROR: type(error).__qualname__, **_bound_to(message)}
    return Outgoing(str(error), message.headers[REPLY_TO], headers=headers)


def _bound_to(request: Message) -> dict[str, str | bytes]:
    return {CORRELATION: request.headers.get_bytes(CORRELATION) or b""}


def _headers(declared: HeadersLike | None, own: HeadersLike | None) -> HeadersLike:
    if not own:
        return declared or NO_HEADERS
    return Headers(declared).merged(own) if declared else own
