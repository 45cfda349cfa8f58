"""Several processes on one store, and what happens when one of them dies, hangs or leaves."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from headwater.engine import Assigned, Change, Lost, Revoked
from headwater.message import Outgoing

from .conftest import OpenShop, Shop, bodies, take
from .peer import Peer


def partitions(changes: list[Change], kind: type[Change]) -> set[int]:
    return {partition for change in changes if isinstance(change, kind) for _, partition in change.partitions}


async def test_two_processes_share_a_group_and_the_survivor_takes_over_at_once(shop: Shop) -> None:
    await shop.put(*range(400), key="x")  # creates the topic
    for n in range(400):
        await shop.put(n, key=str(n))
    changes: list[Change] = []
    async with shop.member(changes=changes) as member:
        with Peer("consume", shop.path) as peer:
            await peer.saying("assigned")
            await take(member, 50, ack=True)
            await peer.saying("acked")
            assert len(partitions(changes, Revoked)) == 4
            peer.kill()
            died = time.monotonic()
            while not (isinstance(changes[-1], Assigned) and len(changes[-1].partitions) == 4):
                await asyncio.sleep(0.001)
                assert time.monotonic() - died < 5
            acked = {(line[1], line[2]) for line in peer.rest() if line[0] == "acked"}
        seen = {(str(m.partition), str(m.offset)) for m in await drain(member)}
        assert acked
        assert not acked & seen
    assert (await shop.admin.lag("shop", "orders")).total == 0


async def drain(member: object) -> list[object]:
    found = []
    while messages := await member.receive(1000, 0.3):  # type: ignore[attr-defined]
        found += messages
        await member.ack(messages)  # type: ignore[attr-defined]
    return found


async def test_death_is_noticed_by_the_kernel_and_not_by_the_heartbeat(open_shop: OpenShop) -> None:
    shop = await open_shop(lease=1000.0)
    await shop.put(0)
    changes: list[Change] = []
    with Peer("consume", shop.path, lease=1000.0) as peer:
        await peer.saying("assigned")
        async with shop.member(changes=changes):
            await peer.saying("drained")
            while partitions(changes, Assigned) != set(range(8)):
                peer.kill()
                await asyncio.sleep(0.005)


async def test_a_stopped_member_loses_its_partitions_and_wakes_up_as_a_harmless_zombie(open_shop: OpenShop) -> None:
    shop = await open_shop(lease=2.5)
    await shop.admin.create_topic("orders", 2, None, None, ())
    changes: list[Change] = []
    with Peer("consume", shop.path, lease=2.5, limit=1) as peer:
        await peer.saying("assigned")
        async with shop.member(changes=changes) as member:
            await peer.saying("drained")
            await shop.put(*range(20), partition=0)
            await shop.put(*range(20), partition=1)
            await peer.saying("acked")
            peer.signal(signal.SIGSTOP)
            messages = await take(member, 20, ack=True)
            while partitions(changes, Assigned) != {0, 1}:
                messages += await member.receive(100, 0.1)
            messages += await member.receive(100, 0.3)
            done = len({(m.partition, m.offset) for m in messages})
            await member.ack(messages)
            assert done >= 39 - 20 + 1
            before = (await shop.admin.lag("shop", "orders")).partitions
            peer.signal(signal.SIGCONT)
            await peer.saying("lost")
            await peer.saying("assigned")  # it comes back as a new member
            after = (await shop.admin.lag("shop", "orders")).partitions
            assert [p.committed for p in after] >= [p.committed for p in before]
    assert partitions(changes, Revoked)


async def test_a_member_that_leaves_finishes_first(shop: Shop) -> None:
    await shop.put(*range(10))
    changes: list[Change] = []
    with Peer("consume", shop.path, drain=0.3) as peer:
        await peer.saying("assigned")
        async with shop.member(changes=changes):
            await peer.saying("drained")
            peer.signal(signal.SIGTERM)
            await peer.saying("revoked")
            assert partitions(changes, Assigned) != set(range(8))
            await peer.saying("drained")
            await peer.saying("left")
            while partitions(changes, Assigned) != set(range(8)):
                await asyncio.sleep(0.005)
    assert not any(isinstance(change, Lost) for change in changes)


async def test_a_message_that_kills_its_process_shows_its_attempts(shop: Shop) -> None:
    await shop.put("good", "poison", "other", partition=0)
    attempts = []
    for _ in range(4):
        with Peer("consume", shop.path, poison="poison") as peer:
            lines = await asyncio.to_thread(peer.rest)
            attempts += [line[4] for line in lines if line[0] == "got" and line[5] == "poison"]
    assert attempts == ["1", "2", "3", "4"]
    async with shop.member() as member:
        poison, other = await take(member, 2)
        assert (poison.attempt, poison.body, other.body) == (5, b"poison", b"other")
        assert other.attempt == 2  # received beside the poison, never begun again


async def test_a_sleeping_consumer_in_another_process_is_woken_by_its_bell(shop: Shop) -> None:
    await shop.put(0, partition=0)
    with Peer("publish", shop.path, first=0, end=0):
        pass
    async with shop.member() as member:
        await take(member, 1, ack=True)
        looks = shop.engine.bells.looks
        with Peer("publish", shop.path, end=30) as peer:
            await take(member, 30, ack=True)
            await peer.saying("ready")
        assert shop.engine.bells.rings > 0
        assert shop.engine.bells.looks - looks <= 8  # those of the time it took to start the process


async def test_a_forked_child_keeps_nothing_of_its_parent(shop: Shop) -> None:
    await shop.put(0)
    async with shop.member():
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if _refuses(shop) else 1)
            finally:
                os._exit(2)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await shop.put(1)


def _refuses(shop: Shop) -> bool:
    try:
        shop.engine.send([Outgoing(None, "orders", body=b"x")])
    except Exception as error:
        return "fork" in str(error)
    return False


@pytest.mark.parametrize("durability", ["process", "fsync"])
async def test_what_was_moved_exactly_once_stays_so_over_kills(open_shop: OpenShop, durability: str) -> None:
    await exactly_once(open_shop, durability, kills=4, count=600)


@pytest.mark.soak
@pytest.mark.parametrize("durability", ["process", "fsync"])
async def test_what_was_moved_exactly_once_stays_so_over_many_kills(open_shop: OpenShop, durability: str) -> None:
    await exactly_once(open_shop, durability, kills=100, count=20_000)


async def exactly_once(open_shop: OpenShop, durability: str, kills: int, count: int) -> None:
    shop = await open_shop(durability=durability)
    await shop.admin.create_topic("orders", 3, None, None, ())
    await shop.admin.create_topic("bills", 3, None, None, ())
    share = count // kills
    for kill in range(kills):
        for n in range(kill * share, (kill + 1) * share):
            await shop.put(n, key=str(n))
        with Peer("transact", shop.path, durability=durability) as peer:
            await peer.saying("committed")
            await asyncio.sleep(random.random() * 0.02)
            peer.kill()
    with Peer("transact", shop.path, durability=durability) as peer:
        await peer.saying("ready")
        async with shop.reader("bills") as reader:
            bills = bodies(await take(reader, count))
            assert sorted(map(int, bills)) == list(range(count))
            while (await shop.admin.lag("biller", "orders")).total:
                await asyncio.sleep(0.01)
            assert not await reader.receive(10, 0.3)


async def test_a_zombie_commits_nothing_twice(open_shop: OpenShop) -> None:
    await zombies(open_shop, rounds=1)


@pytest.mark.soak
async def test_many_zombies_commit_nothing_twice(open_shop: OpenShop) -> None:
    await zombies(open_shop, rounds=12)


async def zombies(open_shop: OpenShop, rounds: int) -> None:
    shop = await open_shop(lease=2.0)
    await shop.admin.create_topic("orders", 4, None, None, ())
    await shop.admin.create_topic("bills", 1, None, None, ())
    count = 0

    async def feed() -> None:
        nonlocal count
        while True:
            await shop.put(count, key=str(count))
            count += 1
            await asyncio.sleep(0.002)

    with Peer("transact", shop.path, lease=2.0) as one, Peer("transact", shop.path, lease=2.0) as two:
        feeding = asyncio.create_task(feed())
        await one.saying("committed")
        await two.saying("committed")
        readers = [asyncio.create_task(asyncio.to_thread(peer.rest)) for peer in (one, two)]
        for turn in range(rounds):
            zombie = (one, two)[turn % 2]
            await asyncio.sleep(random.random() * 0.05)
            zombie.signal(signal.SIGSTOP)
            while sum(bool(held) for held in await members(shop)) > 1:
                await asyncio.sleep(0.05)
            zombie.signal(signal.SIGCONT)
            while sum(bool(held) for held in await members(shop)) < 2:
                await asyncio.sleep(0.05)
        feeding.cancel()
        while (await shop.admin.lag("biller", "orders")).total:
            await asyncio.sleep(0.05)
        one.kill()
        two.kill()
        await asyncio.gather(*readers)
    async with shop.reader("bills") as reader:
        assert sorted(map(int, bodies(await take(reader, count)))) == list(range(count))
        assert not await reader.receive(10, 0.1)


async def members(shop: Shop) -> list[tuple[tuple[str, int], ...]]:
    (group,) = await shop.admin.list_groups()
    return [member.partitions for member in group.members]


async def test_delayed_messages_survive_the_death_of_who_moves_them(shop: Shop) -> None:
    await delayed_over_kills(shop, kills=3, count=150)


@pytest.mark.soak
async def test_delayed_messages_survive_many_deaths(shop: Shop) -> None:
    await delayed_over_kills(shop, kills=60, count=20_000)


async def delayed_over_kills(shop: Shop, kills: int, count: int) -> None:
    await shop.put("first")
    end = time.time() + 0.3 * kills
    delays = [random.uniform(0.05, 0.3 * kills) for _ in range(count)]
    with Peer("consume", shop.path, group="waits"):  # somebody else may be elected first
        await shop.send(
            *(Outgoing(None, "orders", key=str(n), body=str(n).encode(), delay=delay) for n, delay in enumerate(delays))
        )
    await shop.engine.close()
    for _ in range(kills):
        with Peer("consume", shop.path, group="waits") as peer:
            await peer.saying("assigned")
            await asyncio.sleep(random.uniform(0.1, 0.3))
            peer.kill()
    await shop.engine.connect()
    async with shop.member(group="counts") as member:
        messages = await take(member, count + 1, ack=True)
        assert not await member.receive(10, max(0.3, end - time.time()))
    assert sorted(bodies(messages)) == sorted(["first", *map(str, range(count))])
