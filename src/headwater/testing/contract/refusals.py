"""What an engine cannot do is refused when an app starts, before anything is connected."""

from __future__ import annotations

from typing import Any

import pytest

from ...app import App
from ...errors import NotSupportedError
from .needs import needs
from .tools import MakeBroker


class Refusals:
    """What an engine cannot do is refused when an app starts, before anything is connected."""

    @needs("!groups")
    async def test_a_group_is_refused_where_there_are_none(self, make_broker: MakeBroker, topic: str) -> None:
        await refused(make_broker, topic, "groups")

    @needs("groups", "!patterns")
    async def test_a_topic_with_fields_is_refused_where_none_match(self, make_broker: MakeBroker, topic: str) -> None:
        await refused(make_broker, f"{topic}.{{region}}", "patterns")

    @needs("groups", "!exclusive")
    async def test_exclusive_is_refused_without_a_single_active_member(
        self, make_broker: MakeBroker, topic: str
    ) -> None:
        await refused(make_broker, topic, "exclusive", exclusive=True)

    @needs("groups", "!keys", "!exclusive")
    async def test_an_order_is_refused_that_nobody_can_keep(self, make_broker: MakeBroker, topic: str) -> None:
        await refused(make_broker, topic, "order_by", order_by="key")

    @needs("groups", "!atomic_commit")
    async def test_exactly_once_is_refused_without_transactions(self, make_broker: MakeBroker, topic: str) -> None:
        await refused(make_broker, topic, "atomic_commit", exactly_once=True)

    @needs("groups", "!replay")
    async def test_a_start_is_refused_where_nothing_is_kept(self, make_broker: MakeBroker, topic: str) -> None:
        await refused(make_broker, topic, "replay", start="earliest")

    @needs("groups", "!settles")
    async def test_dead_letters_are_refused_where_they_would_be_lost(self, make_broker: MakeBroker, topic: str) -> None:
        await refused(make_broker, topic, "dead letters")

    @needs("!settles")
    async def test_dead_letters_of_a_broadcast_are_refused_where_they_would_be_lost(
        self, make_broker: MakeBroker, topic: str
    ) -> None:
        await refused(make_broker, topic, "dead letters", broadcast=True, dead_letter=True)


async def refused(make_broker: MakeBroker, topic: str, operation: str, **options: Any) -> None:
    """Fail unless an app with such a subscriber does not start, and says why."""
    app = App("contract", make_broker())

    @app.subscriber(topic, **options)
    async def handle(body: bytes) -> None: ...

    with pytest.raises(NotSupportedError, match=operation):
        await app.start()
    assert not app.broker.connected
