"""What TARGET may be, and what is said when it is something else."""

from __future__ import annotations

import sys

import pytest

from headwater.cli.output import Failure
from headwater.cli.target import load_app

from .conftest import Here, Shell

MORE = """
def make_app() -> "App":
    return app

async def later():
    return app

class Holder:
    inner = app

number = 3
other = App("other", broker="memory://")
"""


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop", "names no app: give module:app; did you mean shop:app"),
        ("shop:", "names no app"),
        ("shop:ap", "shop has no 'ap'; did you mean shop:app"),
        ("shop:othr", "did you mean shop:other (or shop:app, shop:make_app)? headwater run shop:other"),
        ("shop:number", "shop:number is an int, not a Headwater App, an ASGI application, or"),
        ("shop:Order", "is the class Order"),
        ("shop:invoice", "is an async function"),
        ("shop:later", "is an async function"),
        ("shop.py:app", "is a file, and a target is module:app; did you mean shop:app? headwater run shop:app"),
        ("./src/shop.py", "did you mean src.shop:app?"),
        ("shp:app", "there is no module 'shp'"),
        ("shp:app", "did you mean shop?"),
        ("shop.sub:app", "there is no module 'shop.sub'"),
        ("local://./data", "is a URL, and this wants an app: give module:app, and the URL with --broker"),
    ],
)
def test_a_wrong_target_is_told_what_was_found_and_what_would_work(
    shell: Shell, target: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write("shop.py", (shell.path / "shop.py").read_text() + MORE)
    monkeypatch.chdir(shell.path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr("sys.modules", {name: module for name, module in sys.modules.items() if name != "shop"})
    monkeypatch.setattr("sys.argv", ["headwater", "run", target])
    with pytest.raises(Failure) as failure:
        load_app(target)
    assert failure.value.code == 2
    assert said in failure.value.reason
    assert "\n" not in failure.value.reason


def test_the_suggested_command_keeps_the_options(shell: Shell) -> None:
    error = shell("run", "shop:aap", "--workers", 2, "--log-level", "debug", code=2).stderr
    assert "headwater run shop:app --workers 2 --log-level debug\n" in error
    assert error.count("shop has no 'aap'") == 1  # not once per worker


def test_a_module_without_apps_says_how_to_make_one(shell: Shell) -> None:
    shell.write("empty.py", "x = 1\n")
    assert "empty has none: make one with app = headwater.App(...)" in shell("run", "empty:x", code=2).stderr


def test_a_broken_import_shows_the_users_part_of_the_traceback(shell: Shell) -> None:
    shell.write("rules.py", "def load():\n    return {}['missing']\n")
    shell.write("broken.py", "import rules\nrules.load()\n")
    done = shell.start("run", "broken:app")
    assert done.wait() == 1
    assert "broken.py" in done.text
    assert "rules.py" in done.text
    assert "KeyError: 'missing'" in done.text
    assert "headwater/cli" not in done.text
    assert "importlib" not in done.text
    assert done.seen[-1] == "error: cannot import broken: KeyError: 'missing'"


def test_a_module_that_the_users_module_misses_is_not_taken_for_the_target(shell: Shell) -> None:
    shell.write("broken.py", "import nowhere_to_be_found\n")
    done = shell.start("run", "broken:app")
    assert done.wait() == 1
    assert 'broken.py", line 1' in done.text
    assert done.seen[-1].startswith("error: cannot import broken: ModuleNotFoundError")


def test_a_syntax_error_shows_its_line(shell: Shell) -> None:
    shell.write("broken.py", "def app(:\n")
    done = shell.start("topics", "list", "broken:app")
    assert done.wait() == 1
    assert "def app(:" in done.text
    assert "headwater/cli" not in done.text


def test_a_factory_that_fails_shows_where(shell: Shell) -> None:
    shell.write("broken.py", "def make_app():\n    raise OSError('no settings')\n")
    done = shell.start("run", "broken:make_app")
    assert done.wait() == 1
    assert "in make_app" in done.text
    assert done.seen[-1] == "error: broken:make_app() failed: OSError: no settings"


def test_a_factory_that_wants_arguments_is_none(shell: Shell) -> None:
    shell.write("broken.py", "def make_app(name):\n    return name\n")
    assert "a def without required parameters" in shell("run", "broken:make_app", "--factory", code=2).stderr


LATE = """
from contextlib import asynccontextmanager
from headwater import App, Broker

URL = "local://./late?durability=process"

@asynccontextmanager
async def lifespan(app):
    print("lifespan entered", flush=True)
    yield {}
    print("lifespan left", flush=True)

hooked = App("hooked", lifespan=lifespan)

@hooked.on_startup
async def choose():
    hooked.set_broker(URL)

@hooked.after_startup
async def never():
    print("after_startup", flush=True)

async def make():
    return URL

called = App("called", broker=make)
unbound = Broker()
bound = App("bound", broker=unbound)

@bound.on_startup
def bind():
    unbound.bind(URL)

alone = Broker(URL)
early = App("early", URL, lifespan=lifespan)


@hooked.subscriber("orders")
@called.subscriber("orders")
@bound.subscriber("orders")
async def handle(order: int) -> None:
    print("handled", flush=True)
"""


@pytest.mark.parametrize("name", ["hooked", "called", "bound", "alone", "early"])
def test_the_broker_of_an_app_is_found_however_it_comes_and_nothing_is_consumed(
    shell: Shell, here: Here, name: str
) -> None:
    shell.write("late.py", LATE)
    assert "orders[" in shell("publish", f"late:{name}", "orders", "1").stdout
    done = shell("topics", "list", f"late:{name}")
    assert "orders" in done.stdout
    assert "handled" not in done.stdout
    assert "after_startup" not in done.stdout
    assert ("lifespan left" in done.stdout) is (name == "hooked")  # only where the broker comes late
    assert "no groups yet" in here("groups", "list", "local://./late").err


def test_headwater_broker_wins_for_every_command(shell: Shell) -> None:
    shell.environment["HEADWATER_BROKER"] = "local://./other?durability=process"
    shell("publish", "shop:app", "orders", "1")
    assert (shell.path / "other").exists()
    assert not (shell.path / "data").exists()


def test_what_is_no_target_of_a_broker_command_is_refused(shell: Shell) -> None:
    assert "neither App nor Broker" in shell("topics", "list", "shop:Order", code=2).stderr


def test_an_unknown_scheme_names_those_that_are_known(shell: Shell) -> None:
    error = shell("topics", "list", "lokal://data", code=1).stderr
    assert error.startswith("error: no engine for lokal://; known here: ")
    assert "local://, memory://" in error
