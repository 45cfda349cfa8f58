"""Several services: their order, what a failure of one means for the others, and the lifespan of an ASGI app."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from headwater.errors import ConfigurationError, ServiceError
from headwater.services import Log, Service, Services, State, Stop
from waiting import until

from .children import DEAF, FOREVER, Tag, python


class Story:
    """In which order services became ready and ended."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def service(self, name: str, code: str = FOREVER, **options: Any) -> Service:
        options = {"ready": Log("up")} | options
        return Service(
            name,
            python(code),
            on_ready=lambda service: self.events.append(f"+{service.name}"),
            on_exit=lambda service: self.events.append(f"-{service.name}"),
            **options,
        )


async def test_services_start_after_what_they_need_and_stop_before() -> None:
    story = Story()
    database = story.service("database")
    cache = story.service("cache", after=[database])
    web = story.service("web", after=[cache, database])
    async with Services(web, cache, database):
        assert story.events == ["+database", "+cache", "+web"]
    assert story.events[3:] == ["-web", "-cache", "-database"]


async def test_what_a_service_needs_is_started_with_it() -> None:
    story = Story()
    database = story.service("database")
    async with story.service("web", after=[database]):
        assert database.state is State.READY
    assert story.events == ["+database", "+web", "-web", "-database"]


async def test_independent_services_start_and_stop_at_the_same_time() -> None:
    code = "import time; time.sleep(0.4)\n" + FOREVER
    services = [Service(f"s{n}", python(code), ready=Log("up")) for n in range(4)]
    begun = time.monotonic()
    async with Services(*services):
        assert time.monotonic() - begun < 1.2
    deaf = [Service(f"s{n}", python(DEAF), ready=Log("up"), stop=Stop(grace=0.4)) for n in range(4)]
    async with Services(*deaf):
        begun = time.monotonic()
    assert time.monotonic() - begun < 1.2


def test_a_cycle_is_refused_and_named() -> None:
    one, two, three = (Service(name, ["x"]) for name in ("one", "two", "three"))
    one.after, two.after, three.after = (two,), (three,), (one,)
    with pytest.raises(ConfigurationError, match="'one' after 'two' after 'three' after 'one'"):
        Services(one)


def test_a_name_may_be_used_once() -> None:
    with pytest.raises(ConfigurationError, match="two services are named one"):
        Services(Service("one", ["x"]), Service("one", ["y"]))


async def test_a_failing_start_stops_what_was_started_in_mirror_order() -> None:
    story, tag = Story(), Tag()
    one = story.service("one", env=tag.env)
    two = story.service("two", after=[one], env=tag.env)
    bad = story.service("bad", "print('no licence'); raise SystemExit(3)", after=[two])
    never = story.service("never", after=[bad])
    with pytest.raises(ServiceError, match="'bad' ended with exit code 3"):
        async with Services(never):
            pass
    assert story.events == ["+one", "+two", "-two", "-one"]
    assert not tag.alive()
    assert [service.state for service in (one, two, bad, never)] == [
        State.STOPPED,
        State.STOPPED,
        State.FAILED,
        State.STOPPED,
    ]


async def test_a_failing_start_stops_those_that_are_starting_beside_it() -> None:
    tag = Tag()
    starting = Service("starting", python(FOREVER), ready=Log("never"), env=tag.env)
    bad = Service("bad", python("import time; time.sleep(0.2); raise SystemExit(3)"), ready=Log("up"))
    with pytest.raises(ServiceError, match="'bad'"):
        async with Services(starting, bad):
            pass
    assert not tag.alive()


async def test_one_that_fails_later_ends_the_body_and_the_others() -> None:
    tag = Tag()
    other = Service("other", python(FOREVER), ready=Log("up"), env=tag.env)
    short = Service("short", python("import time; time.sleep(0.2); raise SystemExit(3)"), after=[other])
    with pytest.raises(ServiceError, match="'short' ended with exit code 3"):
        async with Services(other, short):
            await asyncio.Event().wait()
    assert not tag.alive()
    assert other.exit_code == -signal.SIGTERM


async def test_who_starts_services_itself_is_told_of_a_failure_once() -> None:
    failures: list[ServiceError] = []
    ends = "import time; time.sleep(0.1); raise SystemExit(3)"
    services = Services(*(Service(name, python(ends)) for name in ("one", "two")))
    await services.start(on_failure=failures.append)
    await until(lambda: all(service.state is State.FAILED for service in services.services))
    assert len(failures) == 1
    await services.stop()
    await services.stop()


async def test_the_end_of_one_while_another_is_stopped_is_no_failure() -> None:
    one = Service("one", python(FOREVER), ready=Log("up"))
    end_one = f"import os, signal\nos.kill(int(os.environ['ONE']), signal.SIGKILL)\n{FOREVER}"
    one._exports = lambda service: {"ONE": str(service.pid)}
    code = f"import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: (exec({end_one!r}), sys.exit()))\n"
    two = Service("two", python(f"{code}{FOREVER}"), ready=Log("up"), after=[one], stop=Stop(grace=0.5))
    async with Services(two):
        pass
    assert one.exit_code == -signal.SIGKILL


# --- a lifespan ---------------------------------------------------------------------------------------


def test_services_are_a_lifespan_for_a_test_client_twice() -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    tag = Tag()
    service = Service("one", python(FOREVER), ready=Log("up"), env=tag.env, exports={"ONE_URL": "http://one"})
    api = FastAPI(lifespan=Services(service))

    @api.get("/")
    def state() -> dict[str, str | None]:
        return {"state": service.state, "url": os.environ.get("ONE_URL")}

    for _ in range(2):
        with TestClient(api) as client:
            assert client.get("/").json() == {"state": "ready", "url": "http://one"}
        assert not tag.alive()
        assert "ONE_URL" not in os.environ


def test_a_start_that_fails_is_raised_by_a_test_client() -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    api = FastAPI(lifespan=Services(Service("one", python("raise SystemExit(3)"), ready=Log("up"))))
    with pytest.raises(ServiceError, match="exit code 3"), TestClient(api):
        pass


def test_one_that_fails_later_is_raised_in_the_end_where_there_is_no_server() -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    service = Service("one", python("import time; time.sleep(0.1); raise SystemExit(3)"))
    api = FastAPI(lifespan=Services(service))

    def outlive_it() -> None:
        with TestClient(api):
            while service.state is not State.FAILED:
                time.sleep(0.001)

    with pytest.raises(ServiceError, match="exit code 3"):
        outlive_it()


async def test_a_lifespan_is_plain_asgi_and_needs_no_app() -> None:
    service = Service("one", python(FOREVER))
    async with Services(service)():
        assert service.state is State.READY
    assert service.state is State.STOPPED
