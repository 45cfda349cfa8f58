"""What an app does on top of the engine."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import pytest

from ...app import App
from ...broker import Broker
from ...errors import HeadwaterError
from ...message import Message, Outgoing, Receipt
from ...retry import Retry
from .needs import needs
from .tools import MakeBroker, nothing_more, reading, settled, taken


class Apps:
    """What an app does on top of the engine."""

    @needs("groups", "settles")
    async def test_a_failing_message_is_retried_and_kept_as_a_dead_letter(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, attempts = App(group, make_broker(), topics=[f"{topic}.dead"]), list[int]()

        @app.subscriber(topic, retry=Retry(attempts=3, backoff=(0.01, 0.01)))
        async def handle(body: dict[str, int], message: Message) -> None:
            attempts.append(message.attempt)
            raise ValueError("never")

        async with app, reading(broker, f"{topic}.dead", f"{group}-dead") as dead:
            await app.publish({"a": 1}, topic, key="k")
            (letter,) = await taken(dead, 1)
            assert attempts == [1, 2, 3]
            assert letter.value == {"a": 1}
            assert letter.headers["hw-exception"] == "ValueError: never"
            assert (letter.headers["hw-topic"], letter.headers["hw-group"]) == (topic, group)
            assert letter.headers["hw-attempts"] == "3"

    @needs("groups", "settles", "replay", "admin.list_topics")
    async def test_a_dead_letter_is_replayed_for_its_group(
        self, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, good, seen, fails = App(group, make_broker()), list[int](), list[int](), [True]

        @app.subscriber(topic, retry=None)
        async def handle(n: int) -> None:
            if fails[0]:
                raise ValueError
            good.append(n)

        @app.subscriber(topic, group=f"{group}-other")
        async def audit(n: int) -> None:
            seen.append(n)

        async def letters(count: int) -> bool:
            return len(await app.admin.dead.list(topic)) == count

        async with app:
            await app.publish_many([Outgoing(n, topic, key="k") for n in range(3)])
            await settled(lambda: letters(3))
            fails[0] = False
            assert await app.admin.dead.replay(topic) == 3
            await settled(lambda: good == [0, 1, 2])
            assert await letters(0)
            await settled(lambda: seen == [0, 1, 2])

    @needs("groups", "settles", "keys")
    async def test_order_by_key_holds_through_retries(self, make_broker: MakeBroker, topic: str, group: str) -> None:
        app, seen = App(group, make_broker()), defaultdict[str | None, list[int]](list)

        @app.subscriber(topic, concurrency=16, order_by="key", retry=Retry(attempts=3, backoff=(0.005, 0.01)))
        async def handle(n: int, message: Message) -> None:
            await asyncio.sleep(0)
            if n % 11 == 0 and message.attempt == 1:
                raise ValueError("once more")
            seen[message.key].append(n)

        async with app:
            await app.publish_many([Outgoing(n, topic, key=f"k{n % 20}") for n in range(400)])
            await settled(lambda: sum(map(len, seen.values())) == 400)
        assert all(numbers == sorted(numbers) for numbers in seen.values())

    @needs("groups", "settles")
    async def test_a_stopped_app_goes_on_where_it_was(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, got = App(group, make_broker()), list[int]()

        @app.subscriber(topic)
        async def handle(n: int) -> None:
            got.append(n)

        for round_ in range(3):
            async with app:
                await broker.publish(2 * round_, topic, key="k")
                await settled(lambda: len(got) == 2 * round_ + 1)  # noqa: B023
            await broker.publish(2 * round_ + 1, topic, key="k")
        async with app:
            await settled(lambda: len(got) == 6)
        assert got == list(range(6))

    @needs("groups", "settles")
    async def test_a_failing_message_is_called_no_more_often_than_it_is_tried(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, calls, others = App(group, make_broker(), topics=[f"{topic}.dead"]), list[float](), list[int]()

        @app.subscriber(topic, concurrency=2, retry=Retry(attempts=4, backoff=(0.2, 0.2), jitter=False))
        async def handle(n: int) -> None:
            if n:
                others.append(n)
                return
            calls.append(time.monotonic())
            raise ValueError("never")

        async with app, reading(broker, f"{topic}.dead", f"{group}-dead") as dead:
            await broker.publish_many([Outgoing(n, topic) for n in range(30)])
            await settled(lambda: len(others) == 29)
            assert len(calls) < 4
            await taken(dead, 1)
            assert await nothing_more(dead)
        assert len(calls) == 4
        assert all(later - earlier >= 0.19 for earlier, later in pairwise(calls))

    @needs("groups", "settles")
    async def test_a_stop_under_load_loses_and_doubles_nothing(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, done = App(group, make_broker()), list[int]()

        @app.subscriber(topic, concurrency=16)
        async def handle(n: int) -> None:
            await asyncio.sleep(0.01)  # longer than publishing takes, on every engine
            done.append(n)

        async with app:
            await broker.publish_many([Outgoing(n, topic, key=str(n)) for n in range(600)])
            await settled(lambda: len(done) >= 100)
        assert len(done) < 600
        async with app:
            await settled(lambda: len(done) >= 600)
        assert sorted(done) == list(range(600))

    @needs("groups", "settles")
    async def test_a_message_whose_result_cannot_be_published_comes_again(
        self, broker: Broker, make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch, topic: str, group: str
    ) -> None:
        results = f"{topic}-results"
        app, calls = App(group, make_broker(), topics=[results]), list[int]()

        @app.subscriber(topic, retry=Retry(attempts=100, backoff=(0.2, 0.2)))
        @app.publisher(results)
        async def handle(n: int) -> int:
            calls.append(n)
            return n

        def refuse(messages: Sequence[Outgoing]) -> Sequence[Receipt]:
            raise HeadwaterError("this test refuses it")

        async with app:
            with monkeypatch.context() as patch:
                patch.setattr(app.broker.engine, "send", refuse)
                await broker.publish(1, topic)
                await settled(lambda: calls)
                await app.drain()
        async with reading(broker, results, f"{group}-out") as out, app:
            assert [message.value for message in await taken(out, 1)] == [1]
        assert set(calls) == {1}

    @needs("groups")
    async def test_handlers_share_messages_by_filter_and_another_group_gets_them_all(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        app, odd, rest, every = App(group, make_broker()), list[int](), list[int](), list[int]()

        @app.subscriber(topic, filter=lambda message: message.value % 2 == 1, dead_letter=False)
        async def take_odd(n: int) -> None:
            odd.append(n)

        @app.subscriber(topic, dead_letter=False)
        async def take_rest(n: int) -> None:
            rest.append(n)

        @app.subscriber(topic, group=f"{group}-2", dead_letter=False)
        async def take_all(n: int) -> None:
            every.append(n)

        async with app:
            await broker.publish_many([Outgoing(n, topic) for n in range(20)])
            await settled(lambda: len(odd) + len(rest) == 20 and len(every) == 20)
        assert (sorted(odd), sorted(rest)) == (list(range(1, 20, 2)), list(range(0, 20, 2)))
        assert sorted(every) == list(range(20))

    @needs("groups", "atomic_commit")
    async def test_exactly_once_publishes_each_result_once(
        self, broker: Broker, make_broker: MakeBroker, topic: str, group: str
    ) -> None:
        results, failed = f"{topic}-results", set[int]()
        app = App(group, make_broker(), topics=[results])

        @app.subscriber(topic, exactly_once=True, retry=Retry(attempts=3, backoff=(0.001, 0.001)))
        @app.publisher(results)
        async def handle(n: int) -> AsyncIterator[int]:
            yield n
            if n % 7 == 0 and n not in failed:
                failed.add(n)
                raise ValueError("half-way")

        async with reading(broker, results, f"{group}-out") as out:
            for first in range(0, 60, 20):
                async with app:
                    await broker.publish_many([Outgoing(n, topic, key=str(n % 3)) for n in range(first, first + 20)])
                    await settled(lambda: len(failed) >= (first + 20) // 7)  # noqa: B023
            async with app:
                numbers = [message.value for message in await taken(out, 60)]
                assert await nothing_more(out)
        assert sorted(numbers) == list(range(60))
