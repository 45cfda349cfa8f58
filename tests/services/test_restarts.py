"""A service that ends is started again, within limits, or has failed; so is one that is not well."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import ServiceError
from headwater.services import Always, HealthCheck, Log, Never, OnFailure, Service, State, Stop

from .children import FOREVER, Tag, python

SOON = {"backoff": (0.0, 0.0)}


class Life:
    """What became of a service: hand its methods to it as callbacks."""

    def __init__(self) -> None:
        self.pids: list[int | None] = []
        self.codes: list[int | None] = []
        self.changed = asyncio.Event()

    def on_ready(self, service: Service) -> None:
        self.pids.append(service.pid)
        self.changed.set()

    def on_exit(self, service: Service) -> None:
        self.codes.append(service.exit_code)

    async def until_ready(self, times: int) -> None:
        while len(self.pids) < times:
            self.changed.clear()
            await self.changed.wait()

    def service(self, code: str = FOREVER, **options: Any) -> Service:
        return Service("one", python(code), on_ready=self.on_ready, on_exit=self.on_exit, **options)


async def fate(service: Service) -> ServiceError:
    """What it failed with in the end."""
    with pytest.raises(ServiceError) as raised:
        async with service:
            await asyncio.Event().wait()
    return raised.value


async def test_one_that_crashes_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    life = Life()
    async with life.service(restart=OnFailure(**SOON), ready=Log("up")) as service:
        service.signal("SIGKILL")
        await life.until_ready(2)
        assert service.state in (State.STARTING, State.READY)
        assert service.pid == life.pids[1] != life.pids[0]
    assert life.codes == [-signal.SIGKILL, -signal.SIGTERM]
    assert "one was ended by SIGKILL: started again in 0.00 s" in caplog.text


async def test_the_limit_of_restarts_makes_it_fail() -> None:
    life = Life()
    service = life.service("raise SystemExit(5)", restart=OnFailure(max=3, **SOON))
    error = await fate(service)
    assert (error.exit_code, service.state) == (5, State.FAILED)
    assert life.codes == [5, 5, 5, 5]


async def test_without_a_policy_any_end_is_a_failure() -> None:
    assert (await fate(Life().service("raise SystemExit(0)"))).exit_code == 0


async def test_on_failure_leaves_a_clean_end_be_and_always_does_not() -> None:
    life = Life()
    assert (await fate(life.service("raise SystemExit(0)", restart=OnFailure(**SOON)))).exit_code == 0
    assert len(life.pids) == 1
    life = Life()
    await fate(life.service("raise SystemExit(0)", restart=Always(max=2, **SOON)))
    assert len(life.pids) == 3


async def test_a_restart_that_does_not_become_ready_counts_as_well(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    code = f"import os\nif os.path.exists({mark!r}): raise SystemExit(6)\nopen({mark!r}, 'w')\n{FOREVER}"
    life = Life()
    service = life.service(code, ready=Log("up"), restart=OnFailure(max=2, **SOON))

    async def crash_it() -> None:
        async with service:
            service.signal("SIGKILL")
            await asyncio.Event().wait()

    with pytest.raises(ServiceError, match="ended with exit code 6 before it was ready"):
        await crash_it()
    assert len(life.pids) == 1


async def test_a_restart_that_a_callback_fails_counts_as_well() -> None:
    pids: list[int | None] = []

    def on_ready(service: Service) -> None:
        pids.append(service.pid)
        if len(pids) > 1:
            raise RuntimeError("wrong version")
        service.signal("SIGKILL")

    tag = Tag()
    service = Service("one", python(FOREVER), on_ready=on_ready, restart=OnFailure(max=2, **SOON), env=tag.env)
    assert "could not be started again: RuntimeError('wrong version')" in str(await fate(service))
    assert len(pids) == 3
    assert not tag.alive()


async def test_the_first_start_is_not_tried_again() -> None:
    life = Life()
    service = life.service("raise SystemExit(1)", ready=Log("up"), restart=Always(**SOON))
    await fate(service)
    assert life.pids == []


async def test_a_stop_while_it_waits_to_be_started_again_is_quick() -> None:
    life, tag = Life(), Tag()
    service = life.service(restart=Always(backoff=(60, 60)), env=tag.env)
    async with asyncio.timeout(5), service:
        service.signal("SIGKILL")
        while service.state is not State.RESTARTING:
            await asyncio.sleep(0.001)
    assert service.state is State.STOPPED
    assert not tag.alive()


async def test_a_stop_while_it_is_started_again_leaves_nothing() -> None:
    tag = Tag()
    service = Service("one", python(FOREVER), ready=Log("up"), restart=Always(**SOON), env=tag.env)
    async with asyncio.timeout(10), service:
        service._ready = Log("never")
        service.signal("SIGKILL")
        while service.state is not State.STARTING:
            await asyncio.sleep(0.001)
    assert service.state is State.STOPPED
    assert not tag.alive()


async def test_one_that_is_not_well_is_stopped_and_started_again(caplog: pytest.LogCaptureFixture) -> None:
    life = Life()
    asked: list[int] = []

    async def is_well(service: Service) -> bool:
        asked.append(service.pid or 0)
        return len(asked) not in (1, 3, 4)  # one failure, then well, then two in a row

    health = HealthCheck(is_well, interval=0.01, failures=2)
    async with life.service(ready=Log("up"), health=health, restart=OnFailure(**SOON)) as service:
        await life.until_ready(2)
        assert asked[:4] == [life.pids[0]] * 4
    assert service.state is State.STOPPED
    assert life.codes == [-signal.SIGTERM] * 2
    assert "one is not well (2 of 2): " in caplog.text
    assert "it returned False" in caplog.text


async def test_one_that_is_not_well_and_not_started_again_has_failed() -> None:
    async def hangs(service: Service) -> None:
        await asyncio.Event().wait()

    health = HealthCheck(hangs, interval=0.01, failures=2, timeout=0.02)
    error = await fate(Life().service(health=health, stop=Stop(grace=1)))
    assert error.exit_code is None
    assert "was not well: " in str(error)
    assert "no answer within 0.02 s" in str(error)


async def test_restarts_that_are_long_ago_do_not_count() -> None:
    policy = OnFailure(max=2, within=60, backoff=(1, 8))
    assert policy.delay(1, []) is not None
    assert policy.delay(1, [10, 70, 80]) is not None
    assert policy.delay(1, [10, 20]) is None
    assert policy.delay(None, [10]) is not None
    assert policy.delay(0, []) is None
    assert Never().delay(1, []) is None


def test_the_wait_doubles_up_to_the_longest_and_a_random_part_is_taken_off() -> None:
    policy = Always(max=9, backoff=(1, 8))
    waits = [[policy.delay(0, [0.0] * n) or 0 for _ in range(50)] for n in range(6)]
    for wait, longest in zip(waits, (1, 2, 4, 8, 8, 8), strict=True):
        assert longest / 2 <= min(wait) < max(wait) <= longest


def test_a_signal_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="give the name of a signal"):
        Stop("TERM")


async def test_exports_follow_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life()
    exports = lambda service: {"ONE_PID": str(service.pid)}  # noqa: E731
    async with life.service(restart=Always(**SOON), exports=exports) as service:
        assert os.environ["ONE_PID"] == str(life.pids[0])
        service.signal("SIGKILL")
        await life.until_ready(2)
        assert os.environ["ONE_PID"] == str(life.pids[1])
    assert "ONE_PID" not in os.environ
