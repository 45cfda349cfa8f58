"""Who takes part in groups: the server cannot tell while nobody asks it for more, so the members themselves say so."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from .connection import Connection, Route
from .subjects import INBOX
from .wire import is_status, publication

WITHIN: Final = 0.3  # seconds that members have to answer; where there is none the server says so at once
_SUBJECT: Final = f"{INBOX}hw.members."  # an inbox, which whoever may read JetStream may use


class Member(msgspec.Struct, frozen=True):
    """Who answered."""

    id: str
    client: str


def answer(connection: Connection, consumers: Collection[str], client: str) -> list[Route]:
    """Say from now on, to whoever calls the roll of these consumers, that we are here. Unsubscribe to stop."""
    here = msgspec.json.encode(Member(f"{client}-{os.urandom(4).hex()}", client))

    def tell(_subject: bytes, reply: bytes, _body: bytes, _headers: bytes | None) -> None:
        if connection.client is not None and reply:
            connection.client.write(publication(reply, b"", b"", here))

    return [connection.subscribe(_SUBJECT + name, tell) for name in consumers]


async def call(connection: Connection, consumers: Collection[str]) -> Mapping[str, list[Member]]:
    """The members of each of these consumers that answer."""
    found: dict[str, list[Member]] = {name: [] for name in consumers}
    names = dict(enumerate(found))
    silent, all_said = {*consumers}, asyncio.Event()

    def hear(subject: bytes, _reply: bytes, body: bytes, headers: bytes | None) -> None:
        name = names[int(subject.rpartition(b".")[2])]
        if headers is not None and is_status(headers):  # nobody listens
            silent.discard(name)
        else:
            found[name].append(msgspec.json.decode(body, type=Member))
        if not silent:
            all_said.set()

    inbox = connection.new_inbox()
    route = connection.subscribe(f"{inbox}.*", hear)
    try:
        client = await connection.ready()
        for number, name in names.items():
            client.write(publication(f"{_SUBJECT}{name}".encode(), f"{inbox}.{number}".encode(), b"", b""))
        async with asyncio.timeout(WITHIN if names else 0):
            await all_said.wait()
    except TimeoutError:
        pass  # however many there are, these were all who answered
    finally:
        await connection.unsubscribe(route)
    return found
