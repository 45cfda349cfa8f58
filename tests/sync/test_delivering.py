"""Messages under way: how many there may be, how long they wait, and when they are given up or tried again."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, wait

import pytest

from headwater import (
    AuthenticationError,
    ConfigurationError,
    ConnectError,
    DeliveryUnknownError,
    Outgoing,
    Receipt,
    SyncBroker,
    TooManyInFlightError,
)
from headwater.broker import PublishNext
from headwater.sync import DeliveryFuture, Stats

from .engines import Fickle, Late, Stalling, kept, on
from .processes import finish, start


def soon(face: SyncBroker, count: int, **options: object) -> list[DeliveryFuture]:
    return [face.publish_soon(n, "t", **options) for n in range(count)]  # type: ignore[arg-type]  # its options


# --- how many -----------------------------------------------------------------------------------------


def test_a_full_face_blocks_until_there_is_room() -> None:
    engine = Stalling()
    with SyncBroker(on(engine), max_in_flight=3) as face:
        soon(face, 3)
        waiting = threading.Thread(target=lambda: face.publish("fourth", "t"))
        waiting.start()
        with pytest.raises(TooManyInFlightError) as full:
            face.publish("fifth", "t", timeout=0.1)
        assert (full.value.topic, full.value.limit) == ("t", 3)
        assert waiting.is_alive()
        engine.open()
        waiting.join(5)
        assert kept(engine) == [b"0", b"1", b"2", b"fourth"]
        assert face.stats == Stats(delivered=4)


def test_a_full_face_raises_at_once_if_asked_to() -> None:
    engine = Stalling()
    with SyncBroker(on(engine), max_in_flight=2, when_full="raise") as face:
        soon(face, 2)
        begin = time.monotonic()
        with pytest.raises(TooManyInFlightError, match="max_in_flight"):
            face.publish_soon("third", "t")
        with pytest.raises(TooManyInFlightError):
            face.publish_many([Outgoing(3, "t")])
        assert time.monotonic() - begin < 1
        engine.open()
        assert face.flush()
        assert kept(engine) == [b"0", b"1"]


def test_a_full_face_drops_and_counts_if_asked_to() -> None:
    engine = Stalling()
    with SyncBroker(on(engine), max_in_flight=2, when_full="drop") as face:
        soon(face, 2)
        dropped = face.publish_soon("third", "t")
        assert isinstance(dropped.exception(0), TooManyInFlightError)
        with pytest.raises(TooManyInFlightError):
            face.publish("fourth", "t")
        engine.open()
        assert face.flush()
        assert kept(engine) == [b"0", b"1"]
        assert face.stats == Stats(delivered=2, lost=2)


def test_more_than_max_in_flight_at_once_are_published_in_one_batch() -> None:
    with SyncBroker("memory://", max_in_flight=10) as face:
        assert len(face.publish_many([Outgoing(n, "t") for n in range(50)])) == 50


@pytest.mark.parametrize("options", [{"max_in_flight": 0}, {"when_full": "explode"}])
def test_a_limit_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="max_in_flight"):
        SyncBroker("memory://", **options)  # type: ignore[arg-type]  # that is the point


def test_memory_is_bounded_while_the_server_is_away() -> None:
    engine = Late(connects=10**9)
    face = SyncBroker(on(engine), max_in_flight=100, when_full="drop", exit_timeout=0.1)
    futures = soon(face, 5_000, timeout=60)
    assert face.stats == Stats(queued=100, lost=4_900)
    assert sum(future.done() for future in futures) == 4_900
    face.close()
    assert face.stats == Stats(lost=5_000)


# --- how long -----------------------------------------------------------------------------------------


def test_flush_says_whether_all_is_settled() -> None:
    engine = Stalling()
    with SyncBroker(on(engine)) as face:
        soon(face, 3)
        assert not face.flush(0.05)
        assert face.stats == Stats(in_flight=3)
        engine.open()
        assert face.flush(5)
        assert face.stats == Stats(delivered=3)


def test_a_publish_that_is_not_confirmed_in_time_is_unknown_and_given_up() -> None:
    engine = Stalling()
    with SyncBroker(on(engine)) as face:
        with pytest.raises(DeliveryUnknownError) as unknown:
            face.publish("one", "t", timeout=0.1)
        assert (unknown.value.topic, unknown.value.timeout) == ("t", 0.1)
        until(lambda: engine.cancelled == ["t"])
        engine.open()
        assert face.stats == Stats(failed=1)
    assert kept(engine) == []


def test_a_delivery_waited_for_too_short_is_given_up_before_its_own_time() -> None:
    engine = Stalling()
    with SyncBroker(on(engine)) as face:
        delivery = face.publish_soon("one", "t", timeout=60)
        with pytest.raises(DeliveryUnknownError):
            delivery.result(0.05)
        until(lambda: engine.cancelled == ["t"])
        assert delivery.cancelled()
        with pytest.raises(CancelledError):
            delivery.result()


def test_a_send_goes_on_as_long_as_somebody_waits_for_a_message_in_it() -> None:
    engine = Stalling()
    with SyncBroker(on(engine)) as face:
        together = threading.Event()
        engine._loop.call_soon_threadsafe(together.wait, 5)  # so that they leave in one send
        one, other = soon(face, 2)
        together.set()
        until(lambda: len(engine.asked) == 2)
        assert one.cancel()
        assert not wait([other], timeout=0.05).done
        engine.open()
        assert other.result().topic == "t"
        assert engine.cancelled == []


def test_what_was_not_sent_yet_is_never_sent_once_its_time_is_over() -> None:
    engine = Late(connects=2)
    face = SyncBroker(on(engine))
    with pytest.raises(ConnectError, match="connection refused"):
        face.publish("too late", "t", timeout=0.01)
    face.publish("in time", "t")
    assert kept(engine) == [b"in time"]
    assert face.stats == Stats(delivered=1, failed=1)
    face.close()


def test_deliveries_nobody_waits_for_end_in_time_too() -> None:
    face = SyncBroker(on(Late(connects=10**9)))
    futures = soon(face, 10, timeout=0.2)
    assert not wait(futures, timeout=3).not_done
    assert all(isinstance(future.exception(), ConnectError) for future in futures)
    assert face.stats == Stats(failed=10)
    face.close()


def test_cancelling_takes_back_what_was_not_sent() -> None:
    engine = Late(connects=3)
    face = SyncBroker(on(engine))
    one, other = soon(face, 2)
    assert one.cancel()
    assert one.cancel()
    assert one in wait([one], timeout=1).done
    assert other.result().topic == "t"
    assert not other.cancel()
    assert kept(engine) == [b"1"]
    assert face.stats == Stats(delivered=1, failed=1)
    face.close()


def test_an_interrupted_publish_is_cancelled() -> None:
    script = """
        import signal
        from sync.engines import Stalling, kept, on
        from headwater import SyncBroker

        engine = Stalling()
        face = SyncBroker(on(engine), exit_timeout=0.5)
        face.connect()
        print("ready", flush=True)
        try:
            face.publish("one", "t", timeout=60)
        except KeyboardInterrupt:
            print("interrupted", face.stats.failed, face.stats.in_flight)
        while not engine.cancelled:
            pass
        engine.open()
        face.close()
        print(kept(engine), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    """
    process = start(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)  # until it waits: a signal before that would interrupt something else
    process.send_signal(signal.SIGINT)
    assert finish(process) == ("interrupted 1 0\n[] True\n", "")


# --- again --------------------------------------------------------------------------------------------


def test_a_server_that_comes_later_gets_what_was_published_before() -> None:
    engine = Late(connects=2)
    face = SyncBroker(on(engine))
    assert face.publish("early", "t").topic == "t"
    assert engine.tries == 3
    face.close()


def test_what_was_certainly_not_accepted_is_tried_again_in_order() -> None:
    engine = Late(sends=2)
    with SyncBroker(on(engine)) as face:
        soon(face, 100)
        assert face.publish("last", "t").topic == "t"
        assert face.flush()
        assert kept(engine) == [*(b"%d" % n for n in range(100)), b"last"]
        assert face.stats == Stats(delivered=101)


def test_what_comes_back_late_still_goes_before_what_was_published_after_it() -> None:
    engine = Fickle()
    with SyncBroker(on(engine)) as face:
        first = face.publish_soon(0, "t")
        until(lambda: engine.sends == 1)
        second = face.publish_soon(1, "t")
        until(lambda: face.stats.queued == 1)
        rest = [face.publish_soon(n, "t") for n in range(2, 10)]
        engine.refuse()
        until(lambda: all(future.done() for future in [first, second, *rest]))
        assert kept(engine) == [b"%d" % n for n in range(10)]


def test_a_batch_goes_after_what_is_being_tried_again() -> None:
    engine = Late(sends=1)
    with SyncBroker(on(engine)) as face:
        face.publish_soon(0, "t")
        until(lambda: face.stats.queued == 1)
        face.publish_many([Outgoing(1, "t"), Outgoing(2, "t")])
        assert kept(engine) == [b"0", b"1", b"2"]


def test_what_never_left_says_why_and_not_that_nobody_knows() -> None:
    face = SyncBroker(on(Late(connects=10**9)))
    begin = time.monotonic()
    with pytest.raises(ConnectError, match="connection refused"):
        face.publish("one", "t", timeout=0.3)
    assert 0.1 < time.monotonic() - begin < 2
    with pytest.raises(ConnectError, match="connection refused"):
        face.publish_many([Outgoing(1, "t")], timeout=0.3)
    with pytest.raises(ConnectError, match="connection refused"):
        face.request("one", "t", timeout=0.3)
    face.close()


def test_a_server_that_does_not_answer_at_all_is_a_connect_error() -> None:
    class Silent(Late):
        async def connect(self) -> None:
            await asyncio.Event().wait()

    face = SyncBroker(on(Silent(), connect_timeout=0.5))
    with pytest.raises(ConnectError, match="not connected in time"):
        face.publish("one", "t", timeout=0.1)
    with pytest.raises(ConnectError):
        face.connect()
    face.close()


@pytest.mark.parametrize("where", ["connects", "sends"])
def test_credentials_that_are_refused_are_an_error_at_once(where: str) -> None:
    engine = Late(error=AuthenticationError, **{where: 10**9})
    face = SyncBroker(on(engine))
    begin = time.monotonic()
    with pytest.raises(AuthenticationError):
        face.publish("one", "t", timeout=30)
    assert time.monotonic() - begin < 3
    face.close()


def test_a_publish_without_confirmation_that_is_lost_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    face = SyncBroker(on(Late(connects=10**9)))
    face.publish("one", "t", confirm=False, timeout=0.1)
    assert face.flush()
    assert "published with confirm=False was lost" in caplog.text
    face.close()


def test_closing_says_how_many_messages_it_could_not_deliver(caplog: pytest.LogCaptureFixture) -> None:
    face = SyncBroker(on(Late(connects=10**9)), exit_timeout=0.1)
    futures = soon(face, 7, timeout=60)
    face.close()
    assert "7 of the last messages were not delivered" in caplog.text
    assert all(isinstance(future.exception(0), ConnectError) for future in futures)
    assert face.stats == Stats(lost=7)


# --- with what was around -----------------------------------------------------------------------------

who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def test_context_variables_of_the_publisher_reach_the_publish_middleware() -> None:
    async def mark(outgoing: Outgoing, call_next: PublishNext) -> Receipt:
        outgoing.headers = {"who": who.get()}
        return await call_next(outgoing)

    broker = on(Late(), publish_middleware=[mark])
    with SyncBroker(broker) as face:
        who.set("me")
        face.publish(1, "t")
        futures = []
        for name in ("a", "b"):
            contextvars.copy_context().run(lambda n=name: (who.set(n), futures.append(face.publish_soon(1, "t"))))
        face.publish_many([Outgoing(1, "t")])
        assert face.flush()
        with face.stream("t", start="earliest", limit=4) as stream:
            assert sorted(message.headers["who"] for message in stream) == ["a", "b", "me", "me"]


def test_a_middleware_may_change_what_is_published_and_refuse_it() -> None:
    async def double(outgoing: Outgoing, call_next: PublishNext) -> Receipt:
        if outgoing.value == 13:
            raise ValueError("unlucky")
        outgoing.value *= 2
        return await call_next(outgoing)

    engine = Late()
    with SyncBroker(on(engine, publish_middleware=[double])) as face:
        face.publish(4, "t")
        with pytest.raises(ValueError, match="unlucky"):
            face.publish(13, "t")
        assert kept(engine) == [b"8"]
        assert face.stats == Stats(delivered=1, failed=1)


def test_a_publish_given_up_inside_a_middleware_is_cancelled_there() -> None:
    seen = []

    async def slow(outgoing: Outgoing, call_next: PublishNext) -> Receipt:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return await call_next(outgoing)

    engine = Late()
    with SyncBroker(on(engine, publish_middleware=[slow])) as face:
        with pytest.raises(DeliveryUnknownError):
            face.publish(4, "t", timeout=0.1)
        until(lambda: seen == ["cancelled"])
        assert kept(engine) == []


def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
