"""Where gevent or eventlet has put greenlets in the place of threads."""

from __future__ import annotations

import pytest

from .processes import run


def test_many_greenlets_of_gevent_publish(url: str, topic: str) -> None:
    run(
        """
        from gevent import monkey

        monkey.patch_all()
        import sys, time
        import gevent
        from headwater import SyncBroker
        from headwater.sync import Stats

        url, topic = sys.argv[1:]
        ticks = 0


        def tick():
            global ticks
            while True:
                ticks += 1
                gevent.sleep(0.001)


        def work(name):
            for n in range(20):
                (face.publish if n % 2 else face.publish_soon)([name, n], topic, key=str(name))


        with SyncBroker(url) as face:
            other = gevent.spawn(tick)
            greenlets = [gevent.spawn(work, name) for name in range(50)]
            gevent.joinall(greenlets, raise_error=True)
            assert face.flush()
            assert face.stats == Stats(delivered=1000), face.stats
            with face.stream(topic, start="earliest", limit=1000, wait=10) as stream:
                found = [tuple(message.value) for message in stream]
            other.kill()
            assert ticks > 10, ticks  # who waits for the broker holds nobody else up
        assert len(set(found)) == len(found) == 1000
        for name in range(50):
            assert [n for who, n in found if who == name] == list(range(20))
        """,
        url,
        topic,
    )


def test_other_event_loops_run_beside_that_of_greenlets() -> None:
    lines = run("""
        from gevent import monkey

        monkey.patch_all()
        import asyncio
        import gevent
        from headwater import SyncBroker, SyncInAsyncError


        async def main():
            for n in range(50):
                await asyncio.sleep(0.001)
                assert asyncio.get_running_loop() is asyncio.current_task().get_loop()
            try:
                face.publish(1, "t")
            except SyncInAsyncError as error:
                return error.method


        with SyncBroker("memory://") as face:
            publishing = gevent.spawn(lambda: [face.publish(n, "t") for n in range(500)])
            print(asyncio.run(main()))
            publishing.get()
            print(face.stats.delivered)
    """)
    assert lines == ["publish", "500"]


def test_gevent_that_leaves_select_alone_is_refused_with_a_reason() -> None:
    lines = run("""
        from gevent import monkey

        monkey.patch_all(select=False)
        from headwater import ConfigurationError, SyncBroker

        try:
            SyncBroker("memory://").publish(1, "t")
        except ConfigurationError as error:
            print(error)
    """)
    assert "patch_all()" in lines[0]


def test_what_greenlets_published_soon_is_delivered_at_exit(tmp_path: object, topic: str) -> None:
    url = f"local://{tmp_path}/data"
    publish = """
        from gevent import monkey

        monkey.patch_all()
        import sys
        from headwater import SyncBroker

        face = SyncBroker(sys.argv[1])
        for n in range(100):
            face.publish_soon(n, sys.argv[2])
    """
    count = """
        import sys
        from headwater import SyncBroker

        with SyncBroker(sys.argv[1]) as face:
            print(len(list(face.stream(sys.argv[2], start="earliest", wait=0.5))))
    """
    run(publish, url, topic)
    assert run(count, url, topic) == ["100"]


@pytest.mark.parametrize("what", ["", "thread=True", "socket=True"])
def test_eventlet_is_refused_with_a_reason(what: str) -> None:
    lines = run(f"""
        import os
        import warnings

        os.environ["EVENTLET_NO_GREENDNS"] = "yes"  # that imports, and breaks, what DNS over HTTP might use
        warnings.simplefilter("ignore")  # its own: it is retired
        import eventlet

        eventlet.monkey_patch({what})
        from headwater import ConfigurationError, SyncBroker

        face = SyncBroker("memory://")
        for call in (lambda: face.publish(1, "t"), face.ping, face.connect):
            try:
                call()
            except ConfigurationError as error:
                print("eventlet" in str(error), face.stats.in_flight)
    """)
    assert lines == ["True 0"] * 3


def test_eventlet_that_has_patched_nothing_is_no_hindrance() -> None:
    assert run("""
        import warnings

        warnings.simplefilter("ignore")
        import eventlet, eventlet.patcher
        from headwater import SyncBroker

        with SyncBroker("memory://") as face:
            print(face.publish(1, "t").topic)
    """) == ["t"]  # fmt: skip
