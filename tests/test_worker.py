"""The loop of a subscription: beside each other, in order, parked, paused, drained, moved."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest

from headwater import App, Batch, Broker, Message, Outgoing, Retry, TestApp, Topic, worker
from headwater.testing import VirtualClock
from recording import RecordingEngine, recording
from waiting import until


async def lag(broker: Broker, group: str = "shop", topic: str = "orders") -> int:
    return (await broker.admin.groups.lag(group, topic)).total


async def nothing_left(broker: Broker) -> bool:
    return await lag(broker) == 0


class Gate:
    """Handlers wait here; a test sees who is inside and lets them go."""

    def __init__(self) -> None:
        self.inside: list[Any] = []
        self.most = 0
        self._changed = asyncio.Condition()
        self._open = asyncio.Event()

    async def enter(self, who: Any) -> None:
        async with self._changed:
            self.inside.append(who)
            self.most = max(self.most, len(self.inside))
            self._changed.notify_all()
        try:
            await self._open.wait()
        finally:
            self.inside.remove(who)

    async def holds(self, count: int) -> None:
        async with self._changed, asyncio.timeout(5):
            await self._changed.wait_for(lambda: len(self.inside) >= count)

    def open(self) -> None:
        self._open.set()


async def test_concurrency_handles_so_many_beside_each_other_and_no_more() -> None:
    app, gate = App("shop", "memory://"), Gate()

    @app.subscriber("orders", concurrency=4)
    async def handle(body: int) -> None:
        await gate.enter(body)

    async with app:
        await app.publish_many([Outgoing(n, "orders") for n in range(10)])
        await gate.holds(4)
        gate.open()
        await app.drain()
        assert gate.most == 4
        assert await lag(app.broker) >= 0


async def test_the_messages_of_one_key_stay_in_order_while_sixteen_lanes_run() -> None:
    app, seen, running, most = App("shop"), defaultdict[str, list[int]](list), defaultdict[str, int](int), []

    @app.subscriber("orders", concurrency=16, order_by="key", retry=Retry(attempts=3, backoff=(1, 1)))
    async def handle(n: int, message: Message) -> None:
        key = message.key or ""
        running[key] += 1
        most.append((running[key], sum(running.values())))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running[key] -= 1
        if n % 17 == 0 and message.attempt == 1:
            raise ValueError("once more")
        seen[key].append(n)

    async with TestApp(app) as t:
        await app.publish_many([Outgoing(n, "orders", key=f"k{n % 40}") for n in range(800)])
        await t.advance(300)
    assert sum(map(len, seen.values())) == 800
    assert all(numbers == sorted(numbers) for numbers in seen.values())
    assert max(one for one, _ in most) == 1
    assert max(total for _, total in most) > 4


async def test_messages_without_a_key_have_no_order_to_keep() -> None:
    app, gate = App("shop", "memory://"), Gate()

    @app.subscriber("orders", concurrency=3, order_by="key")
    async def handle(n: int) -> None:
        await gate.enter(n)

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(3)])
        await gate.holds(3)
        gate.open()


async def test_order_by_a_function_keeps_the_order_of_its_values() -> None:
    app, seen = App("shop"), defaultdict[str, list[int]](list)

    @app.subscriber("orders", concurrency=8, order_by=lambda m: m.headers["customer"], retry=Retry(backoff=(1, 1)))
    async def handle(n: int, message: Message) -> None:
        await asyncio.sleep(0)
        if n % 5 == 0 and message.attempt == 1:
            raise ValueError
        seen[message.headers["customer"]].append(n)

    async with TestApp(app) as t:
        for n in range(60):
            await t.publish(n, "orders", partition=0, headers={"customer": str(n % 3)})
        await t.advance(60)
    assert sum(map(len, seen.values())) == 60
    assert all(numbers == sorted(numbers) for numbers in seen.values())


async def test_one_lane_keeps_the_order_of_a_partition_while_others_go_on_during_backoff() -> None:
    app, seen = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=(10, 10), jitter=False))
    async def handle(name: str) -> None:
        seen.append(name)
        if seen == ["a1"]:
            raise ValueError

    async with TestApp(app) as t:
        for name, partition in (("a1", 0), ("a2", 0), ("b1", 1), ("a3", 0), ("b2", 1)):
            await t.publish(name, "orders", partition=partition)
        assert seen == ["a1", "b1", "b2"]
        await t.advance(10)
    assert seen == ["a1", "b1", "b2", "a1", "a2", "a3"]


async def test_order_by_partition_runs_partitions_beside_each_other() -> None:
    app, gate = App("shop", "memory://"), Gate()

    @app.subscriber("orders", concurrency=4, order_by="partition")
    async def handle(body: str) -> None:
        await gate.enter(body)

    async with app:
        await app.publish_many([Outgoing(f"{p}-{n}", "orders", partition=p) for n in range(2) for p in range(3)])
        await gate.holds(3)
        assert sorted(gate.inside) == ["0-0", "1-0", "2-0"]
        gate.open()


async def test_a_parked_message_holds_no_slot() -> None:
    app, done = App("shop"), []

    @app.subscriber("orders", concurrency=2, retry=Retry(attempts=2, backoff=(30, 30)))
    async def handle(n: int) -> None:
        if n < 50:
            raise ValueError
        done.append(n)

    async with TestApp(app) as t:
        await app.publish_many([Outgoing(n, "orders") for n in range(60)])
        await t.settle()
        assert sorted(done) == list(range(50, 60))
        assert app.consuming[0].worker.parked == 50


async def test_too_many_messages_behind_parked_ones_pause_their_partition_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "MAX_AHEAD", 20)
    app, seen = App("shop"), []

    @app.subscriber("orders", retry=Retry(attempts=2, backoff=(30, 30)))
    async def handle(body: tuple[str, int]) -> None:
        seen.append(body)
        if seen == [("bad", 0)]:
            raise ValueError

    async with TestApp(app) as t:
        await app.publish(("bad", 0), "orders", partition=0)
        await app.publish_many([Outgoing(("bad", n), "orders", partition=0) for n in range(1, 60)])
        for n in range(100):
            await app.publish(("good", n), "orders", partition=1)
        await until(lambda: len(seen) == 101)
        (running,) = app.consuming
        assert [body for body in seen if body[0] == "good"] == [("good", n) for n in range(100)]
        assert sum(1 for _ in running.worker._lineup) <= 40
        await t.advance(60)
        assert [body for body in seen if body[0] == "bad"][1:] == [("bad", n) for n in range(60)]
        assert await lag(app.broker) == 0


async def test_manual_messages_up_to_the_limit_do_not_stall_once_they_are_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "MAX_AHEAD", 4)
    app, kept = App("shop", "memory://"), asyncio.Queue[Message]()

    @app.subscriber("orders", ack="manual", concurrency=2)
    async def handle(message: Message) -> None:
        kept.put_nowait(message)

    async with app, asyncio.timeout(5):
        await app.publish_many([Outgoing(n, "orders") for n in range(20)])
        for _ in range(5):
            for message in [await kept.get() for _ in range(4)]:
                await message.ack()
        assert await lag(app.broker) == 0


async def test_a_slow_handler_holds_back_the_intake() -> None:
    app, gate = App("shop", "memory://"), Gate()

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        await gate.enter(n)

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(5000)])
        await gate.holds(1)
        (running,) = app.consuming
        assert len(running.worker._lineup.ready) <= 1001
        running.worker.stop_soon()
        gate.open()


async def test_a_stop_finishes_what_is_in_work_and_gives_back_what_was_not_begun() -> None:
    app, gate, done = App("shop", "memory://"), Gate(), []

    @app.subscriber("orders", concurrency=2)
    async def handle(n: int) -> None:
        await gate.enter(n)
        done.append(n)

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(10)])
        await gate.holds(2)
        draining = asyncio.create_task(app.drain())
        await asyncio.sleep(0)
        gate.open()
        await draining
        assert sorted(done) == [0, 1]
        assert await lag(app.broker) == 8
    async with app:
        await until(lambda: nothing_left(app.broker))
    assert sorted(done) == list(range(10))


async def test_a_stop_leaves_messages_in_backoff_to_the_next_start_with_their_count() -> None:
    app, attempts = App("shop", "memory://"), []

    @app.subscriber("orders", retry=Retry(attempts=4, backoff=(0, 0)))
    async def handle(n: int, message: Message) -> None:
        attempts.append(message.attempt)
        if len(attempts) < 3:
            raise ValueError("at once again")
        if len(attempts) == 3:
            raise Retry.later(3600)

    async with app:
        await app.publish(1, "orders")
        await until(lambda: len(attempts) == 3)
    async with app:
        await until(lambda: len(attempts) == 4)
    assert attempts == [1, 2, 3, 4]


async def test_a_message_that_was_deferred_often_is_not_taken_for_a_killer_after_a_restart() -> None:
    app, calls = App("shop", "memory://"), []

    @app.subscriber("orders", retry=Retry(attempts=2))
    async def handle(n: int) -> None:
        calls.append(n)
        if len(calls) < 8:
            raise Retry.later(0 if len(calls) < 7 else 3600)

    async with app:
        await app.publish(1, "orders")
        await until(lambda: len(calls) == 7)
    async with app:
        await until(lambda: nothing_left(app.broker))
        assert await app.admin.dead.list("orders") == []
    assert len(calls) == 8


async def test_the_graceful_timeout_cancels_what_takes_longer_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    app, gate, cancelled = App("shop", "memory://", graceful_timeout=0.02), Gate(), []

    @app.subscriber("orders")
    async def stubborn(n: int) -> None:
        try:
            await gate.enter(n)
        except asyncio.CancelledError:
            cancelled.append(n)
            raise

    async with app:
        await app.publish(7, "orders")
        await gate.holds(1)
        await app.drain()
        assert cancelled == [7]
        assert await lag(app.broker) == 1
    assert "stubborn did not finish within 0.02 s" in caplog.text


async def test_two_members_share_the_partitions_and_each_message_is_handled_once() -> None:
    seen: dict[str, list[int]] = {"a": [], "b": []}
    done = asyncio.Semaphore(0)

    def member(name: str) -> App:
        app = App("shop", "memory://two-members")

        @app.subscriber("orders", concurrency=4)
        async def handle(n: int) -> None:
            seen[name].append(n)
            done.release()

        return app

    async with member("a") as a, member("b"), asyncio.timeout(5):
        await a.publish_many([Outgoing(n, "orders", key=str(n)) for n in range(200)])
        for _ in range(200):
            await done.acquire()
    assert sorted(seen["a"] + seen["b"]) == list(range(200))
    assert seen["a"]
    assert seen["b"]


async def test_partitions_that_move_are_drained_first_and_failed_messages_go_with_them() -> None:
    gate, handled = Gate(), []

    def member(name: str) -> App:
        app = App("shop", "memory://moving", topics=[Topic("orders", partitions=2)], graceful_timeout=1)

        @app.subscriber("orders", concurrency=4, order_by="partition", retry=Retry(attempts=9, backoff=(0.001, 0.001)))
        async def handle(n: int, message: Message) -> None:
            handled.append((name, n, message.partition))
            if name == "a":
                await gate.enter(n)
                raise ValueError("not here")

        return app

    a, b = member("a"), member("b")
    async with a:
        await a.publish_many([Outgoing(p, "orders", partition=p) for p in range(2)])
        await gate.holds(2)
        joining = asyncio.create_task(b.start())
        await asyncio.sleep(0)
        gate.open()
        await joining
        await until(lambda: any(name == "b" for name, _, _ in handled))
        (moved,) = {partition for name, _, partition in handled if name == "b"}
        before = len([1 for name, _, partition in handled if name == "a" and partition == moved])
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert len([1 for name, _, partition in handled if name == "a" and partition == moved]) == before
        await b.shutdown()


async def test_a_topic_made_inside_a_handler_does_not_wait_for_that_handler() -> None:
    app, made = App("shop", "memory://", graceful_timeout=0.1), asyncio.Event()

    @app.subscriber("orders.{region}", concurrency=2)
    async def handle(body: int, region: str) -> None:
        if region == "eu":
            await app.admin.topics.create("orders.us", partitions=4)
            made.set()

    async with app, asyncio.timeout(5):
        await app.publish(1, "orders.eu")
        await made.wait()


async def test_exclusive_gives_everything_to_one_member_while_it_lives() -> None:
    seen: list[str] = []
    got = asyncio.Semaphore(0)

    def member(name: str) -> App:
        app = App("shop", "memory://exclusive")

        @app.subscriber("orders", exclusive=True)
        async def handle(n: int) -> None:
            seen.append(name)
            got.release()

        return app

    first, second = member("a"), member("b")
    async with second.broker as broker:
        await first.start()
        await second.start()
        for n in range(10):
            await broker.publish(n, "orders", key=str(n))
            await got.acquire()
        await first.shutdown()
        for n in range(10):
            await broker.publish(n, "orders", key=str(n))
            await got.acquire()
        await second.shutdown()
    assert seen == ["a"] * 10 + ["b"] * 10


async def test_acknowledgements_that_fail_are_logged_and_the_worker_goes_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headwater.engines.memory import MemorySubscription

    async def refuse(self: Any, messages: Any) -> None:
        raise OSError("the line is dead")

    app, seen = App("shop"), []

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        seen.append(n)

    async with TestApp(app) as t:
        monkeypatch.setattr(MemorySubscription, "ack", refuse)
        await t.publish(1, "orders")
        await t.publish(2, "orders")
    assert seen == [1, 2]
    assert "could not acknowledge 1 message(s)" in caplog.text


async def test_a_subscription_that_fails_stops_the_app_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.engines.memory import MemorySubscription

    async def broken(self: Any, limit: int, wait: float) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(MemorySubscription, "receive", broken)
    app = App("shop", "memory://")

    @app.subscriber("orders")
    async def handle(n: int) -> None: ...

    with pytest.raises(OSError, match="the disk is gone"):
        await asyncio.wait_for(app.run(), 5)
    assert not app.is_ready


# --- leases, and what is given back -------------------------------------------------------------------


def settled_with(engine: RecordingEngine, call: str) -> list[set[Any]]:
    """What each call of a kind was given."""
    return [{message.value for message in messages} for messages in engine.calls(call)]


async def test_the_lease_is_extended_on_what_waits_is_parked_or_handled_and_on_nothing_settled() -> None:
    broker, engine = recording(lease=0.03, partitions=False)
    app, gate = App("shop", broker), Gate()

    @app.subscriber("orders", concurrency=2)
    async def handle(n: int) -> None:
        if n == 1:
            raise Retry.later(30)
        await gate.enter(n)

    async with app:
        for n in range(4):
            await app.publish(n, "orders", partition=0)
        await until(lambda: {0, 1, 2, 3} in settled_with(engine, "extend"))
        gate.open()
        await until(lambda: not app.consuming[0].worker.busy)
        engine.log.clear()
        await until(lambda: len(engine.calls("extend")) == 3)
        assert settled_with(engine, "extend") == [{1}] * 3


async def test_the_lease_is_extended_on_all_of_a_batch() -> None:
    broker, engine = recording(lease=0.03)
    app, gate = App("shop", broker), Gate()

    @app.subscriber("orders", batch=Batch(3, 0.001))
    async def handle(numbers: list[int]) -> None:
        await gate.enter(numbers)

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(3)])
        await until(lambda: {0, 1, 2} in settled_with(engine, "extend"))
        gate.open()


async def test_a_lease_that_cannot_be_extended_is_a_warning_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    broker, engine = recording(lease=0.03)
    app, gate, failures = App("shop", broker), Gate(), [ConnectionError("away")]

    def fail(_messages: Any) -> None:
        if failures:
            raise failures.pop()

    engine.before["extend"] = fail

    @app.subscriber("orders")
    async def handle(n: int) -> None:
        await gate.enter(n)

    async with app:
        await app.publish(1, "orders")
        await until(lambda: bool(engine.calls("extend")))
        gate.open()
    assert caplog.text.count("could not extend the lease on 1 message(s), others may be given them: away") == 1


async def test_no_lease_is_extended_on_what_its_handler_settled_already() -> None:
    broker, engine = recording(lease=0.03, partitions=False)
    app, gate = App("shop", broker), Gate()

    @app.subscriber("orders", ack="manual", concurrency=2)
    async def by_hand(n: int, message: Message) -> None:
        if n == 0:
            await message.ack()
        await gate.enter(n)
        if n == 1:
            await message.ack()

    @app.subscriber("others", ack="on_receive", concurrency=2)
    async def on_receive(n: int) -> None:
        if n == 0:
            raise Retry.later(30)
        await gate.enter(n)

    async with app:
        for n in range(3):
            await app.publish(n, "orders", partition=0)
        for n in range(3):
            await app.publish(10 + n if n else 0, "others", partition=0)
        await until(lambda: len(gate.inside) == 4)
        await app.publish(20, "others", partition=0)
        await until(lambda: {1, 2} in settled_with(engine, "extend") and {20} in settled_with(engine, "extend"))
        gate.open()
        assert not set().union(*settled_with(engine, "extend")) & {0, 11, 12}


async def test_a_stop_gives_parked_messages_back_with_the_rest_of_their_wait() -> None:
    clock = VirtualClock()
    broker, engine = recording(clock=clock, nack=True, delayed_nack=True, partitions=False)
    app, attempts = App("shop", broker), list[int]()

    @app.subscriber("orders")
    async def handle(n: int, message: Message) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            raise Retry.later(30)

    async with app:
        await app.publish(1, "orders")
        await until(lambda: app.consuming[0].worker.parked == 1)
        clock.stand_at(clock.time() + 10)
    assert [(call, detail) for call, _, detail in engine.log] == [("nack", pytest.approx(20))]
    async with app:
        assert not clock.fire_next(clock.time() + 19)
        assert attempts == [1]
        assert clock.fire_next(clock.time() + 21)
        await until(lambda: nothing_left(broker))
    assert attempts == [1, 2]


@pytest.mark.parametrize(
    ("can", "options"),
    [
        ({"delayed_nack": False}, {}),
        ({"partitions": True}, {"concurrency": 1}),
        ({}, {"order_by": "key"}),
        ({}, {"ack": "on_receive"}),
    ],
    ids=["cannot", "order of a partition", "order of a key", "acknowledged already"],
)
async def test_a_stop_gives_nothing_back_that_the_source_cannot_keep_in_order_or_knows_is_done(
    can: dict[str, Any], options: dict[str, Any]
) -> None:
    broker, engine = recording(**{"nack": True, "delayed_nack": True, "partitions": False, **can})
    app = App("shop", broker)

    @app.subscriber("orders", **{"concurrency": 2, **options})
    async def handle(n: int) -> None:
        raise Retry.later(30)

    async with app:
        await app.publish(1, "orders", key="k")
        await until(lambda: app.consuming[0].worker.parked == 1)
    assert engine.calls("nack") == []


async def test_a_stop_goes_on_when_a_parked_message_cannot_be_given_back(caplog: pytest.LogCaptureFixture) -> None:
    broker, engine = recording(nack=True, delayed_nack=True, partitions=False)
    app, refused = App("shop", broker), [ConnectionError("away")]

    def refuse(_messages: Any) -> None:
        if refused:
            raise refused.pop()

    engine.before["nack"] = refuse

    @app.subscriber("orders", concurrency=2)
    async def handle(n: int) -> None:
        raise Retry.later(30)

    async with app:
        await app.publish_many([Outgoing(n, "orders", partition=0) for n in range(2)])
        await until(lambda: app.consuming[0].worker.parked == 2)
    assert caplog.text.count("could not give back orders/0/0: away") == 1
    assert settled_with(engine, "nack") == [{1}]
