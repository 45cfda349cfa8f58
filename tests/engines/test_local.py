"""The local engine in one process: what it accepts, delivers, keeps and manages."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headwater import LocalBroker
from headwater.engine import Ack, Assigned, Change, Lost, Revoked, Source, Topic
from headwater.engines import engine_for
from headwater.engines.local import LocalEngine
from headwater.errors import (
    ConfigurationError,
    GroupNotFoundError,
    NotConnectedError,
    NotSupportedError,
    OffsetOutOfRangeError,
    PartitionLostError,
    StoreCorruptError,
    StoreNotFoundError,
    TopicNameError,
    TopicNotFoundError,
)
from headwater.log.store import Run, Store
from headwater.message import NO_HEADERS, Headers, Outgoing, Position

from .conftest import OpenShop, Shop, bodies, take
from .lagging import lag_is_right_under_load

# --- Sending -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "fsync"])
async def test_what_was_sent_comes_back_whole(open_shop: OpenShop, durability: str) -> None:
    shop = await open_shop(durability=durability)
    headers = Headers([("a", "1"), ("a", "2"), ("raw", b"\xff")])
    (receipt,) = await shop.send(Outgoing(None, "orders", key="käse", headers=headers, body=b"\x00body"))
    async with shop.reader() as reader:
        (message,) = await take(reader, 1)
    assert (message.topic, message.partition, message.offset) == ("orders", receipt.partition, receipt.offset)
    assert (message.body, message.key, message.headers) == (b"\x00body", "käse", headers)
    assert message.headers.get_bytes("raw") == b"\xff"
    assert abs(message.time - time.time()) < 60
    assert (message.group, message.attempt) == (None, 1)


async def test_a_small_send_of_a_process_durable_store_is_done_at_once(shop: Shop) -> None:
    await shop.put(0)
    receipts = shop.engine.send([Outgoing(None, "orders", body=b"x")])
    assert isinstance(receipts, list)


async def test_waiting_publishers_share_an_fsync(open_shop: OpenShop) -> None:
    shop = await open_shop(durability="fsync")
    await shop.put(0)
    syncs = 0
    sync = shop.engine.store.sync

    def counted(upto: int) -> None:
        nonlocal syncs
        syncs += 1
        sync(upto)

    shop.engine.store.sync = counted  # type: ignore[method-assign]
    await asyncio.gather(*(shop.put(n) for n in range(200)))
    assert syncs < 100


async def test_a_large_send_does_not_hold_the_loop(shop: Shop) -> None:
    await shop.put(0)
    threads = set[int]()
    append = shop.engine.store.append

    def watched(*args: object) -> object:
        threads.add(threading.get_ident())
        return append(*args)  # type: ignore[arg-type]

    shop.engine.store.append = watched  # type: ignore[method-assign, assignment]
    await shop.put("x" * 300_000)
    assert threads
    assert threading.get_ident() not in threads


async def test_a_key_keeps_its_partition_and_its_order(shop: Shop) -> None:
    receipts = await shop.send(*(Outgoing(None, "orders", key=str(n % 5), body=b"%d" % n) for n in range(100)))
    places = {n % 5: receipts[n].partition for n in range(100)}
    assert [r.partition for r in receipts] == [places[n % 5] for n in range(100)]
    assert [r.partition for r in await shop.put("again", key="3")] == [places[3]]
    async with shop.reader() as reader:
        messages = await take(reader, 101)
    fours = [int(m.body) for m in messages if m.key == "4"]
    assert fours == sorted(fours)


async def test_messages_without_a_key_stay_together_and_rotate(shop: Shop) -> None:
    used = [{r.partition for r in await shop.put(1, 2, 3)} for _ in range(8)]
    assert all(len(partitions) == 1 for partitions in used)
    assert set.union(*used) == set(range(8))  # type: ignore[arg-type]


async def test_receipts_come_in_the_order_of_the_messages(shop: Shop) -> None:
    sent = [Outgoing(None, f"t{n % 3}", key=str(n), body=b"%d" % n) for n in range(60)]
    receipts = await shop.send(*sent)
    assert [r.topic for r in receipts] == [m.topic for m in sent]
    async with shop.reader("t0", "t1", "t2") as reader:
        found = {(m.topic, m.partition, m.offset): m.body for m in await take(reader, 60)}
    assert [found[r.topic, r.partition, r.offset] for r in receipts] == [m.body for m in sent]


async def test_a_partition_that_is_not_there_is_refused_and_nothing_is_sent(shop: Shop) -> None:
    await shop.put(0)
    with pytest.raises(TopicNotFoundError, match="8 partitions"):
        await shop.send(Outgoing(None, "orders", body=b"a"), Outgoing(None, "orders", partition=8, body=b"b"))
    assert sum(p.messages for p in await shop.admin.list_partitions("orders")) == 1


async def test_an_unknown_topic_is_made_only_where_that_is_wanted(open_shop: OpenShop) -> None:
    shop = await open_shop(partitions=3)
    await shop.put(0, topic="new")
    assert len(await shop.admin.list_partitions("new")) == 3
    strict = await open_shop(auto_create=False)
    with pytest.raises(TopicNotFoundError, match="newer"):
        await strict.put(0, topic="newer")


async def test_names_that_nobody_could_type_are_refused(shop: Shop) -> None:
    for name in ("", "a\nb", "x" * 256, "a{b}", " a"):
        with pytest.raises(TopicNameError):
            shop.engine.check_topic(name)


# --- Opening -----------------------------------------------------------------------------------------


async def _nothing_moves(_change: Change) -> None: ...


async def test_a_reader_creates_nothing(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path / "nothing")
    with pytest.raises(NotConnectedError):
        await engine.declare([Topic("orders")], "create")
    await engine.connect()
    for group in (None, "readers"):
        with pytest.raises(StoreNotFoundError):
            async with engine.subscribe(Source(topics=("orders",), group=group), _nothing_moves):
                pass
    assert not (tmp_path / "nothing").exists()
    await engine.close()


async def test_who_makes_a_topic_makes_the_store(tmp_path: Path) -> None:
    async with LocalBroker(tmp_path / "new") as broker:
        await broker.admin.topics.create("orders", partitions=2)
        assert [topic.name for topic in await broker.admin.topics.list()] == ["orders"]


async def test_the_first_message_makes_the_store_unless_that_is_off(tmp_path: Path) -> None:
    for create in (True, False):
        engine = LocalEngine(tmp_path / str(create), create=create)
        await engine.connect()
        sent = engine.send([Outgoing(None, "orders", body=b"x")])
        assert not isinstance(sent, Sequence)
        if create:
            assert (await sent)[0].offset == 0
        else:
            with pytest.raises(StoreNotFoundError):
                await sent
        assert (tmp_path / str(create)).exists() == create
        await engine.close()


async def test_connecting_and_closing_may_be_repeated_and_leave_nothing_open(shop: Shop) -> None:
    await shop.engine.connect()
    await shop.put(1)
    await shop.engine.close()
    await shop.engine.close()
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await shop.engine.connect()
        async with shop.member() as member:
            await member.receive(1, 0.01)
        await shop.engine.close()
    assert set(os.listdir("/proc/self/fd")) == before
    assert not list((shop.path / "bells").glob("*.sock"))


async def test_a_url_names_the_directory_and_the_options(tmp_path: Path) -> None:
    engine = engine_for(f"local://{tmp_path}/data?durability=process&clean_interval=5&partitions=2")
    assert isinstance(engine, LocalEngine)
    assert engine.path == tmp_path / "data"
    assert (engine.durable, engine.partitions) == (False, 2)
    with pytest.raises(ConfigurationError, match="durable"):
        engine_for("local://x?durable=yes")


def test_a_group_can_do_everything_but_give_single_messages_back(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path)
    able = engine.capabilities(Source(topics=("orders",), group="shop"))
    assert able.ack is Ack.EACH
    assert able.exclusive
    assert able.atomic_commit
    assert able.counts_deliveries
    assert not able.nack
    assert engine.capabilities(Source(topics=("orders",))).ack is Ack.NONE


# --- Reading without a group --------------------------------------------------------------------------


async def test_reading_starts_where_it_is_told_to(shop: Shop) -> None:
    await shop.put(*range(5), partition=0)
    middle = datetime.now(UTC)
    await asyncio.sleep(0.005)
    await shop.put(*range(5, 10), partition=0)
    for start, first in (("earliest", "0"), (3, "3"), ({0: 7}, "7"), (middle, "5")):
        async with shop.reader(start=start, partitions=(0,)) as reader:
            assert bodies(await take(reader, 1))[0] == first
    async with shop.reader(start="latest", partitions=(0,)) as reader:
        assert not await reader.receive(10, 0.01)
        await shop.put("new", partition=0)
        assert bodies(await take(reader, 1)) == ["new"]


async def test_a_start_that_cannot_be_is_refused(shop: Shop) -> None:
    await shop.put(0)

    async def read(**fields: object) -> None:
        async with shop.reader(**fields):  # type: ignore[arg-type]
            pass

    with pytest.raises(ConfigurationError, match="one partition"):
        await read(start=0)
    with pytest.raises(OffsetOutOfRangeError):
        await read(start=99, partitions=(0,))
    with pytest.raises(ConfigurationError, match="aware"):
        await read(start=datetime(2020, 1, 1))
    with pytest.raises(TopicNotFoundError):
        await read(partitions=(8,))
    with pytest.raises(TopicNotFoundError):
        async with shop.reader("nothing"):
            pass


async def test_a_reader_may_go_anywhere_and_pause(shop: Shop) -> None:
    await shop.put(*range(10), partition=0)
    async with shop.reader(partitions=(0,)) as reader:
        await take(reader, 10)
        await reader.seek(Position("orders", 0, 8))
        assert bodies(await take(reader, 2)) == ["8", "9"]
        with pytest.raises(OffsetOutOfRangeError):
            await reader.seek(Position("orders", 0, 11))
        reader.pause(frozenset({("orders", 0)}))
        await shop.put("more", partition=0)
        assert not await reader.receive(10, 0.02)
        reader.resume(frozenset({("orders", 0)}))
        assert bodies(await take(reader, 1)) == ["more"]


async def test_every_reader_sees_everything_and_takes_no_part_in_groups(shop: Shop) -> None:
    await shop.put(*range(5))
    async with shop.reader() as one, shop.reader() as two:
        assert len(await take(one, 5)) == len(await take(two, 5)) == 5
        with pytest.raises(NotSupportedError):
            await one.commit((), ())
    assert not await shop.admin.list_groups()


async def test_a_pattern_takes_in_what_comes_later_from_its_beginning(shop: Shop) -> None:
    await shop.put("a", topic="orders.eu")
    async with shop.reader("orders.{region}", start="latest") as reader:
        await shop.put("b", topic="orders.us")
        await shop.put("no", topic="bills.us")
        await shop.put("c", topic="orders.eu")
        assert sorted(bodies(await take(reader, 2))) == ["b", "c"]
        assert not await reader.receive(10, 0.02)


async def test_a_deleted_topic_ends_its_readers(shop: Shop) -> None:
    await shop.put(0)
    async with shop.reader() as reader:
        await take(reader, 1)
        await shop.admin.delete_topic("orders")
        with pytest.raises(TopicNotFoundError):
            await reader.receive(1, 1)


# --- Waiting -----------------------------------------------------------------------------------------


async def test_a_waiting_receive_is_woken_by_a_send_and_not_by_looking(shop: Shop) -> None:
    await shop.put(0)
    async with shop.member() as member:
        await take(member, 1, ack=True)
        looks = shop.engine.bells.looks
        for n in range(50):
            waiting = asyncio.create_task(member.receive(10, 30))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await shop.put(n)
            assert bodies(list(await waiting)) == [str(n)]
        assert shop.engine.bells.looks == looks


async def test_a_quiet_receive_returns_in_time_and_costs_nothing(shop: Shop) -> None:
    await shop.put(0)
    async with shop.member() as member:
        await take(member, 1, ack=True)
        used, began = time.process_time(), time.monotonic()
        assert await member.receive(10, 1.0) == ()
        assert 0.9 < time.monotonic() - began < 3
        assert time.process_time() - used < 0.05


async def test_wake_ends_a_waiting_receive(shop: Shop) -> None:
    async with shop.member() as member:
        waiting = asyncio.create_task(member.receive(10, 1000))
        await asyncio.sleep(0.01)
        member.wake()
        assert await waiting == ()


async def test_a_reader_that_always_finds_something_lets_others_run(shop: Shop) -> None:
    for _ in range(50):
        await shop.put(*range(100), partition=0)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with shop.reader() as reader:
        task = asyncio.create_task(other())
        until = time.monotonic() + 0.1
        while time.monotonic() < until:
            assert await reader.receive(10, 1)
            await reader.seek(Position("orders", 0, 0))
        task.cancel()
    assert turns >= 3


# --- Groups ------------------------------------------------------------------------------------------


async def test_a_group_goes_on_where_it_was(open_shop: OpenShop) -> None:
    shop = await open_shop()
    await shop.put(*range(10), partition=0)
    async with shop.member() as member:
        messages = await take(member, 10)
        await member.ack([m for m in messages if m.offset not in (3, 7)])
    await shop.engine.close()
    again = await open_shop()
    async with again.member() as member:
        assert [(m.offset, m.attempt) for m in await take(member, 2)] == [(3, 1), (7, 1)]
        assert not await member.receive(10, 0.02)


async def test_the_start_counts_once_per_group(shop: Shop) -> None:
    await shop.put("old")
    async with shop.member(start="latest") as member:
        assert not await member.receive(10, 0.02)
    await shop.put("between")
    for start in ("latest", "earliest"):
        async with shop.member(start=start) as member:
            assert bodies(await take(member, 1)) == ["between"]


async def test_what_comes_later_to_a_group_starts_at_its_beginning(shop: Shop) -> None:
    await shop.put("old", topic="orders.eu")
    async with shop.member("orders.{region}", "late", start="latest") as member:
        assert not await member.receive(1, 0.01)
        await shop.put("us", topic="orders.us")
        await shop.put("late", topic="late")
        await shop.admin.add_partitions("orders.eu", 9)
        await shop.put("eu", topic="orders.eu", partition=8)
        assert sorted(bodies(await take(member, 3, ack=True))) == ["eu", "late", "us"]
        assert not await member.receive(1, 0.02)


async def test_an_app_of_two_subscriptions_shares_one_group_by_topic(shop: Shop) -> None:
    await shop.put("o", topic="orders")
    await shop.put("b", topic="bills")
    async with shop.member("orders") as orders, shop.member("bills") as bills:
        assert bodies(await take(orders, 1, ack=True)) == ["o"]
        assert bodies(await take(bills, 1, ack=True)) == ["b"]
    (group,) = await shop.admin.list_groups()
    assert (group.name, group.topics) == ("shop", ("bills", "orders"))


async def test_members_of_one_process_share_and_give_back(open_shop: OpenShop) -> None:
    one, two = await open_shop(), await open_shop()
    await one.put(0)
    first: list[Change] = []
    second: list[Change] = []
    async with one.member(changes=first):
        async with two.member(changes=second):
            while not second:
                await asyncio.sleep(0.005)
            (group,) = await one.admin.list_groups()
            assert sorted(len(member.partitions) for member in group.members) == [4, 4]
        while len(first) < 3:
            await asyncio.sleep(0.005)
    assert [(type(c), len(c.partitions)) for c in first] == [
        (Assigned, 8), (Revoked, 4), (Assigned, 4), (Revoked, 8),
    ]  # fmt: skip
    assert [(type(c), len(c.partitions)) for c in second] == [(Assigned, 4), (Revoked, 4)]
    assert first[2].epoch > first[0].epoch


async def test_an_exclusive_group_has_one_holder_and_a_successor(open_shop: OpenShop) -> None:
    one, two = await open_shop(), await open_shop()
    await one.put(0)
    second: list[Change] = []
    async with two.member(changes=second, exclusive=True, group="late"):
        pass
    second.clear()
    async with one.member(exclusive=True):
        waiting = two.member(changes=second, exclusive=True)
        await waiting.__aenter__()
        (group,) = [g for g in await one.admin.list_groups() if g.name == "shop"]
        assert sorted(len(member.partitions) for member in group.members) == [0, 8]
    while not second:
        await asyncio.sleep(0.005)
    assert len(second[0].partitions) == 8
    await waiting.__aexit__(None, None, None)


async def test_acknowledgements_of_a_partition_that_was_given_away_are_dropped(open_shop: OpenShop) -> None:
    one, two = await open_shop(), await open_shop()
    for partition in range(8):
        await one.put("m", partition=partition)
    async with one.member() as first:
        messages = await take(first, 8)
        async with two.member() as second:
            again = await take(second, 4)
            moved = {m.partition for m in again}
            await first.ack(messages)
            lag = {p.partition: p.lag for p in (await one.admin.lag("shop", "orders")).partitions}
            assert lag == {partition: int(partition in moved) for partition in range(8)}
            with pytest.raises(PartitionLostError):
                await first.commit([m for m in messages if m.partition in moved][:1], ())


async def test_a_paused_partition_waits_and_the_others_go_on(shop: Shop) -> None:
    await shop.put("zero", partition=0)
    await shop.put("one", partition=1)
    async with shop.member() as member:
        member.pause(frozenset({("orders", 0)}))
        assert bodies(await take(member, 1)) == ["one"]
        assert not await member.receive(1, 0.02)
        member.resume(frozenset({("orders", 0)}))
        assert bodies(await take(member, 1)) == ["zero"]


async def test_a_group_member_may_go_back(shop: Shop) -> None:
    await shop.put(*range(5), partition=0)
    async with shop.member() as member:
        await take(member, 5, ack=True)
        await member.seek(Position("orders", 0, 2))
        assert bodies(await take(member, 3, ack=True)) == ["2", "3", "4"]
        with pytest.raises(TopicNotFoundError):
            await member.seek(Position("orders", 9, 0))


async def test_no_more_is_delivered_than_can_be_told_apart(shop: Shop) -> None:
    for n in range(20):
        await shop.put(*range(n * 1000, n * 1000 + 1000), partition=0)
    async with shop.member() as member:
        found = []
        while messages := await member.receive(1000, 0.02):
            found += messages
        assert 11_000 <= len(found) < 20_000
        await member.ack(found[1:])
        assert not await member.receive(1, 0.02)
        await member.ack(found[:1])
        assert len(await take(member, 20_000 - len(found), ack=True)) == 20_000 - len(found)


async def test_messages_that_expire_under_a_group_are_passed_over(shop: Shop) -> None:
    await shop.put(*range(10), partition=0)
    async with shop.member() as member:
        await take(member, 3)
        await shop.admin.purge_topic("orders", {0: 6})
        assert bodies(await take(member, 4, ack=True)) == ["6", "7", "8", "9"]
        assert (await shop.admin.lag("shop", "orders")).total == 0


async def test_attempts_are_counted_on_from_what_was_begun(open_shop: OpenShop) -> None:
    one, two = await open_shop(), await open_shop()
    await one.put("x", partition=0)
    async with one.member(exclusive=True) as member:
        (message,) = await take(member, 1)
        message.attempt = 3
        member.begin(message)
    async with two.member() as member:
        assert (await take(member, 1))[0].attempt == 4


# --- Transactions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "fsync"])
async def test_a_commit_does_both_or_neither(open_shop: OpenShop, durability: str) -> None:
    shop = await open_shop(durability=durability)
    await shop.put(*range(4), partition=0)
    async with shop.member() as member:
        messages = await take(member, 4)
        bill = Outgoing(None, "bills", body=b"bill")
        (receipt,) = await member.commit(messages[:2], [bill])
        assert receipt.topic == "bills"
        with pytest.raises(ValueError, match="gap"):
            await member.commit(messages[3:], [bill])
        await member.ack(messages[2:3])
        await member.commit(messages[3:], [])
        assert (await shop.admin.lag("shop", "orders")).total == 0
    async with shop.reader("bills") as reader:
        assert bodies(await take(reader, 1)) == ["bill"]
        assert not await reader.receive(1, 0.02)


async def test_a_store_asks_before_it_commits(shop: Shop) -> None:
    await shop.put("x", partition=0)

    def refuse() -> None:
        raise RuntimeError("not yours")

    store = shop.engine.store
    stream = store.topic("orders").streams[0]
    with pytest.raises(RuntimeError, match="not yours"):
        store.append([Run(stream, (None,), (b"",), (b"y",))], guard=refuse)
    assert store.latest(stream) == 1


async def test_commits_one_after_the_other_need_not_wait_for_each_other(open_shop: OpenShop) -> None:
    shop = await open_shop(durability="fsync")
    await shop.put(*range(100), partition=0)
    async with shop.member() as member:
        messages = await take(member, 100)
        await asyncio.gather(*(member.commit([m], [Outgoing(None, "bills", body=m.body)]) for m in messages))
        assert (await shop.admin.lag("shop", "orders")).total == 0
    async with shop.reader("bills") as reader:
        assert sorted(bodies(await take(reader, 100))) == sorted(map(str, range(100)))


# --- Delay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "fsync"])
async def test_a_delayed_message_comes_when_it_is_due(open_shop: OpenShop, durability: str) -> None:
    shop = await open_shop(durability=durability)
    await shop.put("now")
    (receipt, later) = await shop.send(
        Outgoing(None, "orders", body=b"soon", key="k", headers={"h": "v"}, delay=0.2),
        Outgoing(None, "orders", body=b"at once"),
    )
    began = time.monotonic()
    assert (receipt.topic, receipt.offset) == ("orders", None)
    assert later.offset is not None
    async with shop.member() as member:
        messages = await take(member, 3, ack=True)
    assert 0.1 < time.monotonic() - began < 5
    assert bodies(messages)[-1] == "soon"
    assert (messages[-1].key, messages[-1].headers) == ("k", Headers({"h": "v"}))
    assert sorted(bodies(messages)) == ["at once", "now", "soon"]


async def test_a_delayed_message_of_a_transaction_is_part_of_it(shop: Shop) -> None:
    await shop.put("x", partition=0)
    async with shop.member() as member:
        messages = await take(member, 1)
        await member.commit(messages, [Outgoing(None, "orders", body=b"again", delay=0.05)])
        assert bodies(await take(member, 1, ack=True)) == ["again"]


async def test_what_cannot_be_delivered_later_is_refused_now(shop: Shop) -> None:
    await shop.put(0)
    with pytest.raises(TopicNotFoundError):
        await shop.put("x", partition=77, delay=5)


# --- Administration ------------------------------------------------------------------------------------


async def test_topics_are_declared_described_altered_and_deleted(shop: Shop) -> None:
    await shop.engine.declare([Topic("orders", 3, timedelta(days=1), 1000)], "create")
    await shop.put(1, 2)
    (topic,) = await shop.admin.list_topics()
    assert (topic.name, topic.partitions, topic.messages, topic.internal) == ("orders", 3, 2, False)
    assert (topic.retention, topic.retention_bytes) == (timedelta(days=1), 1000)
    await shop.admin.alter_topic("orders", None, None, ())
    assert (await shop.admin.list_topics())[0].retention is None
    with pytest.raises(TopicNotFoundError, match="bills"):
        await shop.engine.declare([Topic("orders"), Topic("bills")], "check")
    await shop.admin.delete_topic("orders")
    assert not await shop.admin.list_topics()


async def test_what_administration_says_is_what_the_files_have(shop: Shop) -> None:
    await shop.engine.declare([Topic("orders", 2, timedelta(days=1))], "create")
    await shop.put(*range(100), partition=1)
    topic = await shop.admin.describe_topic("orders")
    segments = sum(path.stat().st_size for path in shop.path.glob("*.log"))
    with Store.open(shop.path) as store:  # another reader of the same files
        entry = store.topic("orders")
        ends = [(store.earliest(stream), store.latest(stream)) for stream in entry.streams]
        sizes = store.sizes()
    assert topic.size == sum(sizes[stream] for stream in entry.streams)
    assert 100 < topic.size <= segments
    assert (topic.messages, topic.retention) == (100, timedelta(seconds=entry.retention or 0))
    assert topic.config["streams"] == ", ".join(map(str, entry.streams))
    assert (topic.config["store"], topic.config["durability"]) == (str(shop.path), "process")
    assert [(p.earliest, p.latest) for p in await shop.admin.list_partitions("orders")] == ends
    with pytest.raises(TopicNotFoundError, match="bills"):
        await shop.admin.describe_topic("bills")


async def test_lag_is_right_under_load(tmp_path: Path) -> None:
    async with LocalBroker(tmp_path / "store", durability="process", partitions=2) as broker:
        await broker.declare([Topic("orders")])
        await lag_is_right_under_load(broker, "orders", "shop", 20_000, behind=0.2)


async def test_partitions_only_grow(shop: Shop) -> None:
    await shop.put(0)
    await shop.admin.add_partitions("orders", 10)
    assert len(await shop.admin.list_partitions("orders")) == 10
    with pytest.raises(ConfigurationError, match="only grows"):
        await shop.admin.add_partitions("orders", 9)


async def test_purging_goes_by_offset_time_or_everything(shop: Shop) -> None:
    await shop.put(*range(10), partition=0)
    await shop.admin.purge_topic("orders", {0: 4})
    assert (await shop.admin.list_partitions("orders"))[0].earliest == 4
    await shop.admin.purge_topic("orders", datetime.now(UTC) - timedelta(hours=1))
    assert (await shop.admin.list_partitions("orders"))[0].earliest == 4
    await shop.admin.purge_topic("orders", None)
    assert (await shop.admin.list_partitions("orders"))[0].messages == 0


async def test_a_group_is_moved_only_while_nobody_is_in_it(shop: Shop) -> None:
    await shop.put(*range(5), partition=0)
    async with shop.member() as member:
        await take(member, 5, ack=True)
        with pytest.raises(ConfigurationError, match="live members"):
            await shop.admin.set_offsets("shop", "orders", {0: 0})
        with pytest.raises(ConfigurationError, match="live members"):
            await shop.admin.delete_group("shop")
    await shop.admin.set_offsets("shop", "orders", {0: 2})
    with pytest.raises(OffsetOutOfRangeError):
        await shop.admin.set_offsets("shop", "orders", {0: 9})
    assert (await shop.admin.lag("shop", None)).total == 3
    async with shop.member() as member:
        assert bodies(await take(member, 3, ack=True)) == ["2", "3", "4"]
    await shop.admin.delete_group("shop")
    with pytest.raises(GroupNotFoundError):
        await shop.admin.lag("shop", None)


async def test_a_damaged_position_is_named_and_a_reset_is_the_way_out(shop: Shop) -> None:
    await shop.put(*range(5), partition=3)
    async with shop.member() as member:
        await take(member, 5, ack=True)
    (cursors,) = (shop.path / "groups" / "shop").glob("*.cursors")
    content = bytearray(cursors.read_bytes())
    content[3 * (len(content) // 8) + 66] ^= 4
    cursors.write_bytes(content)
    with pytest.raises(StoreCorruptError, match=r"'orders'\[3\].*groups reset"):
        async with shop.member():
            pass
    await shop.admin.set_offsets("shop", "orders", {3: 2})
    async with shop.member() as member:
        assert bodies(await take(member, 3)) == ["2", "3", "4"]


async def test_a_damaged_group_is_named_and_deleting_it_is_the_way_out(shop: Shop) -> None:
    await shop.put("x")
    async with shop.member() as member:
        await take(member, 1, ack=True)
    (state,) = (shop.path / "groups" / "shop").glob("state.*")
    content = bytearray(state.read_bytes())
    content[20] ^= 1
    state.write_bytes(content)
    with pytest.raises(StoreCorruptError, match="delete the group"):
        async with shop.member():
            pass
    await shop.admin.delete_group("shop")
    async with shop.member() as member:
        await take(member, 1, ack=True)


async def test_lag_names_what_is_left(shop: Shop) -> None:
    await shop.put(*range(5), partition=2)
    async with shop.member() as member:
        messages = await take(member, 5)
        await member.ack([messages[0], messages[3]])
        lag = await shop.admin.lag("shop", "orders")
    assert lag.total == 3
    assert [(p.committed, p.latest, p.lag) for p in lag.partitions if p.partition == 2] == [(1, 5, 3)]
    with pytest.raises(GroupNotFoundError):
        await shop.admin.lag("nobody", None)


async def test_groups_with_strange_names_are_kept_apart(shop: Shop) -> None:
    await shop.put(0)
    names = ["a/b", "a.b", "..", "ä ö", "x" * 300]
    for name in names:
        async with shop.member(group=name) as member:
            await take(member, 1, ack=True)
    assert sorted(group.name for group in await shop.admin.list_groups()) == sorted(names)


async def test_a_recreated_topic_begins_anew_for_its_groups(shop: Shop) -> None:
    await shop.put(*range(5))
    changes: list[Change] = []
    async with shop.member(changes=changes) as member:
        await take(member, 5, ack=True)
        await shop.admin.delete_topic("orders")
        while not any(isinstance(change, Lost) for change in changes):
            await asyncio.sleep(0.005)
        await shop.put("new")
        assert bodies(await take(member, 1)) == ["new"]


async def test_health_and_cluster_say_how_it_stands(shop: Shop) -> None:
    assert (await shop.admin.health()).healthy
    cluster = await shop.admin.describe_cluster()
    assert cluster.engine == "local"
    assert cluster.nodes[0].address == str(shop.path)


async def test_offsets_at_a_time(shop: Shop) -> None:
    await shop.put("a", partition=0)
    await asyncio.sleep(0.005)
    moment = datetime.now(UTC)
    await shop.put("b", partition=0)
    assert (await shop.admin.offsets_at("orders", moment))[0] == 1


async def test_expired_messages_are_cleaned_away_by_one_process(open_shop: OpenShop) -> None:
    one, two = await open_shop(clean_interval=0.05), await open_shop(clean_interval=0.05)
    cleaned: list[str] = []
    for name, shop in (("one", one), ("two", two)):
        clean = shop.engine.upkeep.clean

        def noted(name: str = name, clean: object = clean) -> None:
            cleaned.append(name)
            clean()  # type: ignore[operator]

        shop.engine.upkeep.clean = noted  # type: ignore[method-assign]
    await one.engine.declare([Topic("orders", 1, timedelta(seconds=0.01))], "create")
    await one.put(*range(10))
    while (await one.admin.list_partitions("orders"))[0].messages:
        await asyncio.sleep(0.02)
    assert len(set(cleaned)) == 1


async def test_headers_that_repeat_are_decoded_once(shop: Shop) -> None:
    await shop.put(1, 2, headers=Headers({"content-type": "application/json"}), partition=0)
    await shop.put(3, partition=0)
    async with shop.reader() as reader:
        one, two, three = await take(reader, 3)
    assert one.headers is two.headers
    assert three.headers is NO_HEADERS


async def test_a_connection_given_up_while_it_opens_leaves_no_file_open(shop: Shop) -> None:
    await shop.put(0)
    held = set(os.listdir("/proc/self/fd"))
    engine = LocalEngine(shop.path)
    for turns in range(20):
        connecting = asyncio.create_task(engine.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        await engine.close()
    assert set(os.listdir("/proc/self/fd")) <= held
