"""Messages and Django's database: published with a commit, handled with connections that work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections, transaction

from ...codecs import Codec, encode
from ...message import NO_HEADERS, HeadersLike, Outgoing
from .setting import broker


def publish_on_commit(
    value: Any,
    topic: str,
    *,
    key: str | bytes | None = None,
    headers: HeadersLike = NO_HEADERS,
    partition: int | None = None,
    delay: float | None = None,
    timeout: float = 10.0,
    confirm: bool = True,
    codec: Codec | None = None,
    options: Sequence[Any] = (),
    using: str | None = None,
    robust: bool = False,
) -> None:
    """Publish once the transaction is committed, and not at all if it is rolled back; at once outside of one.

    What cannot be written is refused at once, inside the transaction. A failure to publish is raised where the
    transaction is left, which is committed then; with `robust` Django logs it instead. A process that dies between
    the commit and the publish loses the message.

    Args:
        using: the database, as for `transaction.on_commit`.
        robust: as for `transaction.on_commit`.

    The rest is as for `SyncBroker.publish`.
    """
    face = broker()
    encode(Outgoing(value, topic, headers=headers, codec=codec), face.broker.codec)
    transaction.on_commit(
        lambda: face.publish(
            value,
            topic,
            key=key,
            headers=headers,
            partition=partition,
            delay=delay,
            timeout=timeout,
            confirm=confirm,
            codec=codec,
            options=options,
        ),
        using=using,
        robust=robust,
    )


def fresh_connections() -> None:
    """A dependency of `def` handlers that use the database: connections that are broken or too old are made anew.

    Django does it for each request. `App(..., dependencies=[Depends(fresh_connections)])` does it for each message.
    """
    close_old_connections()


async def afresh_connections() -> None:
    """The same for `async def` handlers, whose queries Django runs in a thread of its own."""
    await sync_to_async(close_old_connections)()
