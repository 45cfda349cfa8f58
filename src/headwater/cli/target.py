"""What TARGET means: the app of `module:app`, or the broker of an app or a URL."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import shlex
import sys
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

from ..app import App
from ..broker import Broker
from ..errors import GroupNotFoundError, HeadwaterError, TopicNotFoundError
from .output import Failure

T = TypeVar("T")
USAGE: Final = 2
_OURS: Final = str(Path(__file__).parents[1])  # frames from below here are not the user's


def is_url(target: str) -> bool:
    return "://" in target


# --- an app -----------------------------------------------------------------------------------------------


ACCEPTED: Final = "a Headwater App, an ASGI application, or a function without required parameters that makes either"


def load_app(target: str, *, factory: bool = False, only_apps: bool = False) -> Any:
    """The App of `module:app`, or of the factory `module:make_app`; or unless `only_apps` an ASGI application.

    Failure says what was found instead and which command would work; a module that cannot be imported shows its
    own part of the traceback.
    """
    found = _load(target, factory, web=not only_apps)
    if isinstance(found, App) or (is_asgi(found) and not only_apps):
        return found
    module = _import(target.partition(":")[0])
    described = _described(found)
    if _is_wsgi(found):
        described += f", which speaks WSGI: a server such as gunicorn runs it (gunicorn {target})"
    accepted = "a Headwater App" if only_apps else ACCEPTED
    raise Failure(f"{target} is {described}, not {accepted}{_suggestion(target, module, web=not only_apps)}", USAGE)


def is_asgi(found: Any) -> bool:
    """Whether it is called as an ASGI application is: `await found(scope, receive, send)`."""
    if isinstance(found, type) or not callable(found):
        return False
    call = found if inspect.isroutine(found) else type(found).__call__
    return inspect.iscoroutinefunction(call) and _takes(found, 3)


def _is_wsgi(found: Any) -> bool:
    """Whether it looks as Flask's and Django's applications do."""
    return not inspect.isroutine(found) and not isinstance(found, type) and callable(found) and _takes(found, 2)


def _takes(function: Any, count: int) -> bool:
    """Whether it can be called with so many arguments, and none by name."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _load(target: str, factory: bool, *, web: bool = False) -> Any:
    """The object of `module:name`, called if it makes an app; `web` applications are suggested, too."""
    if is_url(target):
        raise Failure(f"{target} is a URL, and this wants an app: give module:app, and the URL with --broker", USAGE)
    name, colon, path = target.partition(":")
    if not name or "/" in name or name.endswith(".py"):
        raise Failure(_about_path(target), USAGE)
    module = _import(name)
    if not colon or not path:
        raise Failure(f"{target!r} names no app: give module:app{_suggestion(target, module, web=web)}", USAGE)
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            raise Failure(f"{name} has no {path!r}{_suggestion(target, module, path, web=web)}", USAGE)
        found = getattr(found, part)
    return _made(target, found, factory)


def _made(target: str, found: Any, factory: bool) -> Any:
    """What a factory gives; anything else as it is."""
    if isinstance(found, App | Broker | type) or not callable(found) or is_asgi(found):
        return found
    if inspect.iscoroutinefunction(found) or not _takes(found, 0):
        if factory:
            raise Failure(f"{target} is {_described(found)}: a factory is a def without required parameters", USAGE)
        return found
    try:
        return found()
    except HeadwaterError:
        raise
    except Exception as error:
        _show_traceback(error)
        raise Failure(f"{target}() failed: {_line(error)}") from error


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if missing and f"{name}.".startswith(f"{error.name}."):  # type: ignore[attr-defined]  # seen above
            raise Failure(f"there is no module {name!r} in {here} or on sys.path{_near_modules(name)}", USAGE) from None
        _show_traceback(error)
        raise Failure(f"cannot import {name}: {_line(error)}") from error


# --- saying what is wrong with a target ---------------------------------------------------------------------


def _described(found: Any) -> str:
    if inspect.ismodule(found):
        return "a module"
    if isinstance(found, type):
        return f"the class {found.__qualname__}"
    if inspect.iscoroutinefunction(found):
        return "an async function"
    if inspect.isroutine(found):
        return "a function"
    kind = type(found)
    article = "an" if kind.__name__[0] in "AEIOUaeiou" else "a"
    return f"{article} {kind.__name__}" + ("" if kind.__module__ == "builtins" else f" (from {kind.__module__})")


def _suggestion(target: str, module: ModuleType, wanted: str = "app", *, web: bool = False) -> str:
    """The command that would have worked, from the apps this module has; ASGI applications too, for the `web`."""
    apps = _apps_in(module, web)
    if not apps:
        return f"; {module.__name__} has none: make one with app = headwater.App(...)"
    name = (get_close_matches(wanted, apps, 1, cutoff=0.0) or apps)[0]
    others = [f"{module.__name__}:{one}" for one in apps if one != name]
    also = f" (or {', '.join(others)})" if others else ""
    return f"; did you mean {module.__name__}:{name}{also}? {_command(target, f'{module.__name__}:{name}')}"


def _apps_in(module: ModuleType, web: bool) -> list[str]:
    """The names of a module's apps, then of the functions that say they make one, then of its web applications."""
    members = vars(module).items()
    names = [name for name, value in members if isinstance(value, App)]
    makers = [name for name, value in members if inspect.isfunction(value) and _makes_app(value)]
    others = [
        name for name, value in members if is_asgi(value) and not (name.startswith("_") or inspect.isroutine(value))
    ]
    return names + makers + (others if web else [])


def _makes_app(function: Callable[..., Any]) -> bool:
    return getattr(function, "__annotations__", {}).get("return") in (App, "App", "headwater.App")


def _command(target: str, instead: str) -> str:
    """This command with another target."""
    arguments = [instead if argument == target else argument for argument in sys.argv[1:]]
    return shlex.join(["headwater", *arguments])


def _about_path(target: str) -> str:
    path, _, name = target.partition(":")
    module = ".".join(Path(path).with_suffix("").parts).strip("./") or "shop"
    instead = f"{module}:{name or 'app'}"
    return f"{target!r} is a file, and a target is module:app; did you mean {instead}? {_command(target, instead)}"


def _near_modules(name: str) -> str:
    here = {path.stem for path in Path.cwd().glob("*.py")} | {path.parent.name for path in Path.cwd().glob("*/*.py")}
    near = get_close_matches(name, here, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def _show_traceback(error: BaseException) -> None:
    """Print the traceback without the frames of ours and of the import system."""
    trace: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
    shown, following = trace, trace
    while following is not None:
        following.stack = traceback.StackSummary.from_list([f for f in following.stack if _is_users(f)])
        following = following.__cause__ or following.__context__
    assert shown is not None
    sys.stderr.write("".join(shown.format()))


def _is_users(frame: traceback.FrameSummary) -> bool:
    return (
        not frame.filename.startswith((_OURS, "<frozen importlib")) and Path(frame.filename).parent.name != "importlib"
    )


# --- a broker ---------------------------------------------------------------------------------------------


def ask(target: str, work: Callable[[Broker], Awaitable[T]]) -> T:
    """What `work` does with the broker of the target, connected. Handlers of an app do not run.

    A topic or group that is not there is answered with those of a similar name.
    """
    return asyncio.run(_ask(broker_of(target), work))


async def _ask(connecting: AbstractAsyncContextManager[Broker], work: Callable[[Broker], Awaitable[T]]) -> T:
    async with connecting as broker:
        try:
            return await work(broker)
        except TopicNotFoundError as error:
            raise TopicNotFoundError(error.topic, await _near_topics(broker, error.topic)) from error
        except GroupNotFoundError as error:
            if hint := await _near_groups(broker, error.group):
                raise Failure(f"there is no group {error.group!r}: {hint}") from error
            raise


def broker_of(target: str) -> AbstractAsyncContextManager[Broker]:
    """The broker of the target, connected as long as this lasts."""
    if is_url(target):
        return Broker(target)
    found = _load(target, factory=False)
    if isinstance(found, App):
        return found.connected_broker()
    if isinstance(found, Broker):
        return found
    module = _import(target.partition(":")[0])
    raise Failure(f"{target} is {_described(found)}, neither App nor Broker{_suggestion(target, module)}", USAGE)


async def _near_topics(broker: Broker, name: str) -> str:
    try:
        topics = [topic.name for topic in await broker.admin.topics.list(internal=True)]
    except HeadwaterError:
        return ""
    return _did_you_mean(name, topics)


async def _near_groups(broker: Broker, name: str) -> str:
    try:
        groups = [group.name for group in await broker.admin.groups.list()]
    except HeadwaterError:
        return ""
    return _did_you_mean(name, groups)


def _did_you_mean(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
