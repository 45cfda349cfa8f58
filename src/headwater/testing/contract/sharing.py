"""How the members of a group share its messages."""

from __future__ import annotations

import asyncio

from ...broker import Broker
from ...engine import Assigned, Change, Revoked, Source
from ...message import Outgoing
from .needs import needs
from .tools import (
    QUIET,
    MakeBroker,
    both_joined,
    held,
    nothing_more,
    reading,
    settled,
    shared,
    taken,
    until,
    until_woken,
)


class Sharing:
    """How the members of a group share its messages."""

    @needs("groups", "settles")
    async def test_the_members_of_a_group_share_its_messages(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        async with make_broker() as other, reading(broker, topic, group) as one, reading(other, topic, group) as two:
            await both_joined(broker, topic, one, two)
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(300)])
            first, second = await shared(one, two, 300)
        assert sorted(first + second) == list(range(300))
        assert first
        assert second

    @needs("groups", "settles", "redistributes")
    async def test_who_leaves_gives_its_messages_to_the_others(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        async with make_broker() as other, reading(broker, topic, group) as one:
            leaving = reading(other, topic, group)
            two = await leaving.__aenter__()
            await both_joined(broker, topic, one, two)
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(100)])
            first, second = await shared(one, two, 100, acknowledge=False)
            assert len(first) + len(second) == 100
            await leaving.__aexit__(None, None, None)
            values = {message.value for message in await taken(one, len(second))}
        assert values == set(second)

    @needs("groups", "settles", "partitions")
    async def test_a_partition_has_one_member_at_a_time(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        changes: tuple[list[Change], list[Change]] = ([], [])
        async with (
            make_broker() as other,
            reading(broker, topic, group, changes=changes[0]),
            reading(other, topic, group, changes=changes[1]),
        ):
            await settled(lambda: held(changes[0]) and held(changes[1]))
            count = len(held(changes[0])) + len(held(changes[1]))
            assert not held(changes[0]) & held(changes[1])
            assert abs(len(held(changes[0])) - len(held(changes[1]))) <= 1
        async with reading(broker, topic, group, changes=changes[0]):
            await settled(lambda: len(held(changes[0])) == count)

    @needs("groups", "settles", "partitions")
    async def test_a_partition_is_given_back_before_another_gets_it(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        order: list[tuple[str, type[Change], int]] = []
        go_on = asyncio.Event()

        async def slowly(change: Change) -> None:
            if isinstance(change, Revoked):
                order.append(("one gives", Revoked, change.epoch))
                await go_on.wait()
                order.append(("one gave", Revoked, change.epoch))

        async def quickly(change: Change) -> None:
            if isinstance(change, Assigned) and change.partitions:
                order.append(("two gets", Assigned, change.epoch))

        source = Source(topics=(topic,), group=group)
        async with make_broker() as other, broker.engine.subscribe(source, slowly) as one:
            receiving = asyncio.create_task(until_woken(one))

            async def join() -> None:
                async with other.engine.subscribe(source, quickly) as two:
                    await until(lambda: any(who == "two gets" for who, _, _ in order), two)

            joining = asyncio.create_task(join())
            await settled(lambda: bool(order))
            await asyncio.sleep(QUIET)
            assert [who for who, _, _ in order] == ["one gives"]
            go_on.set()
            await joining
            assert [who for who, _, _ in order][:3] == ["one gives", "one gave", "two gets"]
            receiving.cancel()
            one.wake()
            await asyncio.gather(receiving, return_exceptions=True)

    @needs("groups", "settles", "partitions")
    async def test_a_partition_that_comes_back_is_not_paused_any_more(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        mine, theirs = list[Change](), list[Change]()
        async with reading(broker, topic, group, changes=mine) as place:
            await settled(lambda: held(mine))
            place.pause(held(mine))
            async with make_broker() as other, reading(other, topic, group, changes=theirs):
                await settled(lambda: held(theirs))
                moved = held(theirs)
            await settled(lambda: moved <= held(mine))
            await broker.publish("it is back", topic, partition=min(moved)[1])
            assert [message.value for message in await taken(place, 1)] == ["it is back"]

    @needs("groups", "settles", "exclusive")
    async def test_an_exclusive_group_has_one_active_member(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        async with make_broker() as other, reading(other, topic, group, exclusive=True) as waiting:
            leaving = reading(broker, topic, f"{group}-x", exclusive=True)
            await leaving.__aenter__()
            async with reading(other, topic, f"{group}-x", exclusive=True) as second:
                await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(30)])
                assert await nothing_more(second)
                await leaving.__aexit__(None, None, None)
                assert len(await taken(second, 30)) == 30
            assert len(await taken(waiting, 30)) == 30
