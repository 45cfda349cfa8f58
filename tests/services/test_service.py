"""A service is started, ready, stopped with all that it started, and says what went wrong."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import ConfigurationError, ServiceError
from headwater.services import Log, Service, Services, State, Stop
from waiting import until

from .children import DEAF, FOREVER, STRAY, Tag, children_of, python, state


async def test_a_service_without_a_probe_is_ready_when_it_runs() -> None:
    service = Service("one", python(FOREVER))
    assert service.pid is None
    async with service as entered:
        assert entered is service
        assert service.state is State.READY
        assert service.pid is not None
        assert state(service.pid)
        assert service.exit_code is None
        await until(lambda: service.lines == ["up"])
    assert service.state is State.STOPPED
    assert service.exit_code == -signal.SIGTERM
    assert service.pid is None


async def test_a_service_may_be_entered_again() -> None:
    service = Service("one", python(FOREVER), ready=Log("up"))
    pids = set()
    for _ in range(2):
        async with service:
            pids.add(service.pid)
            assert service.lines == ["up"]
    assert len(pids) == 2


async def test_a_service_that_runs_cannot_be_held_twice() -> None:
    async with Service("one", python(FOREVER)) as service:
        with pytest.raises(ConfigurationError, match="'one' is ready already"):
            await service.start()


def test_a_command_in_one_text_is_refused_with_the_list_to_write() -> None:
    with pytest.raises(ConfigurationError, match=r"write \['java', '-jar', 'a file.jar'\]"):
        Service("one", "java -jar 'a file.jar'")


@pytest.mark.parametrize(
    "options", [{"command": []}, {"command": ["x"], "name": "a/b"}, {"command": ["x"], "name": ""}]
)
def test_what_cannot_be_a_service_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Service(**{"name": "one"} | options)


async def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceError, match=r"cannot be started: No such file or directory: 'no-such-program'.*PATH"):
        async with Service("one", ["no-such-program"]):
            pass


async def test_a_command_that_may_not_be_executed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=f"Permission denied: '{tmp_path}'"):
        async with Service("one", [tmp_path]):
            pass


async def test_a_working_directory_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceError, match=r"No such file or directory: '/no/such/folder'$"):
        async with Service("one", python(FOREVER), cwd="/no/such/folder"):
            pass


async def test_it_runs_in_its_folder_with_its_variables_and_without_those_about_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/of/our/manager")
    code = "import os; print(os.getcwd(), os.environ['OURS'], os.environ['ITS'], 'NOTIFY_SOCKET' in os.environ)"
    command = python(f"{code}; {FOREVER}")
    async with Service("one", command, cwd=tmp_path, env={"ITS": "2"}, ready=Log("up")) as service:
        assert service.lines[0] == f"{tmp_path} 1 2 False"


async def test_it_inherits_no_descriptor_and_no_input_and_no_blocked_signal() -> None:
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    code = "import os, sys; print(os.listdir('/proc/self/fd'), repr(sys.stdin.read()))"
    signals = "print([line for line in open('/proc/self/status') if line[:6] in ('SigBlk', 'SigIgn')])"
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        async with Service("one", python(f"{code}\n{signals}\n{FOREVER}"), ready=Log("up")) as service:
            assert service.lines[0] == "['0', '1', '2', '3'] ''"  # 3 is of the listing itself
            assert "SigBlk:\\t0000000000000000" in service.lines[1]
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        os.close(kept)


async def test_it_leads_a_session_of_its_own() -> None:
    async with Service("one", python(FOREVER)) as service:
        assert service.pid is not None
        assert os.getsid(service.pid) == os.getpgid(service.pid) == service.pid


@pytest.mark.skipif(os.getuid() != 0, reason="only root may be somebody else")
async def test_it_runs_with_the_rights_of_another_user() -> None:
    nobody = pwd.getpwnam("nobody")
    script = "id -u; id -G; echo $USER $HOME; echo by name > /dev/stdout; echo up; exec sleep 1000"
    async with Service("one", ["sh", "-c", script], user="nobody", ready=Log("up")) as service:
        ids = [f"{nobody.pw_uid}", f"{nobody.pw_gid}", f"nobody {nobody.pw_dir}"]
        assert service.lines == [*ids, "by name", "up"]
    assert service.exit_code == -signal.SIGTERM


async def test_a_user_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no user 'no-such-user'"):
        async with Service("one", python(FOREVER), user="no-such-user"):
            pass


# --- not ready ----------------------------------------------------------------------------------------


async def test_one_that_ends_while_it_is_awaited_says_code_probe_and_last_lines() -> None:
    command = python("import sys; print('starting'); print('no licence', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ServiceError) as raised:
        async with Service("one", command, ready=Log("Started")):
            pass
    error = raised.value
    assert (error.name, error.exit_code, error.lines) == ("one", 3, ("starting", "no licence"))
    assert error.probe == "Log('Started'): no line matched"
    assert "ended with exit code 3 before it was ready" in str(error)
    assert "  | no licence" in str(error)


async def test_one_that_a_signal_ends_is_told_by_name() -> None:
    with pytest.raises(ServiceError, match="was ended by SIGSEGV") as raised:
        async with Service("one", python("import os, signal; os.kill(os.getpid(), 11)"), ready=Log("Started")):
            pass
    assert raised.value.exit_code == -signal.SIGSEGV


async def test_one_that_is_ready_and_ends_at_once_is_not_ready() -> None:
    with pytest.raises(ServiceError, match="exit code 1"):
        async with Service("one", python("print('up'); import os; os._exit(1)"), ready=Log("up")):
            await asyncio.Event().wait()


async def test_one_that_is_not_ready_in_time_is_stopped_and_says_what_is_missing() -> None:
    tag = Tag()
    with pytest.raises(ServiceError, match=r"not ready within 1 s: Log\('never'\): no line matched") as raised:
        async with Service("one", python(FOREVER), ready=Log("up") & Log("never"), ready_timeout=1.0, env=tag.env):
            pass
    assert raised.value.exit_code is None
    assert raised.value.lines == ("up",)
    assert not tag.alive()


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    tag = Tag()
    service = Service("one", python(FOREVER), ready=Log("never"), env=tag.env)
    start = asyncio.create_task(service.start())
    await until(lambda: service.lines == ["up"])
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not tag.alive()
    assert service.state is State.STOPPED


async def test_only_the_last_two_hundred_lines_are_kept() -> None:
    command = python(f"for n in range(300): print(n)\n{FOREVER}")
    async with Service("one", command, ready=Log("up")) as service:
        assert service.lines == [*map(str, range(101, 300)), "up"]


# --- stop ---------------------------------------------------------------------------------------------


async def test_a_graceful_stop_lets_it_finish() -> None:
    code = "import signal, sys; signal.signal(signal.SIGINT, lambda *_: (print('bye'), sys.exit(7))); print('up')"
    service = Service("one", python(f"{code}; signal.pause()"), ready=Log("up"), stop=Stop("SIGINT", 5))
    async with service:
        pass
    assert service.exit_code == 7
    assert service.lines == ["up", "bye"]


async def test_one_that_ignores_the_signal_is_killed_after_the_grace() -> None:
    service = Service("one", python(DEAF), ready=Log("up"), stop=Stop(grace=0.2))
    async with service:
        begun = time.monotonic()
    assert 0.2 <= time.monotonic() - begun < 2
    assert service.exit_code == -signal.SIGKILL


async def test_one_that_is_paused_hears_the_signal() -> None:
    async with Service("one", python(FOREVER), ready=Log("up")) as service:
        service.signal("SIGSTOP")
        assert service.pid is not None
        pid = service.pid
        await until(lambda: state(pid) == "T")
    assert service.exit_code == -signal.SIGTERM


async def test_a_grandchild_that_holds_the_pipe_does_not_hold_up_the_stop() -> None:
    tag = Tag()
    code = f"import os\nif not os.fork():\n    exec({DEAF!r})\n{FOREVER}"
    service = Service("one", python(code), ready=Log("up"), stop=Stop(grace=0.2), env=tag.env)
    async with service:
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    assert not tag.alive()


async def test_a_stray_in_a_session_of_its_own_is_found_and_killed() -> None:
    tag = Tag()
    service = Service("one", python(STRAY + FOREVER), ready=Log("up"), stop=Stop(grace=0.2), env=tag.env)
    async with service:
        await until(lambda: any(line.startswith("stray") for line in service.lines))
        assert len(tag.alive()) == 3  # the guard, the service, its stray
    assert not tag.alive()
    assert service.exit_code == -signal.SIGKILL  # it inherited being deaf


async def test_what_a_service_leaves_behind_when_it_ends_is_gone_before_that_is_told() -> None:
    tag = Tag()
    with pytest.raises(ServiceError, match="exit code 4"):
        async with Service("one", python(f"{STRAY}\nos._exit(4)"), stop=Stop(grace=0.1), env=tag.env):
            await asyncio.Event().wait()
    assert not tag.alive()


async def test_a_launcher_that_ends_at_once_leaves_its_program_the_time_to_stop() -> None:
    program = (
        "import signal, sys, time\n"
        "def stop(*_): signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.1); print('saved'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop); print('up')\nwhile True: signal.pause()"
    )
    launcher = f"import os, signal\nif not os.fork():\n    exec({program!r})\nsignal.pause()"
    service = Service("one", python(launcher), ready=Log("up"))
    async with service:
        pass
    assert service.lines == ["up", "saved"]


async def test_zombies_that_a_service_does_not_reap_itself_are_reaped() -> None:
    code = f"{STRAY.replace('while True: signal.pause()', 'os._exit(0)')}{FOREVER}"  # the stray ends at once
    async with Service("one", python(code), ready=Log("up"), stop=Stop(grace=0.2)) as service:
        assert service.pid is not None
        await until(lambda: any(re.fullmatch(r"stray \d+", line) for line in service.lines))
        stray = int(next(line for line in service.lines if "stray" in line).split()[1])
        await until(lambda: not state(stray))
        assert children_of(service.pid) == []


async def test_nothing_hangs_when_our_loop_did_not_read_for_long() -> None:
    service = Service("one", python("import sys\nwhile True: sys.stdout.write('x' * 79 + '\\n')"))
    async with service:
        time.sleep(0.2)  # noqa: ASYNC251 - so that the pipe is full
        begun = time.monotonic()
    assert time.monotonic() - begun < 2


async def test_a_stop_that_is_cancelled_kills_at_once() -> None:
    tag = Tag()
    service = Service("one", python(DEAF), ready=Log("up"), stop=Stop(grace=60), env=tag.env)
    await service.start()
    stop = asyncio.create_task(service.stop())
    await until(lambda: service.state is State.STOPPING)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert not tag.alive()


async def test_a_guard_that_hangs_is_killed_and_its_service_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.services import process

    from .children import parent_of

    monkeypatch.setattr(process, "MARGIN", 0.1)
    tag = Tag()
    async with Service("one", python(STRAY + FOREVER), ready=Log("up"), stop=Stop(grace=0.1), env=tag.env) as service:
        await until(lambda: "stray" in "".join(service.lines))
        assert service.pid is not None
        os.kill(parent_of(service.pid), signal.SIGSTOP)
    await until(lambda: not tag.alive())


# --- while it runs ------------------------------------------------------------------------------------


async def test_an_end_that_nobody_asked_for_cancels_the_body_and_is_raised() -> None:
    with pytest.raises(ServiceError, match="'one' ended with exit code 9") as raised:
        async with Service(
            "one", python("import time; print('last'); time.sleep(0.1); raise SystemExit(9)")
        ) as service:
            await asyncio.Event().wait()
    assert service.state is State.FAILED
    assert raised.value.lines == ("last",)


async def test_an_end_in_a_body_that_does_not_wait_any_more_is_raised_after_a_graceful_stop() -> None:
    service = Service("one", python(FOREVER), ready=Log("up"))
    services = Services(service)

    async def hold() -> None:
        async with services:
            services._fail(ServiceError("other", "is gone"))  # as its keeper does

    with pytest.raises(ServiceError, match="'other' is gone"):
        await hold()
    assert service.exit_code == -signal.SIGTERM
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_error_of_the_body_goes_first() -> None:
    with pytest.raises(KeyError):
        async with Service("one", python(FOREVER)):
            raise KeyError("mine")


async def test_a_cancellation_from_outside_stays_one() -> None:
    tag = Tag()
    entered = asyncio.Event()

    async def hold() -> None:
        async with Service("one", python(FOREVER), env=tag.env):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not tag.alive()


async def test_callbacks_are_given_the_service_and_may_be_async() -> None:
    calls: list[tuple[str, State, int | None]] = []

    async def on_ready(service: Service) -> None:
        await asyncio.sleep(0)
        calls.append(("ready", service.state, service.exit_code))

    def on_exit(service: Service) -> None:
        calls.append(("exit", service.state, service.exit_code))

    async with Service("one", python(FOREVER), ready=Log("up"), on_ready=on_ready, on_exit=on_exit):
        assert calls == [("ready", State.STARTING, None)]
    assert calls[1:] == [("exit", State.STOPPING, -signal.SIGTERM)]


async def test_a_failing_on_ready_fails_the_start_and_a_failing_on_exit_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tag = Tag()

    def refuse(service: Service) -> None:
        raise RuntimeError("wrong version")

    with pytest.raises(RuntimeError, match="wrong version"):
        async with Service("one", python(FOREVER), on_ready=refuse, on_exit=refuse, env=tag.env):
            pass
    assert not tag.alive()
    assert "on_exit of one failed" in caplog.text


async def test_what_a_service_exports_is_in_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONE_PORT", raising=False)
    command = python(f"print('listening on 8123'); {FOREVER}")
    ready = Log(r"listening on (?P<port>\d+)")
    async with Service("one", command, ready=ready, exports=lambda s: {"ONE_PORT": s.found["port"]}) as service:
        assert os.environ["ONE_PORT"] == "8123"
        assert service.exported == {"ONE_PORT": "8123"}
    assert "ONE_PORT" not in os.environ


async def test_a_signal_reaches_its_group() -> None:
    code = "import signal; signal.signal(signal.SIGHUP, lambda *_: print('again')); print('up')\n"
    async with Service("one", python(code + "while True: signal.pause()"), ready=Log("up")) as service:
        service.signal("SIGHUP")
        await until(lambda: service.lines == ["up", "again"])
    service.signal("SIGHUP")  # nobody is there


async def test_where_the_parent_holds_the_services_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.services import HELD_BY_PARENT, held_by_parent

    assert not held_by_parent()
    for name, value in HELD_BY_PARENT.items():
        monkeypatch.setenv(name, value)
    assert held_by_parent()
    service = Service("one", ["no-such-program"])
    async with Services(service):
        assert service.state is State.STOPPED
