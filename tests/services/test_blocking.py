"""Services held by code that is not async."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from headwater.errors import ConfigurationError, ServiceError
from headwater.services import Log, Service, Services, State

from .children import FOREVER, Tag, python


def test_a_service_is_held_by_a_with_block_and_may_be_again() -> None:
    tag = Tag()
    service = Service("one", python(FOREVER), ready=Log("up"), env=tag.env)
    held = service.sync()
    for _ in range(2):
        with held as entered:
            assert entered is service
            assert service.state is State.READY
            assert service.lines == ["up"]
        assert service.exit_code == -signal.SIGTERM
        assert not tag.alive()
    assert "headwater services" not in [thread.name for thread in threading.enumerate()]


def test_several_are() -> None:
    one = Service("one", python(FOREVER), ready=Log("up"))
    with Services(one, Service("two", python(FOREVER), after=[one])).sync() as services:
        assert [service.state for service in services.services] == [State.READY] * 2


def test_a_start_that_fails_is_raised() -> None:
    with (
        pytest.raises(ServiceError, match="exit code 3"),
        Service("one", python("raise SystemExit(3)"), ready=Log("up")).sync(),
    ):
        pass


def test_an_end_that_nobody_asked_for_is_raised_in_the_end() -> None:
    def outlive_it() -> None:
        with Service("one", python("import time; time.sleep(0.1); raise SystemExit(4)")).sync() as service:
            while service.state is not State.FAILED:
                time.sleep(0.001)

    with pytest.raises(ServiceError, match="exit code 4"):
        outlive_it()


def test_an_error_of_the_body_goes_first() -> None:
    with pytest.raises(KeyError), Service("one", python(FOREVER)).sync():
        raise KeyError("mine")


async def test_a_running_loop_is_not_held_up() -> None:
    with pytest.raises(ConfigurationError, match="write `async with`"), Service("one", ["x"]).sync():
        pass


def test_ctrl_c_while_it_is_awaited_leaves_nothing() -> None:
    tag = Tag()
    code = (
        "import sys; from headwater.services import *\n"
        "with Service('one', sys.argv[1:], ready=Log('never')).sync(): pass"
    )
    program = [sys.executable, "-c", code, *python(FOREVER)]
    with subprocess.Popen(program, env=os.environ | tag.env, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 10
        while not tag.services():
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.communicate(timeout=10)[1]
    assert not tag.alive()
