"""Several processes share services: one owns them, the others wait for it, and one of those takes over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest

from headwater.errors import ConfigurationError, ServiceError
from headwater.services import Log, Service, Services, election
from headwater.services.election import place_for
from servers.process import free_ports
from waiting import until

from .children import FOREVER, Tag, python

MEMBER = """\
import asyncio, os, signal, sys
from headwater.errors import ServiceError
from headwater.services import Always, Log, Service, Services

async def main():
    exports = lambda service: {"ONE_PID": str(service.pid)}
    restart = Always(backoff=(0, 0))
    service = Service("one", sys.argv[2:], ready=Log("up"), exports=exports, restart=restart)
    left = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, left.set)
    try:
        async with Services(service, lock=sys.argv[1]):
            EXTRA
            before = None
            while not left.is_set():
                now = os.environ.get("ONE_PID")
                if now and now != before:
                    print("owner" if service.pid else "follower", now, flush=True)
                    before = now
                await asyncio.sleep(0.005)
    except ServiceError as error:
        print("error", error.name, error.exit_code, error.probe, *error.lines, flush=True)

asyncio.run(main())
"""


class Member:
    """A process that shares the service: what it says of its part, a line each time that changes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> list[str]:
        assert self.process.stdout is not None
        async with asyncio.timeout(10):
            return (await self.process.stdout.readline()).decode().split()

    def kill(self) -> None:
        self.process.kill()

    async def leave(self) -> None:
        self.process.terminate()
        await self.process.wait()


Join = Callable[..., Any]


@pytest.fixture
async def tag() -> Tag:
    return Tag()


@pytest.fixture
async def join(tmp_path: Path, tag: Tag) -> AsyncIterator[Join]:
    async with AsyncExitStack() as stack:

        async def join(code: str = FOREVER, extra: str = "pass") -> Member:
            program = [sys.executable, "-c", MEMBER.replace("EXTRA", extra), str(tmp_path / "lock"), *python(code)]
            env = os.environ | tag.env
            process = await asyncio.create_subprocess_exec(*program, env=env, stdout=asyncio.subprocess.PIPE)

            async def end() -> None:
                if process.returncode is None:
                    process.kill()
                await process.communicate()

            stack.push_async_callback(end)
            return Member(process)

        yield join
    await until(lambda: not tag.alive())


async def test_one_owns_the_services_and_the_others_know_what_they_export(join: Join, tag: Tag) -> None:
    members = await asyncio.gather(*(join() for _ in range(3)))
    said = [await member.says() for member in members]
    assert sorted(role for role, _ in said) == ["follower", "follower", "owner"]
    assert {int(pid) for _, pid in said} == set(tag.services())
    assert len(tag.services()) == 1


@pytest.mark.parametrize("end", ["kill", "leave"])
async def test_when_the_owner_ends_one_takes_over_and_the_others_follow_it(join: Join, tag: Tag, end: str) -> None:
    owner = await join()
    role, first = await owner.says()
    assert role == "owner"
    others = [await join() for _ in range(2)]
    assert [await other.says() for other in others] == [["follower", first]] * 2
    owner.kill() if end == "kill" else await owner.leave()
    said = [await other.says() for other in others]
    assert sorted(role for role, _ in said) == ["follower", "owner"]
    assert said[0][1] == said[1][1] != first
    await until(lambda: tag.services() == [int(said[0][1])])


async def test_followers_hear_of_a_restart(join: Join) -> None:
    owner = await join()
    _, pid = await owner.says()
    follower = await join()
    await follower.says()
    os.kill(int(pid), signal.SIGKILL)
    now = await owner.says()
    assert now[0] == "owner"
    assert now[1] != pid
    assert await follower.says() == ["follower", now[1]]


async def test_a_follower_that_leaves_changes_nothing(join: Join, tag: Tag) -> None:
    owner = await join()
    _, pid = await owner.says()
    follower = await join()
    await follower.says()
    await follower.leave()
    assert follower.process.returncode == 0
    assert tag.services() == [int(pid)]


async def test_a_start_that_fails_fails_for_all(join: Join, tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nprint('bad'); raise SystemExit(3)"
    )
    members = [await join(code) for _ in range(3)]
    await asyncio.sleep(0.5)  # all of them are at it, which nothing shows; fewer would prove less
    go.touch()
    for member in members:
        assert await member.says() == ["error", "one", "3", "Log('up'):", "no", "line", "matched", "bad"]


async def test_a_lock_file_and_a_socket_without_a_holder_are_harmless(join: Join, tmp_path: Path) -> None:
    import socket

    (tmp_path / "lock").write_text("4711")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str((tmp_path / "lock").with_suffix(".sock")))
    member = await join()
    assert (await member.says())[0] == "owner"
    await member.leave()
    assert not list(tmp_path.iterdir())


async def test_a_forked_child_of_the_owner_holds_nobody_up(join: Join, tag: Tag) -> None:
    owner = await join(extra="os.fork() or __import__('time').sleep(30)")
    await owner.says()
    follower = await join()
    _, pid = await follower.says()
    owner.kill()
    role, now = await follower.says()
    assert role == "owner"
    assert now != pid
    await follower.leave()
    for pid in tag.alive():
        os.kill(pid, signal.SIGKILL)


async def test_an_owner_that_is_cancelled_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    tag = Tag()
    service = Service("one", python(FOREVER), ready=Log("never"), env=tag.env)
    start = asyncio.create_task(Services(service, lock=tmp_path / "lock").start())
    await until(lambda: service.lines == ["up"])
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not tag.alive()
    assert not list(tmp_path.iterdir())


async def test_a_lock_that_somebody_else_has_for_something_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(election, "LISTENS_WITHIN", 0.1)
    with (tmp_path / "lock").open("w") as file:
        flock(file, LOCK_EX)
        with pytest.raises(ServiceError, match=r"does not listen; give Services\(lock=\) another path"):
            await Services(Service("one", python(FOREVER)), lock=tmp_path / "lock").start()


async def test_a_lock_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/folder/lock"):
        await Services(Service("one", ["x"]), lock="/no/such/folder/lock").start()


async def test_a_callback_that_fails_fails_the_start_as_it_is(tmp_path: Path) -> None:
    tag = Tag()
    service = Service("one", python(FOREVER), exports=lambda service: {"PORT": service.found["port"]}, env=tag.env)
    with pytest.raises(KeyError, match="port"):
        await Services(service, lock=tmp_path / "lock").start()
    assert not tag.alive()


def test_processes_share_a_place_by_services_folder_and_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = place_for(["a", "b"], None)
    assert place == place_for(["b", "a"], None)
    assert place.parent == tmp_path / f"headwater-{os.getuid()}"
    assert place.parent.stat().st_mode & 0o777 == 0o700
    assert place != place_for(["a"], None)
    monkeypatch.chdir(tmp_path)
    assert place != place_for(["a", "b"], None)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert place_for(["a", "b"], None) != place_for(["a"], None)


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"headwater-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="not a folder of this user alone"):
        place_for(["a"], None)


# --- under servers ------------------------------------------------------------------------------------

WEB = """\
import os
from fastapi import FastAPI
from headwater.services import Log, Service, Services

service = Service("one", {command!r}, ready=Log("up"), exports=lambda service: {{"ONE_PID": str(service.pid)}})
api = FastAPI(lifespan=Services(service))

@api.get("/")
async def part():
    return {{"worker": os.getpid(), "owns": service.pid is not None, "service": os.environ.get("ONE_PID")}}
"""
SERVERS = {
    "uvicorn": ["-m", "uvicorn", "web:api", "--host", "127.0.0.1", "--workers", "3", "--log-level", "warning"],
    "hypercorn": ["-m", "hypercorn", "web:api", "--workers", "3", "--bind"],
    "granian": ["-m", "granian", "web:api", "--interface", "asgi", "--workers", "3", "--respawn-failed-workers"],
    "gunicorn": ["-m", "gunicorn", "web:api", "-k", "uvicorn_worker.UvicornWorker", "-w", "3", "--bind"],
}


async def ask(port: int) -> dict[str, Any]:
    """What one of the workers, whichever, says of its part; {} if none answers."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.closing(writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = await reader.read()
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError):
        return {}
    return found


async def parts_of(port: int, without: int = 0) -> dict[int, dict[str, Any]]:
    """What three workers say, when they agree on a service that is owned by one of them, and that one is another."""
    async with asyncio.timeout(20):
        found: dict[int, dict[str, Any]] = {}
        while True:
            said = await ask(port)
            if not said:
                await asyncio.sleep(0.05)
                continue
            found[said["worker"]] = said
            services = {part["service"] for part in found.values()}
            if len(found) == 3 and without not in found and len(services) == 1 and None not in services:
                return found
            if len(found) > 3 or len(services) > 1 or without in found:
                found.clear()


@asynccontextmanager
async def server(kind: str, folder: Path, tag: Tag, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    (folder / "web.py").write_text(WEB.format(command=python(FOREVER)))
    listen = [f"127.0.0.1:{port}"] if SERVERS[kind][-1] == "--bind" else ["--port", str(port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *SERVERS[kind], *listen, cwd=folder, env=os.environ | tag.env
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.parametrize("kind", SERVERS)
async def test_workers_of_a_server_share_one_service_and_one_takes_over(kind: str, tmp_path: Path) -> None:
    tag, port = Tag(), free_ports(1)[0]
    async with server(kind, tmp_path, tag, port) as process:
        parts = await parts_of(port)
        owners = [worker for worker, part in parts.items() if part["owns"]]
        assert len(owners) == 1
        pid = parts[owners[0]]["service"]
        assert tag.services() == [int(pid)]

        if kind != "hypercorn":  # which stops as a whole when a worker dies
            os.kill(owners[0], signal.SIGKILL)
            after = await parts_of(port, without=owners[0])
            assert len([worker for worker, part in after.items() if part["owns"]]) == 1
            assert {part["service"] for part in after.values()} != {pid}
            assert len(tag.services()) == 1

        process.terminate()
        async with asyncio.timeout(20):
            await process.wait()
        await until(lambda: not tag.alive(), within=10)


async def test_a_server_stops_when_a_service_of_its_app_has_failed(tmp_path: Path) -> None:
    tag, port = Tag(), free_ports(1)[0]
    command = [sys.executable, "-m", "uvicorn", "web:api", "--host", "127.0.0.1", "--port", str(port)]
    (tmp_path / "web.py").write_text(WEB.format(command=python(FOREVER)))
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, env=os.environ | tag.env, stderr=asyncio.subprocess.PIPE
    )
    said: dict[str, Any] = {}
    while not said:
        said = await ask(port)
        await asyncio.sleep(0.02)
    os.kill(int(said["service"]), signal.SIGKILL)
    async with asyncio.timeout(10):
        _, errors = await process.communicate()
    assert b"service 'one' was ended by SIGKILL" in errors
    assert process.returncode != 0
    assert not tag.alive()
