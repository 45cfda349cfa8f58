"""Messages that a client pushed are received one after the other, and the client hears when there is room."""

from __future__ import annotations

import asyncio

import pytest

from headwater import Message
from headwater.inbox import Inbox


def message(n: int) -> Message:
    return Message("orders", str(n).encode())


def numbers(messages: object) -> list[int]:
    return [int(one.body) for one in messages]  # type: ignore[attr-defined]  # a sequence of messages


def filled(size: int, count: int) -> tuple[Inbox, list[str]]:
    told = list[str]()
    inbox = Inbox(size, lambda: told.append("room"))
    for n in range(count):
        inbox.put(message(n))
    return inbox, told


async def test_what_was_put_is_received_in_order_and_never_more_than_asked_for() -> None:
    inbox, _ = filled(10, 5)
    assert numbers(await inbox.receive(2, 1)) == [0, 1]
    assert numbers(await inbox.receive(10, 1)) == [2, 3, 4]
    assert len(inbox) == 0


async def test_a_waiting_receive_gets_what_is_put_at_once() -> None:
    inbox, _ = filled(10, 0)
    waiting = asyncio.create_task(inbox.receive(10, 30))
    await asyncio.sleep(0)
    inbox.put(message(1))
    assert numbers(await asyncio.wait_for(waiting, 1)) == [1]


async def test_a_quiet_receive_gives_nothing_after_its_wait_and_a_woken_one_at_once() -> None:
    inbox, _ = filled(10, 0)
    assert await inbox.receive(10, 0.001) == []
    waiting = asyncio.create_task(inbox.receive(10, 30))
    await asyncio.sleep(0)
    inbox.wake()
    assert await asyncio.wait_for(waiting, 1) == []
    inbox.wake()  # also before it waits
    assert await asyncio.wait_for(inbox.receive(10, 30), 1) == []


async def test_a_full_inbox_takes_no_more_and_tells_once_half_of_it_is_free() -> None:
    inbox, told = filled(4, 4)
    assert inbox.full
    assert not inbox.put(message(4))
    await inbox.receive(1, 1)
    assert not inbox.full
    assert told == []
    await inbox.receive(1, 1)
    assert told == ["room"]
    await inbox.receive(2, 1)
    assert told == ["room"]


async def test_a_client_that_looks_before_it_puts_hears_of_room_too() -> None:
    inbox, told = filled(2, 2)
    await inbox.receive(10, 1)
    assert told == ["room"]
    inbox.put(message(2))
    await inbox.receive(10, 1)
    assert told == ["room"]


async def test_an_inbox_of_one_message_has_room_again_once_it_is_received() -> None:
    inbox, told = filled(1, 1)
    await inbox.receive(1, 1)
    assert told == ["room"]


async def test_a_paused_inbox_takes_messages_and_gives_none_until_it_is_resumed() -> None:
    inbox, _ = filled(10, 1)
    inbox.pause()
    assert await inbox.receive(10, 0.001) == ()
    waiting = asyncio.create_task(inbox.receive(10, 30))
    await asyncio.sleep(0)
    inbox.put(message(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    inbox.resume()
    assert numbers(await asyncio.wait_for(waiting, 1)) == [0, 1]


async def test_a_paused_inbox_can_be_woken() -> None:
    inbox, _ = filled(10, 1)
    inbox.pause()
    inbox.wake()
    assert await asyncio.wait_for(inbox.receive(10, 30), 1) == ()


async def test_a_failure_is_raised_after_what_came_before_it() -> None:
    inbox, _ = filled(10, 2)
    inbox.fail(ConnectionError("gone"))
    assert numbers(await inbox.receive(10, 1)) == [0, 1]
    with pytest.raises(ConnectionError, match="gone"):
        await inbox.receive(10, 1)


async def test_a_failure_ends_a_waiting_receive() -> None:
    inbox, _ = filled(10, 0)
    waiting = asyncio.create_task(inbox.receive(10, 30))
    await asyncio.sleep(0)
    inbox.fail(ConnectionError("gone"))
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(waiting, 1)


async def test_a_failure_of_a_paused_inbox_waits_for_what_came_before_it() -> None:
    inbox, _ = filled(10, 1)
    inbox.pause()
    inbox.fail(ConnectionError("gone"))
    assert await inbox.receive(10, 0.001) == ()
    inbox.resume()
    assert numbers(await inbox.receive(10, 1)) == [0]
    with pytest.raises(ConnectionError):
        await inbox.receive(10, 1)


async def test_what_was_not_received_can_be_taken_out_to_be_given_back() -> None:
    inbox, told = filled(2, 2)
    assert numbers(inbox.clear()) == [0, 1]
    assert len(inbox) == 0
    assert inbox.put(message(2))
    assert told == []


async def test_a_burst_is_received_whole_while_the_client_is_held_back_and_let_go() -> None:
    source = iter(range(1000))
    inbox: Inbox

    def push() -> None:
        while not inbox.full and (n := next(source, None)) is not None:
            inbox.put(message(n))

    inbox, got = Inbox(16, push), list[int]()
    push()
    while len(got) < 1000:
        messages = await inbox.receive(5, 1)
        assert len(messages) <= 5
        got += numbers(messages)
    assert got == list(range(1000))
