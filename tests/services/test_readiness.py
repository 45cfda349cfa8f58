"""How services show that they are ready, and what does not count."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.errors import ConfigurationError, ServiceError
from headwater.services import File, HealthCheck, Http, Log, Notify, Probe, Service, State, Tcp
from headwater.services.readiness import NotReadyError
from servers.process import free_ports
from waiting import until

from .children import FOREVER, Tag, python

SERVE = "import socket, sys, signal\nserver = socket.create_server(('127.0.0.1', int(sys.argv[1])))\nsignal.pause()"
# Answers with 503 to the first two, and then with what it is told to.
ANSWER = """\
import socket, sys
server, count = socket.create_server(('127.0.0.1', int(sys.argv[1]))), 0
while True:
    connection, _ = server.accept()
    connection.recv(4096)
    count += 1
    answer = sys.argv[2] if count > 2 else 'HTTP/1.1 503 Not Yet\\r\\n\\r\\n'
    connection.sendall(answer.encode().decode('unicode_escape').encode())
    connection.close()
"""
OK = "HTTP/1.1 200 OK\\r\\n\\r\\nall is well"
CHUNKED = (
    "HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n7\\r\\nall is \\r\\n4\\r\\nwell\\r\\n0\\r\\n\\r\\n"
)


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def refused(service: Service) -> ServiceError:
    """The error of its start."""
    with pytest.raises(ServiceError) as raised:
        await service.start()
    return raised.value


# --- log ----------------------------------------------------------------------------------------------


async def test_a_line_makes_it_ready_and_its_named_groups_are_kept() -> None:
    command = python(f"print('listening on 127.0.0.1:8123')\n{FOREVER}")
    async with Service("one", command, ready=Log(r"listening on (?P<host>.+):(?P<port>\d+)")) as service:
        assert service.found == {"host": "127.0.0.1", "port": "8123"}


def test_a_pattern_that_is_none_fails_where_it_is_written() -> None:
    with pytest.raises(re.error):
        Log("(")


async def test_lines_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"import os\nif not os.path.exists({str(mark)!r}): open({str(mark)!r}, 'w'); print('Started')\n{FOREVER}"
    service = Service("one", python(code), ready=Log("Started"), ready_timeout=1.0)
    async with service:
        pass
    assert "not ready within 1 s" in str(await refused(service))


# --- ports --------------------------------------------------------------------------------------------


async def test_a_port_that_accepts_makes_it_ready(port: int) -> None:
    async with Service("one", python(SERVE, str(port)), ready=Tcp(port)):
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            pass


async def test_a_port_that_nobody_opens_is_named(port: int) -> None:
    error = await refused(Service("one", python(FOREVER), ready=Tcp(port), ready_timeout=0.2))
    assert error.probe.startswith(f"Tcp({port}): ")
    assert "Connect call failed" in error.probe


async def test_a_port_that_somebody_else_has_does_not_count(taken: int) -> None:
    tag = Tag()
    error = await refused(Service("one", python(FOREVER), ready=Tcp(taken), env=tag.env))
    assert f"port {taken} of 127.0.0.1 is taken before the start, so by somebody else" in str(error)
    assert error.probe == f"Tcp({taken})"
    assert not tag.alive()


@pytest.mark.parametrize("answer", [OK, CHUNKED])
async def test_an_answer_makes_it_ready(port: int, answer: str) -> None:
    ready = Http(f"http://127.0.0.1:{port}/health?full=1", body="^all is well$")
    async with Service("one", python(ANSWER, str(port), answer), ready=ready):
        pass


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ({"status": 204}, "status 200"),
        ({"status": range(300, 400)}, "status 200"),
        ({"body": "is not well"}, "the body does not match 'is not well'"),
    ],
)
async def test_another_answer_does_not(port: int, probe: dict[str, object], reason: str) -> None:
    wanted = Http(f"http://127.0.0.1:{port}/", **probe)  # type: ignore[arg-type]  # one of its options
    ready = Http(f"http://127.0.0.1:{port}/")
    async with Service("one", python(ANSWER, str(port), OK), ready=ready) as service:
        with pytest.raises(NotReadyError, match=reason):
            await wanted.check(service)


async def test_a_server_that_never_answers_is_left_in_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from headwater.services import readiness

    monkeypatch.setattr(readiness._look_until_well, "__defaults__", (0.05,))
    ready = Http(f"http://127.0.0.1:{port}/")
    error = await refused(Service("one", python(SERVE, str(port)), ready=ready, ready_timeout=1.0))
    assert error.probe.endswith("no answer within 0.05 s")


@pytest.mark.parametrize("url", ["localhost:80", "ftp://localhost/", "http:///path"])
def test_an_url_that_cannot_be_asked_fails_where_it_is_written(url: str) -> None:
    with pytest.raises(ValueError, match="give a URL such as http://"):
        Http(url)


async def test_a_connection_of_a_port_to_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As loopback makes it from a port to connect from that happens to be the one to connect to."""
    line = socket.socket()
    line.bind(("127.0.0.1", 0))
    port = line.getsockname()[1]
    line.connect(("127.0.0.1", port))
    line.setblocking(False)
    connect = asyncio.open_connection

    async def connect_to_itself(*_: object, **__: object) -> object:
        return await connect(sock=line)

    monkeypatch.setattr(asyncio, "open_connection", connect_to_itself)
    with pytest.raises(NotReadyError, match="nobody listens"):
        await Tcp(port).check(Service("one", ["x"]))


# --- files and notifications --------------------------------------------------------------------------


async def test_a_file_makes_it_ready(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    async with Service("one", python(f"open({str(path)!r}, 'w')\n{FOREVER}"), ready=File(path)):
        assert path.exists()


async def test_a_file_that_was_there_before_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    path.touch()
    error = await refused(Service("one", python(FOREVER), ready=File(path), ready_timeout=0.2))
    assert error.probe.endswith("it was not written again")
    code = f"import os; os.unlink({str(path)!r}); open({str(path)!r}, 'w')\n{FOREVER}"
    async with Service("one", python(code), ready=File(path)):
        pass


NOTIFY = """\
import os, socket
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
line.connect(os.environ['NOTIFY_SOCKET'].replace('@', '\\0'))
def tell(text): line.send(text.encode())
"""


async def test_a_notification_makes_it_ready_and_later_ones_are_heard() -> None:
    code = f"{NOTIFY}\ntell('STATUS=nearly\\nREADY=1\\n')\nfor _ in range(50): tell('STATUS=fine')\n{FOREVER}"
    async with Service("one", python(code), ready=Notify()) as service:
        await until(lambda: service.lines == ["up"])


async def test_a_status_that_was_notified_is_told_when_it_is_late() -> None:
    code = f"{NOTIFY}\ntell('STATUS=loading, 40%')\n{FOREVER}"
    error = await refused(Service("one", python(code), ready=Notify(), ready_timeout=1.0))
    assert error.probe == "Notify(): loading, 40%"


@pytest.mark.skipif(os.getuid() != 0, reason="only root may be somebody else")
async def test_a_notification_of_another_user_does_not_count(tmp_path: Path) -> None:
    inner = f"import signal\n{NOTIFY}\nos.setuid(65534)\ntell('READY=1')\nprint('told', flush=True)\n{FOREVER}"
    error = await refused(Service("one", python(inner), ready=Notify(), ready_timeout=1.0))
    assert error.lines == ("told", "up")
    assert error.probe == "Notify()"


async def test_a_line_to_a_descriptor_makes_it_ready() -> None:
    code = f"import os; fd = int(os.environ['HEADWATER_READY_FD']); os.write(fd, b'\\n'); os.close(fd)\n{FOREVER}"
    async with Service("one", python(code), ready=Notify(fd=True)) as service:
        await until(lambda: service.lines == ["up"])


async def test_a_descriptor_that_is_closed_without_a_line_does_not() -> None:
    code = f"import os; os.close(int(os.environ['HEADWATER_READY_FD']))\n{FOREVER}"
    error = await refused(Service("one", python(code), ready=Notify(fd=True), ready_timeout=1.0))
    assert error.probe == "Notify(fd=True): it was closed without a line"


async def test_no_descriptor_is_left_after_many_starts() -> None:
    before = len(os.listdir("/proc/self/fd"))
    service = Service("one", python(FOREVER), ready=Log("up") & (Notify() | Notify(fd=True) | Log("up")))
    failing = Service("two", ["no-such-program"], ready=Notify(fd=True) & Notify())
    for _ in range(3):
        async with service:
            pass
        await refused(failing)
    assert len(os.listdir("/proc/self/fd")) == before


# --- functions and combinations -----------------------------------------------------------------------


async def test_a_function_is_given_the_service_and_asked_until_it_agrees() -> None:
    asked: list[Service] = []

    async def is_up(service: Service) -> bool:
        asked.append(service)
        if len(asked) == 1:
            raise OSError("not yet")
        return len(asked) > 2

    async with Service("one", python(FOREVER), ready=is_up) as service:
        assert asked == [service] * 3


async def test_a_function_that_only_waits_is_as_good() -> None:
    async def wait(service: Service) -> None:
        await until(lambda: service.lines == ["up"])

    async with Service("one", python(FOREVER), ready=wait) as service:
        assert service.lines == ["up"]


async def test_the_last_failure_of_a_function_is_told() -> None:
    def fails(service: Service) -> bool:
        raise ValueError("no licence")

    error = await refused(Service("one", python(FOREVER), ready=Log("up") & fails, ready_timeout=1.0))
    assert error.probe.endswith("fails: no licence")


async def test_both_wants_both_and_names_what_is_missing(port: int) -> None:
    error = await refused(Service("one", python(FOREVER), ready=Tcp(port) & Log("up"), ready_timeout=1.0))
    assert error.probe.startswith(f"Tcp({port}): ")
    assert "Log" not in error.probe


async def test_either_wants_one() -> None:
    async with Service("one", python(FOREVER), ready=Log("never") | Log("up")):
        pass
    never = Log("never") | Log("nor this")
    error = await refused(Service("one", python(FOREVER), ready=never, ready_timeout=0.3))
    assert error.probe == "Log('never'): no line matched and Log('nor this'): no line matched"


def test_probes_say_what_they_are() -> None:
    def mine(service: Service) -> bool:
        return True

    assert str(mine & Log("a") | Tcp(80) & Tcp(81, "::1")).startswith("(test_probes_say")
    assert str(Log("a") & (Notify() | File("/x"))) == "Log('a') & (Notify() | File('/x'))"
    assert str(mine | Log("a")).endswith("mine | Log('a'))")


async def test_an_end_while_a_port_is_awaited_is_noticed_at_once(port: int) -> None:
    async with asyncio.timeout(5):
        error = await refused(Service("one", python("raise SystemExit(2)"), ready=Tcp(port), ready_timeout=60))
    assert error.exit_code == 2


async def test_no_probe_holds_up_the_loop(port: int) -> None:
    """A server with a full backlog answers nothing, not even that it accepts."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", port))
        deaf.listen(0)
        filling = [socket.socket() for _ in range(3)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        check = asyncio.create_task(Tcp(port).check(Service("one", ["x"])))
        await asyncio.sleep(0.05)
        assert not check.done()
        check.cancel()
        for one in filling:
            one.close()


# --- health -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [Log("up"), Notify()])
def test_what_comes_once_says_nothing_of_health(probe: Probe) -> None:
    with pytest.raises(ConfigurationError, match="says nothing of health"):
        Service("one", ["x"], health=probe)


async def test_probes_can_be_asked_for_health_together(port: int, taken: int) -> None:
    service = Service("one", [sys.executable], health=HealthCheck(Tcp(taken), interval=1))
    assert service.state is State.STOPPED
    await (Tcp(taken) & File("/")).check(service)
    await (Tcp(port) | Tcp(taken)).check(service)
    for probe in (Tcp(port) & Tcp(taken), Tcp(port) | File("/no/such/file"), File("/no"), Log("x")):
        with pytest.raises((OSError, NotReadyError)):
            await probe.check(service)
