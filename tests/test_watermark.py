"""Single acknowledgements turned into an offset, by themselves and in the loop of a subscription."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import App, Batch, BatchError, Broker, Message, NotSupportedError, Outgoing, Retry, Topic, worker
from headwater.engine import Ack, Lost, Revoked
from headwater.engines.memory import received
from headwater.watermark import Watermark
from recording import RecordingEngine, recording
from waiting import until


def message(offset: int, partition: int = 0, topic: str = "orders") -> Message:
    return Message(topic, b"", partition=partition, offset=offset)


# --- by itself ----------------------------------------------------------------------------------------


def test_what_is_done_in_order_is_released_at_once() -> None:
    mark, first, second = Watermark(), message(0), message(1)
    mark.add([first, second])
    assert mark.done(first) == [first]
    assert mark.done(second) == [second]
    assert len(mark) == 0


def test_what_is_done_early_waits_for_what_came_before_it() -> None:
    mark, messages = Watermark(), [message(n) for n in range(4)]
    mark.add(messages)
    assert mark.done(messages[2]) == []
    assert mark.done(messages[1]) == []
    assert mark.done(messages[0]) == messages[:3]
    assert len(mark) == 1


def test_partitions_wait_for_themselves_alone() -> None:
    mark, slow, fast = Watermark(), message(0, 0), message(0, 1)
    mark.add([slow, fast])
    assert mark.done(fast) == [fast]
    assert mark.held() == Counter({("orders", 0): 1})


def test_offsets_may_have_gaps_and_need_no_order() -> None:
    mark, messages = Watermark(), [message(n) for n in (7, 12, 3)]
    mark.add(messages)
    assert mark.done(messages[1]) == []
    assert mark.done(messages[0]) == messages[:2]
    assert mark.done(messages[2]) == [messages[2]]


def test_what_is_done_on_a_partition_that_left_releases_nothing() -> None:
    mark, old = Watermark(), [message(n) for n in range(3)]
    mark.add(old)
    mark.drop([("orders", 0), ("never", 7)])
    again = [message(n) for n in range(3)]
    mark.add(again)
    assert [mark.done(one) for one in old] == [[], [], []]
    assert not mark.holds(old[0])
    assert mark.holds(again[0])
    assert mark.done(again[0]) == [again[0]]
    assert mark.done(again[0]) == []


class Model:
    """The same, naively: lists that are searched."""

    def __init__(self) -> None:
        self.received: dict[tuple[str, int], list[Message]] = defaultdict(list)
        self.over: list[Message] = []

    def done(self, one: Message) -> list[Message]:
        self.over.append(one)
        queue = self.received[one.topic, one.partition or 0]
        released = list(itertools.takewhile(lambda first: first in self.over, queue))
        del queue[: len(released)]
        return released

    def kept(self) -> list[Message]:
        return [one for queue in self.received.values() for one in queue]


@given(st.lists(st.tuples(st.sampled_from(["add", "done", "done", "drop"]), st.integers(0, 2), st.integers(0, 50))))
def test_any_order_of_done_drops_and_new_messages_agrees_with_a_naive_model(
    steps: list[tuple[str, int, int]],
) -> None:
    mark, model, known, offsets = Watermark(), Model(), list[Message](), itertools.count()
    for step, partition, number in steps:
        place = ("orders", partition)
        if step == "add":
            new = [message(next(offsets), partition) for _ in range(number % 5)]
            known += new
            mark.add(new)
            model.received[place] += new
        elif step == "drop":
            mark.drop([place])
            model.received[place].clear()
        elif known:
            one = known[number % len(known)]
            assert mark.done(one) == model.done(one)
        assert len(mark) == len(model.kept())
        assert +mark.held() == Counter((one.topic, one.partition or 0) for one in model.kept())
        assert all(mark.holds(one) == (one in model.kept() and one not in model.over) for one in known)


# --- in the loop of a subscription --------------------------------------------------------------------

ORDERS = [Topic("orders", partitions=3)]


class Gate:
    """Handlers wait here until it opens."""

    def __init__(self) -> None:
        self.inside: list[Any] = []
        self.open = asyncio.Event()

    async def enter(self, who: Any) -> None:
        self.inside.append(who)
        await self.open.wait()


def places(messages: list[Message]) -> list[tuple[int | None, int | str | None]]:
    return [(one.partition, one.offset) for one in messages]


def acknowledged(engine: RecordingEngine) -> list[tuple[int | None, int | str | None]]:
    return [place for messages in engine.calls("ack") for place in places(messages)]


class Accounts:
    """What is over, and what was acknowledged although something below it was not."""

    def __init__(self, engine: RecordingEngine) -> None:
        self.handled: set[tuple[int | None, int | str | None]] = set()
        self.wrong: list[Message] = []
        self._engine = engine
        engine.before["ack"] = engine.before["commit"] = self._check

    @property
    def over(self) -> set[tuple[int | None, int | str | None]]:
        letters = received(self._engine.store, "orders.dead")
        return self.handled | {(int(one.headers["hw-partition"]), int(one.headers["hw-offset"])) for one in letters}

    def _check(self, messages: Any) -> None:
        over = self.over
        for one in messages:
            if any((one.partition, offset) not in over for offset in range(one.offset)):
                self.wrong.append(one)

    def note(self, one: Message) -> None:
        self.handled.add((one.partition, one.offset))


async def publish(broker: Broker, count: int, partition: int | None = None, first: int = 0) -> None:
    await broker.publish_many(
        [
            Outgoing(n, "orders", partition=n % 3 if partition is None else partition)
            for n in range(first, first + count)
        ]
    )


async def lag(broker: Broker) -> int:
    return (await broker.admin.groups.lag("shop", "orders")).total


def done(broker: Broker) -> Callable[[], Any]:
    async def nothing_left() -> bool:
        return await lag(broker) == 0

    return nothing_left


@pytest.mark.parametrize("crash", [False, True], ids=["stop", "crash"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order_by", [None, "key"])
async def test_nothing_is_acknowledged_above_what_is_not_done(seed: int, crash: bool, order_by: Any) -> None:
    broker, engine = recording(ack=Ack.UP_TO, delayed_send=False)
    app, accounts, chance = App("shop", broker, topics=ORDERS), Accounts(engine), random.Random(seed)

    @app.subscriber(
        "orders", start="earliest", concurrency=16, order_by=order_by, retry=Retry(attempts=3, backoff=(0.001, 0.01))
    )
    async def handle(n: int, message: Message) -> None:
        await asyncio.sleep(chance.choice([0, 0, 0.001, 0.003]))
        if n % 7 == 0:
            raise ValueError("never")
        if chance.random() < 0.2:
            raise ValueError("not now")
        accounts.note(message)

    async with app:
        await broker.publish_many([Outgoing(n, "orders", key=f"k{n % 10}") for n in range(400)])
        await until(lambda: len(accounts.over) > 100)
        if crash:
            for running in app.consuming:
                running.task.cancel()
            await asyncio.gather(*(running.task for running in app.consuming), return_exceptions=True)
    assert accounts.wrong == engine.went_back == []
    async with app:
        await until(done(broker))
    assert len(accounts.over) == 400
    assert accounts.wrong == engine.went_back == []


async def test_what_was_done_ahead_comes_again_after_a_stop() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, calls = App("shop", broker, topics=ORDERS), list[int]()

    @app.subscriber("orders", start="earliest", concurrency=2, dead_letter=False)
    async def handle(n: int) -> None:
        calls.append(n)
        if n == 0 and calls.count(0) == 1:
            raise Retry.later(30)

    async with app:
        await publish(broker, 3, partition=0)
        await until(lambda: len(calls) == 3)
    assert acknowledged(engine) == []
    async with app:
        await until(done(broker))
    assert sorted(calls) == [0, 0, 1, 1, 2, 2]


async def test_a_revoked_partition_is_drained_and_acknowledged_and_the_rest_dropped() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, gate = App("shop", broker, topics=ORDERS), Gate()

    @app.subscriber("orders", start="earliest", concurrency=3, order_by="partition")
    async def handle(n: int, message: Message) -> None:
        await gate.enter((message.partition, n))

    async with app:
        await publish(broker, 9)
        await until(lambda: len(gate.inside) == 3)
        leaving = asyncio.create_task(engine.change(Revoked(frozenset({("orders", 0)}), 1)))
        await asyncio.sleep(0.01)
        assert not leaving.done()
        gate.open.set()
        await leaving
        assert (0, 0) in acknowledged(engine)
        await until(lambda: len(gate.inside) == 7)
    assert {place for place in acknowledged(engine) if place[0] == 0} == {(0, 0)}
    assert {n for partition, n in gate.inside if partition == 0} == {0}


async def test_what_fails_while_its_partition_is_drained_is_left_to_the_next_owner() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, gate, calls = App("shop", broker, topics=ORDERS), Gate(), list[int]()

    @app.subscriber("orders", start="earliest", concurrency=4, retry=Retry(backoff=(0, 0)))
    async def handle(n: int) -> None:
        calls.append(n)
        await gate.enter(n)
        if n == 0:
            raise ValueError

    async with app:
        await publish(broker, 3, partition=0)
        await until(lambda: len(calls) == 3)
        leaving = asyncio.create_task(engine.change(Revoked(frozenset({("orders", 0)}), 1)))
        gate.open.set()
        await leaving
        await asyncio.sleep(0.01)
    assert sorted(calls) == [0, 1, 2]
    assert acknowledged(engine) == []


async def test_a_revoked_partition_waits_for_its_acknowledgement_on_the_way() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, arrives, asked = App("shop", broker, topics=ORDERS), asyncio.Event(), asyncio.Event()

    def slowly(_messages: Any) -> Any:
        asked.set()
        return arrives.wait()

    engine.before["ack"] = slowly

    @app.subscriber("orders", start="earliest")
    async def handle(n: int) -> None: ...

    async with app:
        await publish(broker, 1, partition=0)
        await asked.wait()
        leaving = asyncio.create_task(engine.change(Revoked(frozenset({("orders", 0)}), 1)))
        await asyncio.sleep(0.01)
        assert not leaving.done()
        arrives.set()
        await leaving
        assert acknowledged(engine) == [(0, 0)]


@pytest.mark.parametrize("ack", [Ack.UP_TO, Ack.EACH])
async def test_nothing_of_a_lost_partition_is_acknowledged(ack: Ack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "ACK_WAIT", 60)  # what is done waits for company
    broker, engine = recording(ack=ack)
    app, gate = App("shop", broker, topics=ORDERS), Gate()

    @app.subscriber("orders", start="earliest", concurrency=2)
    async def handle(n: int) -> None:
        if n in (1, 3, 4):
            await gate.enter(n)

    async with app:
        await publish(broker, 1, partition=2)
        await until(lambda: acknowledged(engine) == [(2, 0)])
        await publish(broker, 1, partition=0, first=2)  # done, and not acknowledged while the lanes have work
        await publish(broker, 1, partition=1, first=3)
        await publish(broker, 1, partition=1, first=4)
        await until(lambda: sorted(gate.inside) == [3, 4])
        before = acknowledged(engine)
        await engine.change(Lost(frozenset({("orders", 0)}), 1))
        gate.open.set()
        await until(lambda: len(acknowledged(engine)) >= len(before) + 2)
    assert [place for place in acknowledged(engine) if place[0] == 0] == [place for place in before if place[0] == 0]


async def test_a_message_whose_partition_was_lost_is_not_tried_again_here() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, gate, calls = App("shop", broker, topics=ORDERS), Gate(), list[int]()

    @app.subscriber("orders", start="earliest", concurrency=2, retry=Retry(backoff=(0, 0)))
    async def handle(n: int) -> None:
        calls.append(n)
        await gate.enter(n)
        raise ValueError

    async with app:
        await publish(broker, 2, partition=0)
        await until(lambda: len(calls) == 2)
        await engine.change(Lost(frozenset({("orders", 0)}), 1))
        gate.open.set()
        await asyncio.sleep(0.01)
        (running,) = app.consuming
        assert running.worker.parked == running.worker.busy == 0
    assert sorted(calls) == [0, 1]
    assert acknowledged(engine) == []


async def test_on_receive_is_acknowledged_before_its_handler_and_once() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, late, calls = App("shop", broker, topics=ORDERS), list[int](), list[int]()

    @app.subscriber("orders", start="earliest", concurrency=8, ack="on_receive", retry=Retry(backoff=(0, 0.01)))
    async def handle(n: int, message: Message) -> None:
        calls.append(n)
        if (message.partition, message.offset) not in acknowledged(engine):
            late.append(n)
        await asyncio.sleep(0)
        if message.attempt == 1 and n % 5 == 0:
            raise ValueError

    async with app:
        await publish(broker, 60)
        await until(lambda: len(calls) == 72)
    assert late == []
    assert sorted(acknowledged(engine)) == [(p, n) for p in range(3) for n in range(20)]
    assert engine.went_back == []


def test_on_receive_in_an_order_of_its_own_is_refused() -> None:
    broker, _ = recording(ack=Ack.UP_TO)
    app = App("shop", broker)

    @app.subscriber("orders", ack="on_receive", order_by="key")
    async def handle(n: int) -> None: ...

    with pytest.raises(NotSupportedError, match="leave out order_by"):
        asyncio.run(app.start())


async def test_messages_settled_by_hand_are_acknowledged_without_gaps() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, kept = App("shop", broker, topics=ORDERS), dict[int, Message]()

    @app.subscriber("orders", start="earliest", concurrency=4, ack="manual")
    async def handle(n: int, message: Message) -> None:
        kept[n] = message

    async with app:
        await publish(broker, 4, partition=0)
        await until(lambda: len(kept) == 4)
        await kept[2].ack()
        await kept[1].reject("of no use")
        assert acknowledged(engine) == []
        await kept[0].ack()
        assert acknowledged(engine) == [(0, 0), (0, 1), (0, 2)]
    assert acknowledged(engine) == [(0, 0), (0, 1), (0, 2)]


async def test_a_batch_is_acknowledged_up_to_its_first_failure() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, accounts, calls = App("shop", broker, topics=ORDERS), Accounts(engine), list[list[int]]()
    retried = asyncio.Event()

    @app.subscriber("orders", start="earliest", batch=Batch(6, 0.01), retry=Retry(backoff=(0.02, 0.02)))
    async def handle(numbers: list[int]) -> None:
        calls.append(numbers)
        if len(calls) == 1:
            accounts.handled |= {(0, n) for n in numbers if n != 2}
            raise BatchError({2: ValueError("not this one")})
        accounts.handled.add((0, 2))
        retried.set()

    async with app:
        await publish(broker, 6, partition=0)
        await until(lambda: acknowledged(engine) == [(0, 0), (0, 1)])
        await retried.wait()
        await until(done(broker))
    assert calls == [[0, 1, 2, 3, 4, 5], [2]]
    assert accounts.wrong == engine.went_back == []


async def test_a_transaction_is_never_followed_by_an_older_acknowledgement() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, batches = App("shop", broker, topics=ORDERS), list[list[int]]()

    @app.subscriber("orders", start="earliest", batch=Batch(4, 0.02), exactly_once=True)
    @app.publisher("sums")
    async def add(numbers: list[int]) -> AsyncIterator[int]:
        batches.append(numbers)
        yield sum(numbers)

    async with app:
        orders = [Outgoing(n, "orders", partition=0) for n in range(4)]
        for skipped in (1, 3):
            orders[skipped].headers = {"hw-only-group": "another"}
        await broker.publish_many(orders)
        await until(done(broker))
    assert batches == [[0, 2]]
    assert [places(messages) for messages in engine.calls("commit")] == [[(0, 0), (0, 2)]]
    assert acknowledged(engine) == [(0, 3)]
    assert engine.went_back == []


async def test_transactions_with_failures_commit_each_partition_without_gaps() -> None:
    broker, engine = recording(ack=Ack.UP_TO)
    app, accounts = App("shop", broker, topics=ORDERS), Accounts(engine)

    @app.subscriber("orders", start="earliest", concurrency=8, exactly_once=True, retry=Retry(3, (0.001, 0.002)))
    @app.publisher("results")
    async def handle(n: int, message: Message) -> int:
        await asyncio.sleep(0)
        if n % 5 == 0 and message.attempt < 3:
            raise ValueError
        accounts.note(message)
        return n

    async with app:
        await publish(broker, 90)
        await until(done(broker))
        results = [m.value async for m in app.stream("results", start="earliest", limit=90)]
    assert sorted(results) == list(range(90))
    assert accounts.wrong == engine.went_back == []


async def test_too_much_behind_one_message_pauses_its_partition_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "MAX_AHEAD", 1500)
    broker, engine = recording(ack=Ack.UP_TO)
    app, gate, handled = App("shop", broker, topics=ORDERS), Gate(), Counter[int]()

    first = frozenset({("orders", 0)})

    @app.subscriber("orders", start="earliest", concurrency=4)
    async def handle(n: int, message: Message) -> None:
        handled[message.partition or 0] += 1
        if n == 0:
            await gate.enter(n)

    async with app:
        await publish(broker, 4000, partition=0)
        await publish(broker, 1000, partition=1, first=4000)
        await until(lambda: handled[1] == 1000)
        await until(lambda: [detail for call, _, detail in engine.log if call == "pause"] == [first])
        assert handled[0] <= 1500
        assert acknowledged(engine).count((0, 0)) == 0
        gate.open.set()
        await until(done(broker))
    assert handled[0] == 4000
    assert [detail for call, _, detail in engine.log if call == "resume"] == [first]


async def test_many_partitions_that_hold_a_few_each_are_not_paused_and_resumed_at_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "MAX_AHEAD", 1500)
    broker, engine = recording(ack=Ack.UP_TO)
    app = App("shop", broker, topics=[Topic("orders", partitions=12)])
    gates = defaultdict[tuple[int, int], asyncio.Event](asyncio.Event)

    @app.subscriber("orders", start="earliest", concurrency=1000)
    async def handle(n: int, message: Message) -> None:
        assert isinstance(message.offset, int)
        if message.offset % 10 == 0:
            await gates[message.partition or 0, message.offset].wait()

    def pauses() -> int:
        return sum(1 for call, _, _ in engine.log if call == "pause")

    async def more(count: int) -> None:
        await broker.publish_many([Outgoing(n, "orders", partition=n % 12) for n in range(12 * count)])

    async with app:
        await more(120)  # nearly all that may be ahead, in equal parts
        await until(lambda: app.consuming[0].worker.busy == 12 * 12)
        await more(800)
        await until(lambda: pauses() >= 10)
        before, log = pauses(), [detail for call, _, detail in engine.log if call == "pause"]
        ((_, paused),) = log[0]
        for step in range(8):
            gates[paused, 10 * step].set()
            await until(lambda: (paused, 10 * step + 9) in acknowledged(engine))  # noqa: B023
        assert pauses() - before <= 1
        for gate in [gates[partition, offset] for partition in range(12) for offset in range(0, 920, 10)]:
            gate.set()
        await until(done(broker))
