"""What an app does on top of the engine."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator

from ...app import App
from ...broker import Broker
from ...message import Message, Outgoing
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

    @needs("groups", "settles", "replay", "admin.list_partitions")
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
