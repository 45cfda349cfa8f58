"""Nothing of a service outlives us, however we or its guard die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headwater.errors import ServiceError
from headwater.services import Always, Log, Service, State, Stop, process, run
from waiting import until

from .children import DEAF, FOREVER, STRAY, Tag, parent_of, python, state

HOLDER = """\
import asyncio, os, sys
from headwater.services import Log, Service, Stop

async def main():
    async with Service("one", sys.argv[1:], ready=Log("up"), stop=Stop(grace=0.2)) as service:
        {before}
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextmanager
def holder(command: list[str], tag: Tag, before: str = "pass") -> Iterator[subprocess.Popen[str]]:
    """A process that holds a service, which is ready."""
    program = [sys.executable, "-c", HOLDER.format(before=before), *command]
    env = os.environ | tag.env
    with subprocess.Popen(program, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("code", [FOREVER, DEAF, STRAY + FOREVER], ids=["plain", "deaf", "stray"])
async def test_a_parent_that_is_killed_leaves_nothing(code: str) -> None:
    tag = Tag()
    with holder(python(code), tag) as process:
        assert len(tag.alive()) >= 3
        process.kill()
        process.wait()
        await until(lambda: not tag.alive())


async def test_a_parent_that_is_killed_before_it_has_heard_all_leaves_nothing() -> None:
    tag = Tag()
    end = "pid = service.pid; os.kill(pid, 9)\n        while os.path.exists(f'/proc/{pid}'): pass\n"
    end += "        __import__('time').sleep(0.05); os.kill(os.getpid(), 9)"
    with holder(python(STRAY + FOREVER), tag, f"print('held', flush=True); {end}") as process:
        process.wait()
        await until(lambda: not tag.alive())


async def test_a_parent_that_is_killed_leaves_a_service_its_grace() -> None:
    code = (
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'w').close(), sys.exit()))\n"
    )
    tag = Tag()
    path = f"/tmp/{tag.env['HEADWATER_TEST']}"
    try:
        with holder(python(f"{code}print('up'); signal.pause()", path), tag) as process:
            process.kill()
            process.wait()
            await until(lambda: not tag.alive())
        assert os.path.exists(path)
    finally:
        os.unlink(path)


async def test_a_forked_child_of_ours_does_not_keep_a_service_alive() -> None:
    tag = Tag()
    with holder(python(FOREVER), tag, "os.fork() or __import__('time').sleep(30)") as process:
        guards = [pid for pid in tag.alive() if parent_of(pid) == process.pid and "guard.py" in command_of(pid)]
        assert len(guards) == 1
        process.kill()
        process.wait()
        await until(lambda: not state(guards[0]))
        for pid in tag.alive():
            os.kill(pid, signal.SIGKILL)


def command_of(pid: int) -> str:
    with open(f"/proc/{pid}/cmdline") as cmdline:
        return cmdline.read()


@pytest.mark.parametrize("code", [FOREVER, DEAF, STRAY + FOREVER], ids=["plain", "deaf", "stray"])
async def test_a_guard_that_is_killed_takes_its_service_with_it(code: str) -> None:
    tag = Tag()
    service = Service("one", python(code), ready=Log("up"), env=tag.env)

    async def lose_the_guard() -> None:
        async with service:
            assert service.pid is not None
            os.kill(parent_of(service.pid), signal.SIGKILL)
            await asyncio.Event().wait()

    with pytest.raises(ServiceError, match="was ended by SIGKILL"):
        await lose_the_guard()
    assert service.state is State.FAILED
    await until(lambda: not tag.alive())


async def test_a_service_whose_guard_was_killed_is_started_again() -> None:
    again = asyncio.Event()
    service = Service("one", python(FOREVER), restart=Always(backoff=(0, 0)), on_ready=lambda _: again.set())
    async with service:
        first = service.pid
        again.clear()
        assert first is not None
        os.kill(parent_of(first), signal.SIGKILL)
        await again.wait()
        assert service.pid != first


async def test_signals_to_the_guard_do_nothing() -> None:
    async with Service("one", python(FOREVER), ready=Log("up"), stop=Stop(grace=5)) as service:
        assert service.pid is not None
        guard = parent_of(service.pid)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(guard, number)
        service.signal("SIGCONT")
        assert state(guard) in ("S", "R")
    assert service.exit_code == -signal.SIGTERM


async def test_ctrl_c_in_our_terminal_is_no_business_of_a_service() -> None:
    async with Service("one", python(FOREVER), ready=Log("up")) as service:
        assert service.pid is not None
        assert os.getpgid(parent_of(service.pid)) not in (os.getpgid(0), os.getpgid(service.pid))


async def test_a_program_that_is_never_executed_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tag, stuck = Tag(), tmp_path / "stuck.py"
    stuck.write_text("import signal\nwhile True: signal.pause()")
    monkeypatch.setattr(process, "GUARD", str(stuck))
    monkeypatch.setattr(process, "MARGIN", 0.1)
    monkeypatch.setattr(run, "BEGINS_WITHIN", 0.3)
    with pytest.raises(ServiceError, match=r"was not executed within 0\.3 s"):
        await Service("one", python(FOREVER), env=tag.env).start()
    assert not tag.alive()
